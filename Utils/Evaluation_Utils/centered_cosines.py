"""Fast cosines for choosing thresholds where each fold subtracts the mean of the other folds.

Exact scores of all pairs for each fold would take most of the time of a 10-fold evaluation. But
only the scores of a fold's own pairs are results. The others choose a threshold: they need only be
on the right side of each candidate, and for nearly all pairs an approximation by matrix products is
close enough to tell the side. A reader of `verification.py` may skip this file: it changes no digit
of any result.
"""

from __future__ import annotations

import numpy as np

_ROWS_AT_ONCE = 256  # a block of features that stays in the processor's cache


class CenteredCosines:
    """Cosines of P pairs of P×D features (float64) after subtraction of one of K means.

    train: K×P bools; means[k] (D) is that of the features of the pairs train[k], left ones before
    right ones.
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, train: np.ndarray) -> None:
        self.means = _means(left, right, train)  # K×D
        # |x|², x·y and x·mean: from these, each fold's cosines need no pass over the features.
        self._squares = tuple(np.einsum("pd,pd->p", x, x) for x in (left, right))
        self._products = np.einsum("pd,pd->p", left, right)
        self._on_means = tuple(self.means @ x.T for x in (left, right))  # K×P

    def approximate(
        self, k: int, rows: np.ndarray, grid: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(cosines of the pairs `rows`, means[k] subtracted; which of them may be on the wrong
        side of a number in the ascending `grid`). rows and the second result are indices."""
        scores, errors = self._cosines_and_errors(k, rows)
        after = np.searchsorted(grid, scores)
        edges = np.concatenate(([-np.inf], grid, [np.inf]))
        with np.errstate(invalid="ignore"):
            gaps = np.minimum(scores - edges[after], edges[after + 1] - scores)
            return scores, np.flatnonzero(~(gaps > errors))  # also where one of the two is NaN

    def _cosines_and_errors(self, k: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(cosines, bounds of their rounding errors); NaN for features that equal the mean.

        A difference of products loses the digits that cancel: the error grows with the square of
        (|x| + |mean|) / |x - mean|.
        """
        mean_square = self.means[k] @ self.means[k]
        covariances = self._products[rows] + mean_square
        lengths, growth = 1.0, 0.0
        with np.errstate(all="ignore"):
            for squares, on_means in zip(self._squares, self._on_means, strict=True):
                square, on_mean = squares[rows], on_means[k, rows]
                covariances = covariances - on_mean
                centered = np.sqrt(square - 2 * on_mean + mean_square)  # |x - mean|
                lengths = lengths * centered
                growth = growth + (np.sqrt(square) + np.sqrt(mean_square)) / centered
            rounding_of_a_sum = (self.means.shape[1] + 16) * np.finfo(np.float64).eps
            return covariances / lengths, 4 * rounding_of_a_sum * growth**2


def _means(left: np.ndarray, right: np.ndarray, train: np.ndarray) -> np.ndarray:
    """K×D means, to the last bit `np.mean` of each fold's training features.

    Rows are added one after the other, as NumPy adds them, but without a copy of the features for
    each fold, and for all folds while a block of rows is in the cache.
    """
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
