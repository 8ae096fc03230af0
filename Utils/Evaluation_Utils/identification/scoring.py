"""All probes with all distractors of a trial in one pass, block by block: ranks, best distractors,
and the negatives. Further passes count again at FPRs that accept more negatives than are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Utils.cpu import LoneThreads
from Utils.errors import DataError
from Utils.Evaluation_Utils.identification.exact_scores import (
    SCORE_DTYPES,
    PairScorer,
    Products,
)
from Utils.Evaluation_Utils.identification.figures import allowed
from Utils.Evaluation_Utils.identification.negatives import Bins, Negatives, NegativeScores
from Utils.Evaluation_Utils.identification.ranks import (
    BestDistractor,
    Mates,
    RankCounter,
    find_mates,
)
from Utils.Evaluation_Utils.roc import OperatingPoint
from Utils.processes import ALONE, Processes

CPU = torch.device("cpu")
DEVKIT_PROBES = 100  # the devkit's tool takes its negatives from the first hundred probes alone
BLOCK_SIZES = {"cpu": 2048, "cuda": 16384}

_BIN_ROUNDING = 2.0**-22  # of a product, its bin's edge and the bin's index, all in float32
_ROWS_AT_ONCE = 512  # probes


@dataclass(frozen=True)
class ScoringSettings:
    """How to score; nothing but `ties` changes a figure (see `figures.Curve` on the far end of the
    ROC curve).

    ties: see `ranks.RankCounter`. score_dtype: dtype of the product, one of SCORE_DTYPES.
    block_size: distractors at once; 0 chooses by the device. progress: label of a progress bar;
    None: no bar. processes: they share the work.
    """

    device: torch.device = CPU
    ties: str = "mate"
    score_dtype: str = "fp32"
    block_size: int = 0
    progress: str | None = None
    processes: Processes = ALONE

    @property
    def distractors_at_once(self) -> int:
        """The size of a block."""
        return self.block_size or BLOCK_SIZES.get(self.device.type, BLOCK_SIZES["cpu"])


@dataclass(frozen=True, eq=False)
class Trial:
    """A choice of probes and distractors to evaluate.

    probes: int64 rows of the probe table in the list's order, each once.
    distractors: int64 rows of the distractor table, ascending.
    far: further distractors that count, but score below everything (see `megaface.noise`)."""

    probes: np.ndarray
    distractors: np.ndarray
    far: int = 0

    @property
    def gallery(self) -> int:
        """How many distractors count."""
        return len(self.distractors) + self.far

    @property
    def devkit_probes(self) -> np.ndarray:
        """The probes that the devkit's negatives come from."""
        return self.probes[:DEVKIT_PROBES]


@dataclass(frozen=True, eq=False)
class Scores:
    """What a pass over a trial found. Rows are those of the trial's P probes.

    mates: of all probes. beats: int64 P×M, distractors that beat each mate. best: float64 P, each
    probe's highest score with a distractor; best_distractor: int64 P, that distractor's row.
    negatives: "all": of all probes with the distractors, "devkit": of the first hundred.
    """

    mates: Mates
    beats: np.ndarray
    best: np.ndarray
    best_distractor: np.ndarray
    negatives: dict[str, Negatives]


