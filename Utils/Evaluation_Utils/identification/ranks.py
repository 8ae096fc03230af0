"""For each probe, the distractors that score higher than its mates, and the highest one.

MegaFace: for every ordered pair (p, m) of two photos of one person, p is searched for in a gallery
of m and all distractors; the rank is the number of distractors that score higher than m.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Utils.cpu import LoneThreads
from Utils.Evaluation_Utils.identification.exact_scores import (
    PairScorer,
    Products,
    row_products,
    uses_numpy,
)
from Utils.Evaluation_Utils.identification.negatives import pairs_from, true_indices

TIES = ("mate", "against")

_ROWS_AT_ONCE = 64  # their scores stay in the processor's cache
_SCORES_AT_ONCE = 2**26  # on a GPU: 256 MiB of them
_MANY = 0.02  # share of a block's pairs above which float64 products cost less than single pairs


@dataclass(frozen=True, eq=False)
class Mates:
    """The mates of each probe in ascending order of their scores; rows are padded with +inf.

    score: float64 P×M. mate: int64 P×M, the mate's row among the probes; -1 in the padding.
    """

    score: np.ndarray
    mate: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        """bool P×M, false in the padding."""
        return self.mate >= 0

    @property
    def scores(self) -> np.ndarray:
        """float64: the scores of all ordered pairs, by probe."""
        return self.score[self.pairs]

    @property
    def positives(self) -> np.ndarray:
        """float64, ascending: the scores of all unordered pairs."""
        once = self.mate > np.arange(len(self.mate))[:, None]
        return np.sort(self.score[once])


def has_pairs(ids: np.ndarray) -> bool:
    """Whether any identity occurs twice."""
    return len(np.unique(ids)) < len(ids)


def find_mates(unit: np.ndarray, ids: np.ndarray) -> Mates:
    """The mates of P probes: float64 P×D normalised rows with P identities."""
    _, person, size = np.unique(ids, return_inverse=True, return_counts=True)
    width = max(int(size.max(initial=1)) - 1, 1)
    score = np.full((len(unit), width), np.inf)
    mate = np.full((len(unit), width), -1, np.int64)
    for rows in np.split(np.argsort(person, kind="stable"), np.cumsum(size)[:-1]):
        for probe in rows:
            others = rows[rows != probe]
            # Multiplication commutes, so (p, m) and (m, p) get the same bits.
            scores = row_products(np.broadcast_to(unit[probe], unit[others].shape), unit[others])
            order = np.argsort(scores, kind="stable")
            score[probe, : len(others)] = scores[order]
            mate[probe, : len(others)] = others[order]
    return Mates(score, mate)


class RankCounter:
    """Counts, block by block, the distractors that beat each mate.

    ties: "mate": a distractor with exactly the mate's score does not beat it, as in the devkit;
    "against": it does. beats: int64 P×M, the counts so far.
    """

    def __init__(
        self,
        mates: Mates,
        products: Products,
        exact: PairScorer,
        ties: str,
        threads: LoneThreads,
    ) -> None:
        self._mates, self._products, self._exact = mates.score, products, exact
        self._against, self._threads = ties == "against", threads
        self.beats = np.zeros(mates.score.shape, np.int64)
        # Below this a distractor beats no mate of the probe.
        self.floors = self._mates[:, 0] - products.bound

    def add(self, scores: Tensor, highest: np.ndarray, distractors: np.ndarray) -> None:
        """Take a block: float32 P×B, each probe's largest, the columns' rows in the table."""
        probes = np.flatnonzero(highest >= self.floors)
        if len(probes):
            chosen = torch.from_numpy(probes).to(scores.device)
            self._count(probes, scores[chosen], distractors, self._products.bound)

    def _count(
        self, probes: np.ndarray, scores: Tensor, distractors: np.ndarray, bound: float
    ) -> None:
        """Compare the R×B products of R probes, off by at most `bound`, with the probes' mates."""
        mates = torch.from_numpy(self._mates[probes]).to(scores.device)  # R×M
        low, high = ((mates + shift).to(scores.dtype) for shift in (-bound, bound))
        # R×M: products above the mate's score, and those that lie within rounding of it.
        above, unsure = self._compare(scores, low, high)
        if bound > self._products.double_bound and unsure.sum() > _MANY * scores.numel():
            scores = self._products.in_double(probes)
            self._count(probes, scores, distractors, self._products.double_bound)
            return
        self.beats[probes] += above.cpu().numpy()
        row, mate = unsure.nonzero(as_tuple=True)
        if len(row):
            pair, column = self._between(scores, row, low[row, mate], high[row, mate])
            row, mate = row.cpu().numpy(), mate.cpu().numpy()
            probe, mate = probes[row[pair]], mate[pair]
            score, limit = self._exact(probe, distractors[column]), self._mates[probe, mate]
            beaten = score >= limit if self._against else score > limit
            np.add.at(self.beats, (probe, mate), beaten)

    def _compare(self, scores: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """How many of R×B scores are above `high`, and how many from `low` to `high`; all R×M."""
        if uses_numpy(scores):
            ordered = self._sorted_rows(scores)
            last = torch.searchsorted(ordered, high, right=True)
            return scores.shape[1] - last, last - torch.searchsorted(ordered, low)
        # GPUs sort slowly, and compare fast; most mates are above all scores of a block.
        above, reached = (torch.zeros_like(low, dtype=torch.int64) for _ in range(2))
        row, mate = (scores.amax(dim=1)[:, None] >= low).nonzero(as_tuple=True)
        size = max(_SCORES_AT_ONCE // scores.shape[1], 1)
        for r, m in zip(row.split(size), mate.split(size), strict=True):
            values = scores[r]
            above[r, m] = (values > high[r, m][:, None]).sum(dim=1)
            reached[r, m] = (values >= low[r, m][:, None]).sum(dim=1)
        return above, reached - above

    def _sorted_rows(self, scores: Tensor) -> Tensor:
        ordered = scores.numpy().copy()  # NumPy sorts with SIMD, many times faster than torch

        def sort(start: int) -> None:
            ordered[start : start + _ROWS_AT_ONCE].sort(axis=1)

        self._threads.map(sort, range(0, len(ordered), _ROWS_AT_ONCE))
        return torch.from_numpy(ordered)

    def _between(
        self, scores: Tensor, rows: Tensor, low: Tensor, high: Tensor
    ) -> tuple[np.ndarray, np.ndarray]:
        """(k, column) of the R×B scores in rows[k] that are from low[k] to high[k]."""

        def look(start: int) -> tuple[np.ndarray, np.ndarray]:
            part = slice(start, start + _ROWS_AT_ONCE)
            values = scores[rows[part]]
            found = (values >= low[part, None]) & (values <= high[part, None])
            k, column = true_indices(found)
            return k + start, column

        parts = self._threads.map(look, range(0, len(rows), _ROWS_AT_ONCE))
        k, column = (np.concatenate(each) for each in zip(*parts, strict=True))
        return k, column


class BestDistractor:
    """The highest exact score of each probe and the first distractor that has it.

    score: float64 P, -inf if there is none yet. distractor: int64 P, its row, or -1.
    """

    def __init__(self, probes: int, bound: float, exact: PairScorer) -> None:
        self._bound, self._exact = bound, exact
        self.score = np.full(probes, -np.inf)
        self.distractor = np.full(probes, -1, np.int64)

    @property
    def floors(self) -> np.ndarray:
        """float64 P: products below these can't be the highest."""
        return self.score - self._bound

    def add(self, scores: Tensor, highest: np.ndarray, distractors: np.ndarray) -> None:
        """Take a block, as `RankCounter.add`."""
        rows = np.flatnonzero(highest >= self.floors)
        floors = np.maximum(self.floors, highest - 2 * self._bound)
        probe, column = pairs_from(scores, rows, floors[rows])
        self.merge(probe, distractors[column], self._exact(probe, distractors[column]))

    def merge(self, probe: np.ndarray, distractor: np.ndarray, score: np.ndarray) -> None:
        """Take exact scores of pairs."""
        known = np.flatnonzero(self.distractor >= 0)
        probe = np.append(probe, known)
        distractor = np.append(distractor, self.distractor[known])
        score = np.append(score, self.score[known])
        order = np.lexsort((-distractor, score, probe))  # the last of each probe is its best
        best = order[np.append(np.diff(probe[order]) != 0, True)[: len(order)]]
        self.score[probe[best]], self.distractor[probe[best]] = score[best], distractor[best]
