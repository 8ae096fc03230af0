"""Scores of all probes with all distractors in one pass, block by block; never the whole matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from Utils.cpu import LoneThreads, lone_threads
from Utils.errors import DataError
from Utils.Evaluation_Utils.block_scan import Bins, BlockScan, Pairs
from Utils.Evaluation_Utils.exact_scores import (
    SCORE_DTYPES,
    PairScorer,
    Products,
    full_precision,
    unit_rows,
)
from Utils.Evaluation_Utils.mates import Mates, RankCounter, find_mates
from Utils.Evaluation_Utils.negatives import (
    BestDistractor,
    Negatives,
    TopPairs,
)
from Utils.Evaluation_Utils.outcomes import (
    Outcome,
    SegmentResult,
    in_table_order,
    merge_processes,
    outcome_of,
)
from Utils.Evaluation_Utils.trials import Part, Plan
from Utils.processes import ALONE, Processes

CPU = torch.device("cpu")
BLOCK_SIZES = {"cpu": 2048, "cuda": 16384}

_SAMPLE = 256  # distractors
_COSTLY = 0.02  # share of a block above which a product in float32 is cheaper than single pairs


@dataclass(frozen=True)
class ScoringSettings:
    """How to score; but for `ties` none of it changes a figure (see `figures.Curve` on the far end
    of the ROC curve).

    ties: see `mates.RankCounter`. score_dtype: number format of the product, see SCORE_DTYPES.
    block_size: distractors at once; 0 chooses by the device. progress: label of a bar; None: none.
    processes: those that share the work.
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


def score_trials(
    probes: np.ndarray, ids: np.ndarray, distractors: np.ndarray, plan: Plan, how: ScoringSettings
) -> tuple[Mates, list[Outcome]]:
    """Score every trial of the plan.

    probes: P×D, ids: P, distractors: N×D, an array or memory map, of any float types.
    Raises DataError for features that are not finite, naming the row.
    """
    order = plan.order
    unit = _checked_unit(probes)[order]  # each group's rows together
    mates = find_mates(unit, np.asarray(ids)[order])
    with (
        full_precision(),
        lone_threads() as threads,
        scoring_bar(plan, how, range(len(plan.trials))) as bar,
    ):
        engine = _Engine(unit, distractors, mates, plan, how, threads, bar)
        results = [engine.segment(segment) for segment in plan.segments]
    results = merge_processes(how.processes.gather(results), plan)
    outcomes = [
        outcome_of(number, results, plan, order, len(probes)) for number in range(len(plan.trials))
    ]
    return in_table_order(mates, order, len(probes)), outcomes


class _Engine:
    """One pass over the distractors of each segment."""

    def __init__(
        self,
        unit: np.ndarray,
        distractors: np.ndarray,
        mates: Mates,
        plan: Plan,
        how: ScoringSettings,
        threads: LoneThreads,
        bar: tqdm,
    ) -> None:
        self.products = Products(unit, how.device, SCORE_DTYPES[how.score_dtype])
        self.exact = PairScorer(unit, distractors, threads)
        self.distractors, self.mates, self.plan, self.how = distractors, mates, plan, how
        self.scan, self.bar = BlockScan(threads), bar
        self.bins = _choose_bins(unit, distractors, plan)
        # Products in less than float32 find the pairs; float32 then says which of them stay.
        self.low = self.products.dtype != torch.float32
        self.margin = self.products.bound + self.products.refined_bound if self.low else 0.0

    def segment(self, segment: Part) -> SegmentResult:
        """This process's share of a segment."""
        bound = self.products.refined_bound
        ranks = RankCounter(self.mates, self.products, self.exact, self.how.ties)
        best = BestDistractor(len(self.mates.score), bound, self.exact)
        cells = list(self._cells(segment))
        size, processes = self.how.distractors_at_once, self.how.processes
        for start in range(processes.rank * size, len(segment.rows), processes.world_size * size):
            rows = segment.rows[start : start + size]
            self._load(rows)
            self._block(rows, ranks, best, cells)
            self.bar.update(len(rows) * processes.world_size)
        score, distractor = best.best()
        return SegmentResult(ranks.beats(), score, distractor, [cell.result() for cell in cells])

    def _cells(self, segment: Part) -> Iterator[_Cell]:
        start = 0
        for group in self.plan.groups:
            rows = slice(start, start + len(group.rows))
            keep = self.plan.cell_keep(group, segment)
            whole = keep == len(group.rows) * len(segment.rows)
            top = TopPairs(keep, self.products.refined_bound, self.exact)
            yield _Cell(rows, keep, whole, top, self.bins)
            start = rows.stop

    def _load(self, rows: np.ndarray) -> None:
        whole = rows[-1] - rows[0] + 1 == len(rows)  # a slice of a memory map is not copied
        block = self.distractors[rows[0] : rows[-1] + 1] if whole else self.distractors[rows]
        try:
            self.products.load(block)
        except FloatingPointError as error:
            raise DataError(_not_finite("distractor", rows[error.args[0]])) from None

    def _block(
        self,
        rows: np.ndarray,
        ranks: RankCounter,
        best: BestDistractor,
        cells: list[_Cell],
    ) -> None:
        if ranks.started:
            scores, fill = self.products.room(), self.products.fill
        else:
            scores, fill = self.products.all(), None
            ranks.start(scores.cpu().numpy())
            best.raise_floors(scores.amax(dim=1).cpu().numpy().astype(np.float64) - self.margin)
            for cell in cells:
                cell.prepare(scores, self.scan, self.margin)
        floors = np.minimum(best.floors, ranks.floors)
        for cell in cells:
            floors[cell.rows] = np.minimum(floors[cell.rows], cell.floor)
        (probe, column, product), counts = self._sweep(scores, floors, cells, fill)
        best.add(probe, rows[column], product)
        ranks.add((probe, column, product), rows, scores, self.scan)
        for cell, counted in zip(cells, counts, strict=True):
            cell.add(probe, rows[column], product, len(rows), counted)

    def _sweep(
        self,
        scores: Tensor,
        floors: np.ndarray,
        cells: list[_Cell],
        fill: Callable[[slice], object] | None,
    ) -> tuple[Pairs, list[np.ndarray | None]]:
        lots = [(cell.rows, cell.bins) for cell in cells]
        pairs, counts = self.scan.sweep(scores, floors - self.margin, lots, fill)
        return (self._refined(pairs, scores, floors) if self.low else pairs), counts

    def _refined(self, pairs: Pairs, scores: Tensor, floors: np.ndarray) -> Pairs:
        """Those whose float32 products are at or above their floors."""
        probe, column, _ = pairs
        if len(probe) > _COSTLY * scores.numel():
            every = np.arange(len(scores))
            block = self.products.of_probes(every)
            return self.scan.sweep(block, floors, [(slice(0, len(every)), None)])[0]
        product = self.products.refine(probe, column)
        kept = product >= floors[probe]
        return probe[kept], column[kept], product[kept]