class TrialScorer:
    """Passes over the distractors of a trial.

    probes: float64 P×D normalised rows of the trial's probes, with P identities.
    distractors: N×D, the whole table. bar: shows the progress.
    """

    def __init__(
        self,
        trial: Trial,
        probes: np.ndarray,
        ids: np.ndarray,
        distractors: np.ndarray,
        settings: ScoringSettings,
        threads: LoneThreads,
        bar: tqdm,
    ) -> None:
        self._trial, self._unit, self._distractors = trial, probes, distractors
        self._settings, self._threads, self._bar = settings, threads, bar
        self._exact = PairScorer(probes, distractors, threads)
        self._mates = find_mates(probes, ids)

    def score(self, bins: Bins, keep: dict[str, int]) -> Scores:
        """The first pass. keep: how many of the highest scores, for each kind of negatives.

        Raises DataError for distractors that are not finite, naming the row.
        """
        settings, trial = self._settings, self._trial
        products = self._products(settings.score_dtype)
        bound = products.bound
        ranks = RankCounter(self._mates, products, self._exact, settings.ties, self._threads)
        best = BestDistractor(len(trial.probes), bound, self._exact)
        kinds = {}
        for kind, probes in self._probes_of.items():
            every = keep[kind] >= probes * len(trial.distractors)
            kind_bins = None if every else bins
            kinds[kind] = NegativeScores(probes, keep[kind], kind_bins, bound, self._exact)
        margin = products.low_bound + bound  # between two products of one pair
        for rows, scores in self._blocks(products):
            highest = scores.amax(dim=1).cpu().numpy().astype(np.float64)
            if settings.score_dtype != "fp32":
                floors = np.minimum(ranks.floors, best.floors)
                for found in kinds.values():
                    part = floors[: found.probes]
                    np.minimum(part, found.floor, out=part)
                near = torch.from_numpy(np.flatnonzero(highest >= floors - margin))
                near = near.to(scores.device)
                products.refine(near)
                highest[near.cpu().numpy()] = scores[near].amax(dim=1).cpu().numpy()
            for part in (ranks, best, *kinds.values()):
                part.add(scores, highest, rows)
        return self._merged(ranks, best, kinds, bins)

    def wide_points(self, scores: Scores, wanted: list[tuple[str, float]]) -> list[OperatingPoint]:
        """The exact points, as `figures.operating_point` defines them, at FPRs that accept more
        negatives than `scores` has kept. wanted: (kind of negatives, FPR) of each.

        At a FPR of 1e-2, 35 million of 3,530 × 1,000,000 negatives are accepted. The threshold is
        the lowest positive with few enough negatives at or above it. The histogram of the first
        pass says between which positives it lies; a second pass compares all products with these;
        a third one does so exactly with those that are left.
        """
        slack = _BIN_ROUNDING + self._products(self._settings.score_dtype).low_bound
        windows = [
            _Window(
                self._mates.positives, scores.negatives[kind], fpr, self._probes_of[kind], slack
            )
            for kind, fpr in wanted
        ]
        for exact in (None, self._exact):
            if windows:
                self._count(windows, exact)
        return [window.point() for window in windows]

    def _count(self, windows: list[_Window], exact: PairScorer | None) -> None:
        self._bar.total += len(self._trial.distractors)
        products = self._products("fp32")
        for window in windows:
            window.clear()
        for rows, scores in self._blocks(products):
            for window in windows:
                for start in range(0, window.probes, _ROWS_AT_ONCE):
                    part = slice(start, min(start + _ROWS_AT_ONCE, window.probes))
                    window.count(scores[part], start, rows, products.bound, exact)
        gathered = self._settings.processes.gather([window.reached for window in windows])
        for window, parts in zip(windows, zip(*gathered, strict=True), strict=True):
            window.narrow(*np.sum(parts, axis=0))

    @property
    def _probes_of(self) -> dict[str, int]:
        """Of how many probes, the first of the list, each kind of negatives is."""
        return {"all": len(self._trial.probes), "devkit": len(self._trial.devkit_probes)}

    def _products(self, dtype: str) -> Products:
        return Products(self._unit, self._settings.device, SCORE_DTYPES[dtype])

    def _blocks(self, products: Products) -> Iterator[tuple[np.ndarray, Tensor]]:
        """This process's blocks: (rows of B distractors, float32 P×B products)."""
        chosen, processes = self._trial.distractors, self._settings.processes
        size = self._settings.distractors_at_once
        for start in range(processes.rank * size, len(chosen), processes.world_size * size):
            rows = chosen[start : start + size]
            whole = rows[-1] - rows[0] + 1 == len(rows)  # a slice of a memory map is not copied
            block = self._distractors[slice(rows[0], rows[-1] + 1) if whole else rows]
            try:
                scores = products.multiply(block)
            except FloatingPointError as error:
                raise DataError(not_finite("distractor", rows[error.args[0]])) from None
            yield rows, scores
            self._bar.update(len(rows) * processes.world_size)

    def _merged(
        self,
        ranks: RankCounter,
        best: BestDistractor,
        kinds: dict[str, NegativeScores],
        bins: Bins,
    ) -> Scores:
        """What all processes found."""
        found = {kind: (scores.kept(), scores.counts) for kind, scores in kinds.items()}
        gathered = self._settings.processes.gather(
            (ranks.beats, best.score, best.distractor, found)
        )
        for _, score, distractor, _ in gathered:
            met = np.flatnonzero(distractor >= 0)
            best.merge(met, distractor[met], score[met])
        negatives = {}
        for kind, scores in kinds.items():
            kept, counts = zip(*(each[kind] for *_, each in gathered), strict=True)
            far = scores.probes * self._trial.far
            negatives[kind] = Negatives(
                count=scores.probes * len(self._trial.distractors) + far,
                highest=np.sort(np.concatenate(kept))[::-1][: scores.keep],
                counts=None if scores.counts is None else np.sum(counts, axis=0),
                bins=bins,
                far=far,
            )
        beats = np.sum([each for each, *_ in gathered], axis=0)
        return Scores(self._mates, beats, best.score, best.distractor, negatives)


