"""The passes over a block of scores: which pairs lie above their probe's floor, and a histogram.

On a CPU numpy and OpenCV do them in as many threads as torch uses: at this size they are several
times faster than torch's own, and all of them let other threads run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from Utils.cpu import LoneThreads

_BINS = 256  # a byte each
# Scores that stay in the processor's cache; fewer of the second would be slower to multiply.
_COMPARED_AT_ONCE, _SWEPT_AT_ONCE = 1 << 18, 1 << 19

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # probe, column, score


@dataclass(frozen=True)
class Bins:
    """Equal bins between two scores; the first and the last one take what lies beyond.

    low, high: where the first bin ends and the last one begins.
    """

    low: float
    high: float

    @property
    def factor(self) -> float:
        """Bins for each unit of score."""
        return float(np.float32((_BINS - 2) / (self.high - self.low)))

    @property
    def offset(self) -> float:
        """The bin of a score is its whole part of score × factor + offset."""
        return float(np.float32(1 - self.low * self.factor))

    @property
    def edges(self) -> np.ndarray:
        """float64: the lower edge of each bin, ascending; of the first one, below every score."""
        edges = (np.arange(_BINS) - self.offset) / self.factor
        return np.append(-1.01, edges[1:])

    def nothing(self) -> np.ndarray:
        """Counts of no scores."""
        return np.zeros(_BINS, np.int64)

    def count(self, values: np.ndarray) -> np.ndarray:
        """int64 counts of float64 values in each bin."""
        places = np.searchsorted(self.edges, values, side="right") - 1
        return np.bincount(places, minlength=_BINS)


class BlockScan:
    """Passes over float32 P×B scores, on whatever device they are, on a CPU by these threads."""

    def __init__(self, threads: LoneThreads) -> None:
        self._threads = threads

    def sweep(
        self,
        scores: Tensor,
        floors: np.ndarray,
        lots: Sequence[tuple[slice, Bins | None]],
        fill: Callable[[slice], object] | None = None,
    ) -> tuple[Pairs, list[np.ndarray | None]]:
        """Go over P×B scores once.

        floors: float64 P. lots: consecutive rows, all P together, each with the bins in which its
        scores are counted (None: they are not). fill: writes the scores of some rows, if they are
        not there yet; on a CPU each part is looked at while it is still in the cache. Returns the
        pairs at or above their probe's floor, in row order, and for each lot its int64 counts.
        """
        limits = at_most(floors)[:, None]
        if scores.device.type != "cpu":
            if fill:
                fill(slice(None))
            return _sweep_on_device(scores, limits, lots)
        values = scores.numpy()

        def look(part: slice, bins: Bins | None) -> tuple[Pairs, np.ndarray | None]:
            if fill:
                fill(part)
            return _above(values[part], limits[part], part), bins and _count(values[part], bins)

        tasks = [
            (part, number, bins)
            for number, (rows, bins) in enumerate(lots)
            for part in _parts(values, rows)
        ]
        done = self._threads.map(lambda task: look(task[0], task[2]), tasks)
        pairs, counts = [], [None if bins is None else bins.nothing() for _, bins in lots]
        for (_, number, bins), (found, counted) in zip(tasks, done, strict=True):
            pairs.append(found)
            if bins is not None:
                counts[number] += counted
        return tuple(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)), counts

    def compare(
        self, scores: Tensor, rows: np.ndarray, values: np.ndarray, bound: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compare K rows of float32 or float64 P×B scores with a value each.

        Returns int64 K counts of the scores more than `bound` above the row's value, and the
        places (k, column) of those within `bound` of it.
        """
        # The value is rounded to the scores' format, and so is the difference.
        bound += 2.0**-23 if scores.dtype == torch.float32 else 2.0**-51
        if scores.device.type != "cpu":
            return _compare_on_device(scores, rows, values, bound)
        table, step = scores.numpy(), max(1, _COMPARED_AT_ONCE // scores.shape[1])
        starts = range(0, len(rows), step)
        parts = self._threads.map(
            lambda k: _compare(table, rows[k : k + step], values, bound, k), starts
        )
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def count(self, scores: Tensor, rows: slice, bins: Bins) -> np.ndarray:
        """int64: how many of some rows' P×B scores are in each bin."""
        if scores.device.type != "cpu":
            return _count_on_device(scores[rows], bins)
        values = scores.numpy()
        parts = self._threads.map(lambda part: _count(values[part], bins), _parts(values, rows))
        return sum(parts, start=bins.nothing())

    def between(self, scores: Tensor, rows: slice, low: float, high: float) -> tuple[Pairs, int]:
        """The pairs of some rows whose P×B scores are from low to high, and how many are higher."""
        if scores.device.type != "cpu":
            part = scores[rows]
            found = ((part >= low) & (part <= high)).nonzero(as_tuple=True)
            probe, column, values = (t.cpu().numpy() for t in (*found, part[found]))
            return (probe + rows.start, column, values), int((part > high).sum())
        values = scores.numpy()
        done = self._threads.map(
            lambda part: (_between(values[part], low, high, part), np.sum(values[part] > high)),
            _parts(values, rows),
        )
        pairs, above = zip(*done, strict=True)
        return tuple(np.concatenate(arrays) for arrays in zip(*pairs, strict=True)), int(sum(above))

    def highest(self, scores: Tensor, count: int) -> float:
        """The count-th highest of all."""
        flat = scores.reshape(-1)
        if scores.device.type != "cpu":
            return float(flat.topk(count).values[-1])
        return float(np.partition(flat.numpy(), len(flat) - count)[len(flat) - count])


def at_most(values: np.ndarray) -> np.ndarray:
    """float64 as float32, never rounded up: a floor must let through what it let through."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def _compare(
    scores: np.ndarray, rows: np.ndarray, values: np.ndarray, bound: float, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    part = scores[rows]
    part -= values[first : first + len(rows), None].astype(part.dtype)
    counts = np.bitwise_count(np.packbits(part > bound, axis=1)).sum(axis=1, dtype=np.int64)
    near = np.flatnonzero(np.abs(part, out=part) <= bound)
    pair, column = np.divmod(near, part.shape[1])
    return counts, pair + first, column


def _compare_on_device(
    scores: Tensor, rows: np.ndarray, values: np.ndarray, bound: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    part = scores[torch.from_numpy(rows).to(scores.device)]
    part -= torch.from_numpy(values).to(scores.device, scores.dtype)[:, None]
    pair, column = (part.abs() <= bound).nonzero(as_tuple=True)
    return (part > bound).sum(dim=1).cpu().numpy(), pair.cpu().numpy(), column.cpu().numpy()


def _parts(scores: np.ndarray, rows: slice) -> list[slice]:
    """Rows in parts whose scores stay in the processor's cache."""
    step = max(1, _SWEPT_AT_ONCE // scores.shape[1])
    starts = range(rows.start, rows.stop, step)
    return [slice(start, min(start + step, rows.stop)) for start in starts]


def _between(scores: np.ndarray, low: float, high: float, rows: slice) -> Pairs:
    flat = np.flatnonzero((scores >= low) & (scores <= high))
    probe, column = np.divmod(flat, scores.shape[1])
    return probe + rows.start, column, scores.reshape(-1)[flat]


def _above(scores: np.ndarray, limits: np.ndarray, rows: slice) -> Pairs:
    flat = np.flatnonzero(scores >= limits)
    probe, column = np.divmod(flat, scores.shape[1])
    return probe + rows.start, column, scores.reshape(-1)[flat]


def _count(scores: np.ndarray, bins: Bins) -> np.ndarray:
    # In one pass, to the nearest byte: of half less, that is the whole part.
    places = cv2.addWeighted(scores, bins.factor, scores, 0, bins.offset - 0.5, dtype=cv2.CV_8U)
    found = cv2.calcHist([places], [0], None, [_BINS], [0, _BINS])
    return found.reshape(-1).astype(np.int64)


def _sweep_on_device(
    scores: Tensor, limits: np.ndarray, lots: Sequence[tuple[slice, Bins | None]]
) -> tuple[Pairs, list[np.ndarray | None]]:
    found = (scores >= torch.from_numpy(limits).to(scores.device)).nonzero(as_tuple=True)
    pairs = found[0].cpu().numpy(), found[1].cpu().numpy(), scores[found].cpu().numpy()
    counts = []
    for rows, bins in lots:
        if bins is None:
            counts.append(None)
            continue
        counts.append(_count_on_device(scores[rows], bins))
    return pairs, counts


def _count_on_device(scores: Tensor, bins: Bins) -> np.ndarray:
    places = (scores * bins.factor + bins.offset).clamp_(0, _BINS - 1).to(torch.int32)
    return torch.bincount(places.view(-1), minlength=_BINS).cpu().numpy()
