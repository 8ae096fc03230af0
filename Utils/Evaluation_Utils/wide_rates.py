"""TPR at FPRs that more negatives reach than are kept: exact, by counting them again.

At a FPR of 1e-2 thirty-five million of 3,530 × 1,000,000 negatives are accepted. Keeping them would
take gigabytes, and is not needed: the figure is that of the lowest positive with few enough
negatives at or above it. The histogram of the first pass says between which positives that is; a
second pass counts in finer bins there; a third one counts exactly, pair by pair only where the
product of a pair does not say on which side of a positive it lies. Memory is a few bins and a count
for each positive, whatever the FPR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Utils.cpu import LoneThreads, lone_threads
from Utils.Evaluation_Utils.block_scan import Bins, BlockScan
from Utils.Evaluation_Utils.exact_scores import (
    SCORE_DTYPES,
    PairScorer,
    Products,
    error_bound,
    full_precision,
    unit_rows,
)
from Utils.Evaluation_Utils.figures import allowed
from Utils.Evaluation_Utils.negatives import Negatives
from Utils.Evaluation_Utils.roc import OperatingPoint
from Utils.Evaluation_Utils.scoring import ScoringSettings, scoring_bar
from Utils.Evaluation_Utils.trials import Plan

_BIN_ROUNDING = 2.0**-22  # of a product, its bin's edge and the bin's number, all in float32
_COUNTABLE = 1 << 22  # so many pairs are counted one by one rather than narrowed down again
_NARROWINGS = 2
_ROWS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class WideRate:
    """A FPR that is asked of a trial. column: its kind of list, see `Plan.group_rows`.
    positives: float64, ascending."""

    trial: int
    column: int
    fpr: float
    positives: np.ndarray
    negatives: Negatives

    @property
    def may(self) -> int:
        """How many negatives may be accepted."""
        return allowed(self.fpr, self.negatives.count)


def wide_points(
    probes: np.ndarray,
    distractors: np.ndarray,
    plan: Plan,
    how: ScoringSettings,
    rates: list[WideRate],
) -> list[OperatingPoint]:
    """The point of each rate, as `figures.operating_point` defines it, in two or three passes.

    probes: P×D and distractors: N×D, those of the plan. Equal for any settings.
    """
    if not rates:
        return []
    unit = unit_rows(probes)[plan.order]
    slack = error_bound(unit.shape[1], SCORE_DTYPES[how.score_dtype]) + _BIN_ROUNDING
    windows = [_Window(rate, slack) for rate in rates]
    with full_precision(), lone_threads() as threads:
        passes = _Passes(unit, distractors, plan, how, threads)
        for _ in range(_NARROWINGS):
            wide = [window for window in windows if window.inside > _COUNTABLE]
            if wide:
                passes.narrow(wide)
        passes.count([window for window in windows if len(window.values)])
    return [window.point() for window in windows]


class _Window:
    """The positives that may be the lowest one accepted, and what is known of the negatives there.

    values: float64, ascending; the last one is accepted for certain, if any is. inside: how many
    negatives are not known to lie above or below all of them.
    """

    def __init__(self, rate: WideRate, slack: float) -> None:
        self.rate = rate
        self.values = np.unique(rate.positives)
        self.learn(rate.negatives.bins, rate.negatives.counts, slack)

    def reach(self, slack: float) -> tuple[float, float]:
        """From where to where a product can be that of a pair about which something is to know."""
        return float(self.values[0] - slack), float(self.values[-1] + slack)

    def learn(self, bins: Bins, counts: np.ndarray, slack: float) -> None:
        """Take in how many products, off by at most `slack`, are in each bin."""
        edges = bins.edges
        above = np.append(np.cumsum(counts[::-1])[::-1], 0)  # products from each edge on
        fewest = above[np.searchsorted(edges, self.values + slack, side="left")]
        places = np.searchsorted(edges, self.values - slack, side="right") - 1
        most = above[np.maximum(places, 0)]
        # Negatives at or above a value only get fewer as it rises, and so do both bounds.
        first, last = int(np.sum(fewest > self.rate.may)), int(np.sum(most > self.rate.may))
        chosen = slice(first, last + 1)
        self.inside = int(most[chosen].max(initial=0) - fewest[chosen].min(initial=0))
        self.values = self.values[chosen]
        self.places = np.zeros(len(self.values) + 1, np.int64)

    def count(
        self,
        probe: np.ndarray,
        distractor: np.ndarray,
        product: np.ndarray,
        slack: float,
        exact: PairScorer,
    ) -> None:
        """Count pairs by the number of values that they reach."""
        surely = np.searchsorted(self.values, product - slack, side="right")
        unsure = np.flatnonzero(
            surely < np.searchsorted(self.values, product + slack, side="right")
        )
        if unsure.size:
            scores = exact(probe[unsure], distractor[unsure])
            surely[unsure] = np.searchsorted(self.values, scores, side="right")
        self.places += np.bincount(surely, minlength=len(self.places))

    def point(self) -> OperatingPoint:
        """The point, once all pairs are counted."""
        rate = self.rate
        false = np.cumsum(self.places[::-1])[::-1][1:]  # negatives at or above each value
        accepted = np.flatnonzero(false <= rate.may)
        if not accepted.size:
            return OperatingPoint(rate.fpr, 0.0, 0.0, np.inf)
        threshold = float(self.values[accepted[0]])
        true = len(rate.positives) - np.searchsorted(rate.positives, threshold, side="left")
        return OperatingPoint(
            target=rate.fpr,
            far=int(false[accepted[0]]) / rate.negatives.count,
            tar=int(true) / len(rate.positives),
            threshold=threshold,
        )


class _Passes:
    """Passes of all probes over the distractors that some windows need."""

    def __init__(
        self,
        unit: np.ndarray,
        distractors: np.ndarray,
        plan: Plan,
        how: ScoringSettings,
        threads: LoneThreads,
    ) -> None:
        self._products = Products(unit, how.device, torch.float32)
        self._exact = PairScorer(unit, distractors, threads)
        self._slack = self._products.bound + _BIN_ROUNDING
        self._distractors, self._plan, self._how = distractors, plan, how
        self._scan = BlockScan(threads)

    def narrow(self, windows: list[_Window]) -> None:
        """Count products in bins over each window, and cut the windows down to what that leaves."""
        bins = [Bins(*window.reach(self._slack)) for window in windows]
        counts = [each.nothing() for each in bins]

        def look(number: int, _: np.ndarray, scores: Tensor, rows: slice) -> None:
            counts[number] += self._scan.count(scores, rows, bins[number])

        self._go(windows, "narrowing down", look)
        gathered = self._how.processes.gather(counts)
        for window, each, parts in zip(windows, bins, zip(*gathered, strict=True), strict=True):
            window.learn(each, np.sum(parts, axis=0), self._slack)

    def count(self, windows: list[_Window]) -> None:
        """Count exactly how many negatives are at or above each value of the windows."""

        def look(number: int, distractors: np.ndarray, scores: Tensor, rows: slice) -> None:
            window = windows[number]
            low, high = window.reach(self._slack)
            for start in range(rows.start, rows.stop, _ROWS_AT_ONCE):
                part = slice(start, min(start + _ROWS_AT_ONCE, rows.stop))
                (probe, column, product), above = self._scan.between(scores, part, low, high)
                window.count(
                    probe,
                    distractors[column],
                    product.astype(np.float64),
                    self._slack,
                    self._exact,
                )
                window.places[-1] += above

        self._go(windows, "counting", look)
        gathered = self._how.processes.gather([window.places for window in windows])
        for window, parts in zip(windows, zip(*gathered, strict=True), strict=True):
            window.places = np.sum(parts, axis=0)

    def _go(
        self,
        windows: list[_Window],
        doing: str,
        look: Callable[[int, np.ndarray, Tensor, slice], None],
    ) -> None:
        """Show each window the scores it is about: (number of the window, the columns' distractors,
        P×B scores, the rows that count)."""
        trials = [window.rate.trial for window in windows]
        with scoring_bar(self._plan, self._how, trials, doing) as bar:
            for rows, member in self._blocks(trials):
                self._products.load(self._distractors[rows])
                scores = self._products.all()
                for number, window in enumerate(windows):
                    if member[window.rate.trial]:
                        for part in self._plan.group_rows(window.rate.column):
                            look(number, rows, scores, part)
                bar.update(len(rows) * self._how.processes.world_size)

    def _blocks(self, trials: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """This process's blocks of distractors, and which trials each is in."""
        size, processes = self._how.distractors_at_once, self._how.processes
        for segment in self._plan.segments:
            if segment.member[trials].any():
                step = processes.world_size * size
                for start in range(processes.rank * size, len(segment.rows), step):
                    yield segment.rows[start : start + size], segment.member