class _Window:
    """The positives that may be the threshold at a FPR, and how many negatives reach each.

    values: float64, ascending; the last one is accepted for certain, if any is.
    probes: how many probes, the first of the list, the negatives are of.
    """

    def __init__(
        self, positives: np.ndarray, negatives: Negatives, fpr: float, probes: int, slack: float
    ) -> None:
        self.probes, self._fpr = probes, fpr
        self._positives, self._count = positives, negatives.count
        self._may = allowed(fpr, negatives.count)
        self.values = np.unique(positives)
        edges = negatives.bins.edges
        above = np.append(np.cumsum(negatives.counts[::-1])[::-1], 0)  # products from each edge on
        fewest = above[np.searchsorted(edges, self.values + slack, side="left")]
        places = np.searchsorted(edges, self.values - slack, side="right") - 1
        self._choose(fewest, above[np.maximum(places, 0)])

    def clear(self) -> None:
        """Begin to count."""
        # How many negatives reach k of the values: for certain, and perhaps.
        self.reached = np.zeros((2, len(self.values) + 1), np.int64)

    def count(
        self,
        scores: Tensor,
        start: int,
        distractors: np.ndarray,
        bound: float,
        exact: PairScorer | None,
    ) -> None:
        """Count float32 R×B products of the probes from `start` on, off by at most `bound`.
        exact: computes the scores of those that may lie on either side of a value."""
        if not len(self.values):
            return
        low, high = self.values[0] - bound, self.values[-1] + bound
        self.reached[:, -1] += int((scores > high).sum())
        probe, column = ((scores >= low) & (scores <= high)).nonzero(as_tuple=True)
        product = scores[probe, column].cpu().numpy().astype(np.float64)
        surely, perhaps = (
            np.searchsorted(self.values, product + shift, side="right") for shift in (-bound, bound)
        )
        if exact:
            unsure = np.flatnonzero(surely < perhaps)
            probe, column = (index.cpu().numpy()[unsure] for index in (probe, column))
            found = exact(probe + start, distractors[column])
            surely[unsure] = np.searchsorted(self.values, found, side="right")
            perhaps = surely
        for row, reached in enumerate((surely, perhaps)):
            self.reached[row] += np.bincount(reached, minlength=len(self.values) + 1)

    def narrow(self, surely: np.ndarray, perhaps: np.ndarray) -> None:
        """Cut the values down; surely, perhaps: `reached` of all processes."""
        self._choose(*(np.cumsum(each[::-1])[::-1][1:] for each in (surely, perhaps)))

    def _choose(self, fewest: np.ndarray, most: np.ndarray) -> None:
        """fewest, most: bounds of how many negatives are at or above each value."""
        # Both only fall as the value rises.
        first, last = int(np.sum(fewest > self._may)), int(np.sum(most > self._may))
        self.values, self._fewest = self.values[first : last + 1], fewest[first : last + 1]

    def point(self) -> OperatingPoint:
        """The point, once the counts are exact."""
        if not len(self.values):
            return OperatingPoint(self._fpr, 0.0, 0.0, np.inf)
        threshold = float(self.values[0])
        true = len(self._positives) - np.searchsorted(self._positives, threshold, side="left")
        return OperatingPoint(
            target=self._fpr,
            far=int(self._fewest[0]) / self._count,
            tar=int(true) / len(self._positives),
            threshold=threshold,
        )


def not_finite(what: str, row: int) -> str:
    """The error's text for a row of features with NaN or infinity."""
    return (
        f"{what} features: row {row} holds NaN or infinity; the network's output is broken there, "
        f"check its weights and that image, or extract the features anew."
    )
