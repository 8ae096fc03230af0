"""Scores of pairs of features: exactly, or fast where a bound on the error says that it's enough.

Where each fold subtracts the mean of the other folds, exact scores of all pairs for each fold are
most of a 10-fold evaluation's time. But only those of a fold's own pairs are results. The others
choose a threshold: they need only be on the right side of each, and for nearly all pairs an
approximation by products of matrices tells that as well.

The rules by which lineages turn pairs of features into a verification figure: one row each.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]

_ROWS_AT_ONCE = 256  # small enough that a block of features stays in the processor's cache


def pair_scores(
    left: np.ndarray, right: np.ndarray, similarity: Similarity, mean: np.ndarray | None = None
) -> np.ndarray:
    """P scores of the normalised P×D features (float64), `mean` (D) subtracted first if given.

    similarity: (P×D, P×D normalised) -> P scores. A feature of length zero stays zero.
    """
    scores = np.empty(len(left))
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        a, b = left[rows], right[rows]
        if mean is not None:
            a, b = a - mean, b - mean
        scores[rows] = similarity(_normalise(a), _normalise(b))
    return scores


class CenteredCosines:
    """Cosines of P pairs of P×D features (float64) after subtraction of one of K means.

    train: K×P bools; mean k is that of the features of its pairs, left ones before right ones.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, train: np.ndarray) -> None:
        self._left, self._right = left, right
        self.means = _means(left, right, train)  # K×D
        # |x|², x·y and x·mean: with these, a cosine takes no more passes over the features.
        self._squares = tuple(np.einsum("pd,pd->p", x, x) for x in (left, right))
        self._products = np.einsum("pd,pd->p", left, right)
        self._on_means = tuple(self.means @ x.T for x in (left, right))  # K×P

    def exact(self, k: int, rows: np.ndarray) -> np.ndarray:
        """The cosines of some pairs (rows: bools or indices), mean k subtracted."""
        return pair_scores(self._left[rows], self._right[rows], cosine, self.means[k])

    def between(self, k: int, rows: np.ndarray, grid: np.ndarray) -> np.ndarray:
        """Cosines of some pairs (rows: indices) for comparison with the ascending `grid`.

        Each is less than, equal to, or more than each number of the grid if the exact one is: it
        is the exact one unless the approximation is further from the grid than its error.
        """
        scores, error = self._approximate(k, rows)
        after = np.searchsorted(grid, scores)
        edges = np.concatenate(([-np.inf], grid, [np.inf]))
        with np.errstate(invalid="ignore"):
            gap = np.minimum(scores - edges[after], edges[after + 1] - scores)
            unsure = np.flatnonzero(~(gap > error))  # also where one of them is not a number
        scores[unsure] = self.exact(k, rows[unsure])
        return scores

    def _approximate(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cosines, bounds of their errors) of some pairs; not numbers for features at the mean.

        The rounding of a difference of products grows with what cancels: with the square of
        (|x| + |mean|) / |x - mean|.
        """
        mean_square = self.means[k] @ self.means[k]
        covariance = self._products[rows] + mean_square
        length, growth = 1.0, 0.0
        with np.errstate(all="ignore"):
            for squares, on_means in zip(self._squares, self._on_means, strict=True):
                square, on_mean = squares[rows], on_means[k, rows]
                covariance = covariance - on_mean
                centered = np.sqrt(square - 2 * on_mean + mean_square)
                length = length * centered
                growth = growth + (np.sqrt(square) + np.sqrt(mean_square)) / centered
            per_sum = (self._left.shape[1] + 16) * np.finfo(np.float64).eps
            return covariance / length, 4 * per_sum * growth**2


def cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """P cosines of P×D normalised features."""
    return np.sum(left * right, axis=1)


def _means(left: np.ndarray, right: np.ndarray, train: np.ndarray) -> np.ndarray:
    """K×D. Summed row after row, so to the last bit `np.mean` of a fold's features in a row; but
    without copying them for each fold, and for all folds while a block of them is in the cache."""
    sums = np.zeros((len(train), left.shape[1]))
    block = np.empty((_ROWS_AT_ONCE + 1, left.shape[1]))  # the sum so far, and the rows to add
    for features in (left, right):
        for start in range(0, len(features), _ROWS_AT_ONCE):
            rows = train[:, start : start + _ROWS_AT_ONCE]
            count = rows.shape[1]
            block[1 : count + 1] = features[start : start + count]
            for k in np.flatnonzero(rows.any(axis=1)):
                block[0] = sums[k]
                added = True if rows[k].all() else np.append(True, rows[k])[:, None]
                sums[k] = np.add.reduce(block[: count + 1], axis=0, where=added)
    return sums / (2 * train.sum(axis=1, keepdims=True))


def _normalise(features: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.sum(features**2, axis=1, keepdims=True))
    return features / np.where(length == 0, np.inf, length)  # by infinity: a zero row stays zero


@dataclass(frozen=True)
class Protocol:
    """How one lineage turns pairs of features into a figure.

    combine: (N×D of images, N×D of their mirror images) -> N×D′ features.
    subtract_mean: whether the training folds' mean feature is subtracted before normalising.
    similarity: (P×D′, P×D′ normalised) -> P scores, higher = more alike.
    thresholds: the candidates, in the order in which they are tried and in the protocol's own unit.
    score_sign: a threshold times this is on the scale of the scores.
    tie_rejects: whether a score equal to the threshold means "not the same" (if not, it is an error
        for both classes).
    choose: (candidates, number of right answers at each) -> the threshold.
    """

    combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
    subtract_mean: bool
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]
    thresholds: Callable[[], np.ndarray]
    score_sign: float
    tie_rejects: bool
    choose: Callable[[np.ndarray, np.ndarray], float]


def _concatenate(features: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return np.concatenate((features, flipped), axis=1)


def _add(features: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return features.astype(np.float64) + flipped.astype(np.float64)


def _minus_squared_distance(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return -np.sum((left - right) ** 2, axis=1)


def _mean_of_best(candidates: np.ndarray, correct: np.ndarray) -> float:
    return float(np.mean(candidates[correct == correct.max()]))


def _first_best(candidates: np.ndarray, correct: np.ndarray) -> float:
    return float(candidates[np.argmax(correct)])


PROTOCOLS: dict[str, Protocol] = {
    "cosine": Protocol(
        combine=_concatenate,
        subtract_mean=True,
        similarity=cosine,
        thresholds=lambda: np.arange(-10000, 10001) / 10000,
        score_sign=1.0,
        tie_rejects=False,
        choose=_mean_of_best,
    ),
    "insightface": Protocol(
        combine=_add,
        subtract_mean=False,
        similarity=_minus_squared_distance,
        thresholds=lambda: np.arange(0, 4, 0.01),
        score_sign=-1.0,
        tie_rejects=True,
        choose=_first_best,
    ),
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name; ValueError naming the known ones and the nearest if none is."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    nearest = difflib.get_close_matches(name, PROTOCOLS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"protocol {name!r} is unknown, expected one of {', '.join(PROTOCOLS)}{hint}")
