"""The scores of probes with distractors: the highest ones exactly, all of them in a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from Utils.Evaluation_Utils.identification.exact_scores import PairScorer, unit_rows, uses_numpy

_BINS = 256  # one byte for the index of a bin
_SAMPLE = 256  # distractors whose scores choose the bins
_WAITING = 20_000  # scores that are collected before they are merged with the highest ones


@dataclass(frozen=True)
class Bins:
    """Equal bins between two scores; the first and the last one also count the scores beyond.

    low, high: where the first bin ends and the last one begins. number: 256 or 65,536 bins.
    """

    low: float
    high: float
    number: int = _BINS

    @property
    def factor(self) -> float:
        """Bins for each unit of score."""
        return float(np.float32((self.number - 2) / (self.high - self.low)))

    @property
    def offset(self) -> float:
        """The bin of a score is floor(score × factor + offset)."""
        return float(np.float32(1 - self.low * self.factor))

    @property
    def edges(self) -> np.ndarray:
        """float64: the lower edge of each bin, ascending; that of the first is below all scores."""
        edges = (np.arange(self.number) - self.offset) / self.factor
        return np.append(-1.01, edges[1:])

    def indices(self, scores: Tensor) -> Tensor | np.ndarray:
        """The bin of each of the float32 P×B scores."""
        if not uses_numpy(scores):
            return (scores * self.factor + self.offset).clamp_(0, self.number - 1).to(torch.int32)
        # OpenCV takes one pass and rounds to the nearest integer: with half less, that's the floor.
        values, offset = scores.numpy(), self.offset - 0.5
        dtype = cv2.CV_8U if self.number == _BINS else cv2.CV_16U
        return cv2.addWeighted(values, self.factor, values, 0, offset, dtype=dtype)

    def histogram(self, indices: Tensor | np.ndarray) -> np.ndarray:
        """int64: how many of the `indices` of a block are of each bin."""
        if isinstance(indices, Tensor):
            return torch.bincount(indices.view(-1), minlength=self.number).cpu().numpy()
        found = cv2.calcHist([indices], [0], None, [self.number], [0, self.number])
        return found.reshape(-1).astype(np.int64)

    def count(self, scores: Tensor) -> np.ndarray:
        """int64: how many of the float32 P×B scores are in each bin."""
        return self.histogram(self.indices(scores))


def choose_bins(probes: np.ndarray, distractors: np.ndarray, used: np.ndarray) -> Bins:
    """Bins over nearly all scores, from a sample that depends on the arguments alone.

    probes: float64 P×D normalised rows. distractors: N×D. used: int64, ascending, the rows of the
    distractors that are scored; no others are read, since they may hold anything.
    """
    rows = used[np.unique(np.linspace(0, len(used) - 1, _SAMPLE).astype(np.int64))]
    with np.errstate(invalid="ignore"):  # rows that are not finite are named later
        scores = (probes @ unit_rows(distractors[rows]).T).reshape(-1)
    low = len(scores) // 1000
    # Rounded outwards: the last digit of a product must not move the bins.
    lowest = np.floor(100 * np.partition(scores, low)[low]) / 100
    return Bins(lowest - 0.0013, np.ceil(100 * scores.max()) / 100 + 0.0017)


@dataclass(eq=False)
class Negatives:
    """What is kept of N scores.

    count: N. highest: float64, the highest exact scores, descending. counts: int64, how many
    products are in each of the `bins`; None if `highest` has all scores.
    far: how many of the N are below every threshold, and neither in `highest` nor in `counts`.
    """

    count: int
    highest: np.ndarray
    counts: np.ndarray | None
    bins: Bins
    far: int = 0

    @property
    def complete(self) -> bool:
        """Whether `highest` has every score that is not far away."""
        return len(self.highest) + self.far == self.count


class NegativeScores:
    """Collects the scores of the first `probes` probes, block by block.

    keep: how many of the highest exact scores are kept. bins: where all products are counted; None
    where all scores are kept. bound: how far products are from exact scores.
    floor: products below it can't be among the `keep` highest.
    """

    def __init__(
        self, probes: int, keep: int, bins: Bins | None, bound: float, exact: PairScorer
    ) -> None:
        self.probes = probes
        self.floor = -np.inf
        self.counts = None if bins is None else np.zeros(_BINS, np.int64)
        self.keep, self._bins, self._bound, self._exact = keep, bins, bound, exact
        self._kept, self._waiting = np.empty(0), []

    def add(self, scores: Tensor, highest: np.ndarray, distractors: np.ndarray) -> None:
        """Take the float32 P×B products of a block with these distractors (B rows).
        highest: P, the largest product of each probe."""
        scores, highest = scores[: self.probes], highest[: self.probes]
        if self._bins is not None:
            self.counts += self._bins.count(scores)
        if self.floor == -np.inf and scores.numel() > self.keep:
            self.floor = _least_of_highest(scores, self.keep) - 2 * self._bound
        probe, column = pairs_from(scores, np.flatnonzero(highest >= self.floor), self.floor)
        self._waiting.append(self._exact(probe, distractors[column]))
        if sum(map(len, self._waiting)) > _WAITING + self.keep // 8:
            self.kept()

    def kept(self) -> np.ndarray:
        """float64, the highest exact scores, ascending."""
        self._kept = np.sort(np.concatenate([self._kept, *self._waiting]))[-self.keep :]
        self._waiting = []
        if len(self._kept) == self.keep:
            self.floor = max(self.floor, float(self._kept[0]) - self._bound)
        return self._kept


def _least_of_highest(scores: Tensor, count: int) -> float:
    """The lowest of the `count` highest scores."""
    if not uses_numpy(scores):
        return float(scores.flatten().topk(count, sorted=False).values.amin())
    index = scores.numel() - count
    return float(np.partition(scores.numpy().reshape(-1), index)[index])


def pairs_from(
    scores: Tensor, rows: np.ndarray, floors: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """(row, column) of the P×B scores that are at or above a floor, among R chosen rows.
    floors: one for each chosen row, or one for all."""
    if not len(rows):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    chosen = torch.from_numpy(rows).to(scores.device)
    limits = torch.as_tensor(np.broadcast_to(floors, len(rows)).astype(np.float32))
    found = scores[chosen] >= limits.to(scores.device)[:, None]
    row, column = true_indices(found)
    return rows[row], column


def true_indices(found: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(rows, columns) of the True values of R×B bools, in order."""
    if uses_numpy(found):
        return np.divmod(np.flatnonzero(found.numpy()), found.shape[1])
    row, column = found.nonzero(as_tuple=True)  # far less to copy than the bools
    return row.cpu().numpy(), column.cpu().numpy()