class _Cell:
    """The negatives of one group of probes with one segment.

    rows: the group's among all probes. bins: where its scores are counted; None where they need
    not be, because all are kept or no trial asks for the cell.
    """

    def __init__(self, rows: slice, keep: int, whole: bool, top: TopPairs, bins: Bins) -> None:
        self.rows = rows
        self.bins = bins if keep and not whole else None
        self._keep = keep
        self._top = top
        self._count = 0
        self._counts = bins.nothing()
        self._all_bins = bins

    @property
    def floor(self) -> float:
        """The lowest product that matters."""
        return self._top.floor if self._keep else np.inf

    def prepare(self, scores: Tensor, scan: BlockScan, margin: float) -> None:
        """Find a first floor, so that not all of the first block is taken."""
        part = scores[self.rows]
        if self._keep and self._keep < part.numel():
            self._top.raise_floor(scan.highest(part, self._keep) - margin)

    def add(
        self,
        probe: np.ndarray,
        distractor: np.ndarray,
        product: np.ndarray,
        columns: int,
        counts: np.ndarray | None,
    ) -> None:
        """Take in a block of so many columns: the pairs at or above `floor`, in row order, and the
        counts of its scores."""
        if not self._keep:
            return
        mine = slice(*np.searchsorted(probe, [self.rows.start, self.rows.stop]))
        self._top.add(probe[mine], distractor[mine], product[mine])
        self._count += (self.rows.stop - self.rows.start) * columns
        if counts is not None:
            self._counts += counts

    def result(self) -> Negatives | None:
        """What was found; None where no trial asks for this cell."""
        if not self._keep:
            return None
        counts = None if self.bins is None else self._counts
        return Negatives(self._count, self._top.highest(), counts, self._all_bins)


def _checked_unit(probes: np.ndarray) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(probes).all(axis=1))
    if bad.size:
        raise DataError(_not_finite("probe", bad[0]))
    return unit_rows(probes)


def _not_finite(what: str, row: int) -> str:
    return (
        f"{what} features: row {row} holds NaN or infinity; the network's output is broken there, "
        f"check its weights and that image, or extract the features anew."
    )


def _choose_bins(unit: np.ndarray, distractors: np.ndarray, plan: Plan) -> Bins:
    """Bins over nearly all scores, from a sample that depends on the table and the plan alone.

    Rows that no trial has are never looked at: they may hold anything.
    """
    used = np.sort(np.concatenate([segment.rows for segment in plan.segments]))
    rows = used[np.unique(np.linspace(0, len(used) - 1, _SAMPLE).astype(np.int64))]
    with np.errstate(invalid="ignore"):  # what is not finite is found, and named, later
        scores = (unit @ unit_rows(distractors[rows]).T).reshape(-1)
    low = len(scores) // 1000
    # Rounded outwards: the last digit of a product must not move the bins.
    lowest = np.floor(100 * np.partition(scores, low)[low]) / 100
    return Bins(lowest - 0.0013, np.ceil(100 * scores.max()) / 100 + 0.0017)


def scoring_bar(plan: Plan, how: ScoringSettings, trials: Sequence[int], doing: str = "") -> tqdm:
    """A progress bar over the distractors of some trials, by number; shown by one process."""
    total = sum(len(part.rows) for part in plan.segments if part.member[list(trials)].any())
    hidden = how.progress is None or how.processes.rank > 0
    label = None if hidden else ", ".join(filter(None, (how.progress, doing)))
    return tqdm(total=total, desc=label, unit="distractor", disable=hidden, unit_scale=True)
