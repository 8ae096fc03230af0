"""The passes over a block of scores: which pairs lie above their probe's floor, and a histogram.

On a CPU numpy and OpenCV do them in as many threads as torch uses: at this size they are several
times faster than torch's own, and all of them let other threads run.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

BINS = 8192
# A computed cosine may be slightly off -1..1. Odd ends keep the edges away from 0, 0.5 and the like,
# which occur more often than by chance and may be rounded to either side.
LOWEST, HIGHEST = -1.0013, 1.0017
EDGES = np.linspace(LOWEST, HIGHEST, BINS + 1)

_COUNTED_AT_ONCE = 1 << 22  # OpenCV's and torch's counts are float32, exact up to 2^24

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # probe, column, score


class BlockScan:
    """Passes over float32 P×B scores, on whatever device they are."""

    def __init__(self) -> None:
        self._threads = max(torch.get_num_threads(), 1)
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> "BlockScan":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def above(self, scores: Tensor, floors: np.ndarray) -> Pairs:
        """The pairs whose score is at or above their probe's floor (float64 P), in row order."""
        limits = at_most(floors)[:, None]
        if scores.device.type == "cpu":
            parts = self._over_rows(scores, lambda rows, part: _above(part, limits[rows], rows))
            return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        found = (scores >= torch.from_numpy(limits).to(scores.device)).nonzero(as_tuple=True)
        return found[0].cpu().numpy(), found[1].cpu().numpy(), scores[found].cpu().numpy()

    def histogram(self, scores: Tensor) -> np.ndarray:
        """int64 counts in BINS equal bins between LOWEST and HIGHEST."""
        if scores.device.type == "cpu":
            return sum(self._over_rows(scores, lambda _, part: _count(part)))
        counts = np.zeros(BINS, np.int64)
        for part in scores.split(max(1, _COUNTED_AT_ONCE // scores.shape[1])):
            found = torch.histc(part, BINS, LOWEST, HIGHEST)
            counts += found.cpu().numpy().astype(np.int64)
        return counts

    def sort_rows(self, scores: Tensor) -> Tensor:
        """Each row in ascending order."""
        if scores.device.type != "cpu":
            return scores.sort(dim=1).values
        parts = self._over_rows(scores, lambda _, part: np.sort(part, axis=1))
        return torch.from_numpy(np.concatenate(parts))

    def highest(self, scores: Tensor, count: int) -> float:
        """The count-th highest of all."""
        flat = scores.reshape(-1)
        if scores.device.type != "cpu":
            return float(flat.topk(count).values[-1])
        return float(np.partition(flat.numpy(), len(flat) - count)[len(flat) - count])

    def _over_rows(self, scores: Tensor, work: Callable[[slice, np.ndarray], Any]) -> Sequence[Any]:
        values = scores.numpy()
        borders = np.linspace(0, len(values), self._threads + 1).astype(int)
        slabs = [slice(a, b) for a, b in pairwise(borders) if b > a]
        return list(self._pool.map(lambda rows: work(rows, values[rows]), slabs))


def at_most(values: np.ndarray) -> np.ndarray:
    """float64 as float32, never rounded up: a floor must let through what it let through."""
    near = values.astype(np.float32)
    return np.where(near > values, np.nextafter(near, np.float32(-np.inf)), near)


def at_least(values: np.ndarray) -> np.ndarray:
    """float64 as float32, never rounded down."""
    return -at_most(-values)


def _above(scores: np.ndarray, limits: np.ndarray, rows: slice) -> Pairs:
    flat = np.flatnonzero(scores >= limits)
    probe, column = np.divmod(flat, scores.shape[1])
    return probe + rows.start, column, scores.reshape(-1)[flat]


def _count(scores: np.ndarray) -> np.ndarray:
    counts = np.zeros(BINS, np.int64)
    at_once = max(1, _COUNTED_AT_ONCE // scores.shape[1])
    for start in range(0, len(scores), at_once):
        part = scores[start : start + at_once]
        found = cv2.calcHist([part], [0], None, [BINS], [LOWEST, HIGHEST])
        counts += found.reshape(-1).astype(np.int64)
    return counts
