"""The same-person pairs of the probes, and how many distractors score above each: exact ranks.

MegaFace: for every ordered pair (p, m) of two photos of one person, p is searched for in a gallery
of m and all distractors; the rank is the number of distractors that score higher than m.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Utils.Evaluation_Utils.block_scan import BlockScan, Pairs
from Utils.Evaluation_Utils.exact_scores import PairScorer, Products, row_products

TIES = ("mate", "against")

_TAIL = 64  # mates above a 64th of a probe's distractors are counted pair by pair
_DEEP_AT_ONCE = 4096
_COMPARISONS_AT_ONCE = 1 << 21
_COSTLY = 0.02  # share of a block above which a product in float64 is cheaper than single pairs


@dataclass(frozen=True, eq=False)
class Mates:
    """The mates of each probe in ascending order of their scores, rows filled up with +inf.

    score: float64 P×M. mate: int64 P×M, the mate's row among the probes; -1 where filled up.
    """

    score: np.ndarray
    mate: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """bool P×M, false where filled up."""
        return self.mate >= 0


def has_pairs(ids: np.ndarray) -> bool:
    """Whether any identity is there twice."""
    return len(np.unique(ids)) < len(ids)


def find_mates(unit: np.ndarray, ids: np.ndarray) -> Mates:
    """The mates of P probes: float64 P×D unit rows with P identities."""
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
    """Counts, block by block, the distractors of one segment that beat each mate.

    ties: "mate": a distractor with the mate's very score does not beat it, as in the devkit;
    "against": it does.

    Mates far above most distractors are compared with the few pairs that reach up to them. The
    others ("deep" ones: mislabelled photos, poor networks) are compared with all their probe's.
    """

    def __init__(self, mates: Mates, products: Products, exact: PairScorer, ties: str) -> None:
        self._mates = mates
        self._products = products
        self._exact = exact
        self._against = ties == "against"
        self._bound = products.refined_bound
        count, width = mates.score.shape
        self._steps = np.zeros((count, width + 1), np.int64)
        self._deep_beats = np.zeros((count, width), np.int64)
        self._deep: np.ndarray | None = None  # how many of each probe's lowest mates are deep
        self._deep_pairs: tuple[np.ndarray, ...] = ()
        self.floors = np.full(count, np.inf)

    def start(self, scores: np.ndarray) -> None:
        """Choose which mates are deep, from the first P×B block."""
        last = scores.shape[1] - max(1, scores.shape[1] // _TAIL)
        tail = np.partition(scores, last, axis=1)[:, last]
        self._deep = np.sum(self._mates.score - self._bound < tail[:, None], axis=1)
        padded = np.concatenate([self._mates.score, np.full((len(tail), 1), np.inf)], axis=1)
        self._deep_pairs = np.nonzero(np.arange(self._deep_beats.shape[1]) < self._deep[:, None])
        self.floors = padded[np.arange(len(tail)), self._deep] - self._bound

    @property
    def started(self) -> bool:
        """Whether `start` was called."""
        return self._deep is not None

    def add(self, pairs: Pairs, distractors: np.ndarray, scores: Tensor, scan: BlockScan) -> None:
        """Count one block.

        pairs: all (probe, column, float32 product) at or above `floors`, and maybe others.
        distractors: int64 B, the columns' rows in the distractor table. scores: P×B.
        """
        probe, column, product = pairs
        chosen = product >= self.floors[probe]
        probe, column, product = probe[chosen], column[chosen], product[chosen].astype(np.float64)
        step = max(1, _COMPARISONS_AT_ONCE // self._mates.score.shape[1])
        for start in range(0, len(probe), step):
            part = slice(start, start + step)
            self._add_pairs(probe[part], distractors[column[part]], product[part])
        for start in range(0, len(self._deep_pairs[0]), _DEEP_AT_ONCE):
            self._add_deep(slice(start, start + _DEEP_AT_ONCE), distractors, scores, scan)

    def beats(self) -> np.ndarray:
        """int64 P×M: the distractors that beat each mate."""
        return np.cumsum(self._steps, axis=1)[:, :-1] + self._deep_beats

    def _add_pairs(self, probe: np.ndarray, distractor: np.ndarray, product: np.ndarray) -> None:
        mates = self._mates.score[probe]
        surely = np.sum(mates < (product - self._bound)[:, None], axis=1)
        maybe = np.sum(mates <= (product + self._bound)[:, None], axis=1)
        unsure = np.flatnonzero(surely < maybe)
        if unsure.size:
            score = self._exact(probe[unsure], distractor[unsure])[:, None]
            surely[unsure] = np.sum(self._beaten(score, mates[unsure]), axis=1)
        # A distractor beats the mates from the first that is not deep up to the last below it.
        deep = self._deep[probe]
        np.add.at(self._steps, (probe, deep), 1)
        np.add.at(self._steps, (probe, np.maximum(surely, deep)), -1)

    def _beaten(self, score: np.ndarray, mate: np.ndarray) -> np.ndarray:
        return score >= mate if self._against else score > mate

    def _add_deep(self, part: slice, distractors: np.ndarray, scores: Tensor, scan: BlockScan):
        probe, place = self._deep_pairs[0][part], self._deep_pairs[1][part]
        mate = self._mates.score[probe, place]
        if self._products.dtype == torch.float32:
            rows, block = probe, scores
        else:
            chosen, rows = np.unique(probe, return_inverse=True)
            block = self._products.of_probes(chosen)
        above, pair, column = scan.compare(block, rows, mate, self._bound)
        if len(pair) > _COSTLY * len(mate) * block.shape[1]:
            chosen, rows = np.unique(probe, return_inverse=True)
            block = self._products.of_probes_in_double(chosen)
            above, pair, column = scan.compare(block, rows, mate, self._products.double_bound)
        score = self._exact(probe[pair], distractors[column])
        np.add.at(above, pair, self._beaten(score, mate[pair]))
        self._deep_beats[probe, place] += above
