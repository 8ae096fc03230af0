"""The scores of probes with distractors: the highest ones exactly, all of them in a histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from Utils.Evaluation_Utils.block_scan import Bins
from Utils.Evaluation_Utils.exact_scores import PairScorer

_SLACK = 200_000  # pairs that may wait before the list is cut down


@dataclass(eq=False)
class Negatives:
    """What is kept of N scores.

    count: N. highest: float64, the highest min(N, K) exact scores, descending. counts: int64, how
    many of their products are in each of the `bins`; None where `highest` has them all.
    far: how many of the N are below every threshold, and neither in `highest` nor in `counts`.
    """

    count: int
    highest: np.ndarray
    counts: np.ndarray | None
    bins: Bins
    far: int = 0

    @property
    def complete(self) -> bool:
        """Whether `highest` holds every score that is not far off."""
        return len(self.highest) + self.far == self.count


def merge_negatives(parts: list[Negatives], keep: int) -> Negatives:
    """Of several disjoint lots of scores, each with its `keep` highest, that of all of them."""
    count = sum(part.count for part in parts)
    highest = np.sort(np.concatenate([part.highest for part in parts]))[::-1][:keep]
    bins = parts[0].bins
    if len(highest) == count:
        return Negatives(count, highest, None, bins)
    counts = [bins.count(p.highest) if p.counts is None else p.counts for p in parts]
    return Negatives(count, highest, np.sum(counts, axis=0), bins)


class TopPairs:
    """The `keep` highest exact scores among pairs that come with float32 products.

    A product is off by at most `bound`. A pair whose product is more than twice that below the
    keep-th highest product can't be among them, and is dropped. Where too many lie so close, exact
    scores decide at once.
    """

    def __init__(self, keep: int, bound: float, exact: PairScorer) -> None:
        self._keep = keep
        self._bound = bound
        self._exact = exact
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0
        self._settled = np.empty(0)
        self.floor = -np.inf

    def add(self, probe: np.ndarray, distractor: np.ndarray, product: np.ndarray) -> None:
        """Take pairs in; those below `floor` may be left out."""
        chosen = product >= self.floor
        self._waiting.append((probe[chosen], distractor[chosen], product[chosen]))
        self._count += int(chosen.sum())
        if self._count > 2 * self._keep + _SLACK:
            self._cut()

    def raise_floor(self, product: float) -> None:
        """Say that `keep` pairs, seen or about to be, have this product or a higher one."""
        self.floor = max(self.floor, product - 2 * self._bound)

    def highest(self) -> np.ndarray:
        """float64, descending: the exact scores."""
        self._cut()
        self._settle()
        return self._settled[::-1].copy()

    def _cut(self) -> None:
        if self._count <= self._keep:
            return
        probe, distractor, product = self._all_waiting()
        place = len(product) - self._keep
        self.raise_floor(float(np.partition(product, place)[place]))
        chosen = product >= self.floor
        self._waiting = [(probe[chosen], distractor[chosen], product[chosen])]
        self._count = int(chosen.sum())
        if self._count > self._keep + _SLACK + self._keep // 2:
            self._settle()

    def _settle(self) -> None:
        probe, distractor, _ = self._all_waiting()
        scores = np.concatenate([self._settled, self._exact(probe, distractor)])
        self._settled = np.sort(scores)[-self._keep :]
        self._waiting, self._count = [], 0
        if len(self._settled) == self._keep:
            self.floor = max(self.floor, self._settled[0] - self._bound)

    def _all_waiting(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self._waiting:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        return tuple(np.concatenate(parts) for parts in zip(*self._waiting, strict=True))


class BestDistractor:
    """The highest exact score of each probe and the first distractor that has it."""

    def __init__(self, probes: int, bound: float, exact: PairScorer) -> None:
        self._bound = bound
        self._exact = exact
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0
        self._score = np.full(probes, -np.inf)
        self._distractor = np.full(probes, -1, np.int64)
        self.floors = np.full(probes, -np.inf)

    def raise_floors(self, products: np.ndarray) -> None:
        """Say that each probe has a pair, seen or about to be, with this product."""
        self.floors = np.maximum(self.floors, products - 2 * self._bound)

    def add(self, probe: np.ndarray, distractor: np.ndarray, product: np.ndarray) -> None:
        """Take pairs in; those below their probe's floor may be left out."""
        chosen = product >= self.floors[probe]
        probe, distractor, product = probe[chosen], distractor[chosen], product[chosen]
        self._waiting.append((probe, distractor, product))
        self._count += len(probe)
        highest = np.full(len(self.floors), -np.inf)
        np.maximum.at(highest, probe, product)
        self.raise_floors(highest)
        if self._count > _SLACK + 8 * len(self.floors):
            self._settle()

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 P scores and int64 P distractors; -inf and -1 where a probe met none."""
        self._settle()
        return self._score, self._distractor

    def _settle(self) -> None:
        if not self._count:
            return
        probe, distractor, product = (
            np.concatenate(parts) for parts in zip(*self._waiting, strict=True)
        )
        chosen = product >= self.floors[probe]
        probe, distractor = probe[chosen], distractor[chosen]
        found = (probe, distractor, self._exact(probe, distractor))
        known = np.flatnonzero(self._distractor >= 0)
        probe, distractor, score = (
            np.concatenate(parts)
            for parts in zip(
                found, (known, self._distractor[known], self._score[known]), strict=True
            )
        )
        order = np.lexsort((-distractor, score, probe))  # the last of each probe is its best
        last = order[np.append(np.diff(probe[order]) != 0, True)[: len(order)]]
        self._score[probe[last]], self._distractor[probe[last]] = score[last], distractor[last]
        self.floors = np.maximum(self.floors, self._score - self._bound)
        self._waiting, self._count = [], 0
