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
from Utils.Evaluation_Utils.identification.figures import candidates, counted_point
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

_MOST_SCORES = 2**26  # of a block: 256 MiB, and a GPU needs a few times that
BIN_ROUNDING = 2.0**-22  # of a product, its bin's edge and the bin's index, all in float32
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

    def distractors_at_once(self, probes: int) -> int:
        """The size of a block; many probes get smaller ones, whose scores fit into memory."""
        size = BLOCK_SIZES.get(self.device.type, BLOCK_SIZES["cpu"])
        return self.block_size or max(min(size, _MOST_SCORES // probes), 1)


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
        pass says between which positives it lies; a second pass counts at these, exactly.
        """
        if not wanted:
            return []
        positives, negatives = self._mates.positives, scores.negatives
        slack = BIN_ROUNDING + self._products(self._settings.score_dtype).low_bound
        values = [candidates(negatives[kind], positives, fpr, slack) for kind, fpr in wanted]
        counts = [np.zeros(len(each) + 1, np.int64) for each in values]
        self._bar.total += len(self._trial.distractors)
        products = self._products("fp32")
        for rows, block in self._blocks(products):
            for (kind, _), each, count in zip(wanted, values, counts, strict=True):
                for start in range(0, self._probes_of[kind], _ROWS_AT_ONCE):
                    part = block[start : min(start + _ROWS_AT_ONCE, self._probes_of[kind])]
                    count += self._reached(each, part, start, rows, products.bound)
        gathered = self._settings.processes.gather(counts)
        totals = [np.sum(parts, axis=0) for parts in zip(*gathered, strict=True)]
        return [
            counted_point(negatives[kind].count, positives, fpr, each, total)
            for (kind, fpr), each, total in zip(wanted, values, totals, strict=True)
        ]

    def _reached(
        self,
        values: np.ndarray,
        scores: Tensor,
        start: int,
        distractors: np.ndarray,
        bound: float,
    ) -> np.ndarray:
        """int64 V+1: how many scores are at or above exactly k of V ascending values.

        scores: float32 R×B products, off by at most `bound`, of the probes from `start` on.
        """
        if not len(values):
            return np.zeros(1, np.int64)
        low, high = values[0] - bound, values[-1] + bound
        probe, column = (
            index.cpu().numpy()
            for index in ((scores >= low) & (scores <= high)).nonzero(as_tuple=True)
        )
        product = scores[probe, column].cpu().numpy().astype(np.float64)
        reached = np.searchsorted(values, product - bound, side="right")
        unsure = np.flatnonzero(reached < np.searchsorted(values, product + bound, side="right"))
        exact = self._exact(probe[unsure] + start, distractors[column[unsure]])
        reached[unsure] = np.searchsorted(values, exact, side="right")
        counts = np.bincount(reached, minlength=len(values) + 1)
        counts[-1] += int((scores > high).sum())
        return counts

    @property
    def _probes_of(self) -> dict[str, int]:
        """Of how many probes, the first of the list, each kind of negatives is."""
        return {"all": len(self._trial.probes), "devkit": len(self._trial.devkit_probes)}

    def _products(self, dtype: str) -> Products:
        return Products(self._unit, self._settings.device, SCORE_DTYPES[dtype])

    def _blocks(self, products: Products) -> Iterator[tuple[np.ndarray, Tensor]]:
        """This process's blocks: (rows of B distractors, float32 P×B products)."""
        chosen, processes = self._trial.distractors, self._settings.processes
        size = self._settings.distractors_at_once(len(self._unit))
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


def not_finite(what: str, row: int) -> str:
    """The error's text for a row of features with NaN or infinity."""
    return (
        f"{what} features: row {row} holds NaN or infinity; the network's output is broken there, "
        f"check its weights and that image, or extract the features anew."
    )
