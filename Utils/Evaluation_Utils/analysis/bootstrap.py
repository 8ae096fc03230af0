"""How sure is a figure: accuracy and TAR@FAR under resampling, on arrays alone.

The Bayesian bootstrap (Rubin 1981): in each draw every pair has a random weight of mean 1 and
variance 1, and the figures are computed with these weights.

- Over pairs: weights are independent, exponential.
- Over subjects, where they are known: pairs of the same people succeed and fail together, so a
  matched pair has its subject's weight (exponential), and a mismatched pair the mean of its two
  subjects' weights (each chi-squared with one degree of freedom, so that the mean has variance 1).
  Of the covariance of two mismatched pairs that share one subject, half is counted; no weights
  with variance 1 can count more (three in a row, a-b, b-c, c-d, would have a negative variance).

Shares of few errors get the half-pair right and half-pair wrong of Jeffreys' interval (Brown, Cai,
DasGupta 2001, "Interval estimation for a binomial proportion"): without them, no error at all would
have an interval without extent. The thresholds of the folds are kept as they were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95

_SEED = 0
_MOST_DRAWS, _FEWEST_DRAWS = 2000, 200
_MOST_WEIGHTS = 50_000_000  # all draws together: some seconds
_WEIGHTS_AT_ONCE = 2**19  # of a block of draws: 4 MiB


@dataclass(frozen=True, eq=False)
class Resampled:
    """Figures (0..1) in each of B draws. accuracy: B. tar: F×B, a row for each FAR asked for."""

    accuracy: np.ndarray
    tar: np.ndarray


def resample(
    scores: np.ndarray,
    same: np.ndarray,
    wrong: np.ndarray,
    folds: np.ndarray,
    fars: Sequence[float],
    subjects: tuple[np.ndarray, np.ndarray] | None = None,
    mirrored: bool = False,
    draws: int | None = None,
) -> Resampled:
    """The figures of P pairs in B draws; of two sets of scores of the same pairs the draws are the
    same, so that their figures can be subtracted.

    scores, same, wrong: P scores (higher = more alike), which pairs match, and which got the wrong
        answer in their own fold. folds: P ints. fars: F targets of `tar_at_far`.
    subjects: (P ints, P ints), the subject of each pair's images; None: draws over pairs.
    mirrored: exchange the half-pair right for the half-pair wrong, for the second of two results:
        together they are then half a pair that each alone gets right.
    draws: B; None: as many as `draws_for` says.
    """
    draws = draws or draws_for(len(scores))
    same, wrong = np.asarray(same, bool), np.asarray(wrong, bool)
    fold_numbers, fold_of = np.unique(folds, return_inverse=True)
    in_fold = np.eye(len(fold_numbers))[fold_of]  # P×K
    right_in_fold = in_fold * ~wrong[:, None]
    # Pairs of each kind from the highest score; equal scores are accepted together.
    mismatched, matched = (
        np.flatnonzero(kind)[np.argsort(-scores[kind], kind="stable")] for kind in (~same, same)
    )
    levels, first = np.unique(-scores[mismatched], return_index=True)
    ends = np.append(first[1:], len(mismatched))  # mismatched pairs accepted at each level
    # Just before level k is reached, these matched pairs are accepted; after the last, all are.
    before = np.searchsorted(-scores[matched], levels, side="left")
    before = np.append(before, len(matched))

    accuracy, tar = np.empty(draws), np.empty((len(fars), draws))
    for rows, weights, halves in _weights(same, subjects, draws):
        right, lost = halves[:, ::-1].T if mirrored else halves.T
        total = weights @ in_fold  # draws×K
        share = np.divide(
            weights @ right_in_fold, total, out=np.full_like(total, np.nan), where=total > 0
        )
        pairs = total.sum(axis=1)
        mean = np.nanmean(share, axis=1)
        accuracy[rows] = (mean * pairs + right) / (pairs + right + lost)
        false = np.cumsum(weights[:, mismatched], axis=1)
        true = np.cumsum(weights[:, matched], axis=1)
        found = accepted_weight(false[:, ends - 1], false[:, -1], true, before, fars)
        tar[:, rows] = (found + right) / (true[:, -1] + right + lost)
    return Resampled(accuracy, tar)


def accepted_weight(
    false: np.ndarray,
    total: np.ndarray,
    true: np.ndarray,
    before: np.ndarray,
    fars: Sequence[float],
) -> np.ndarray:
    """F×B: in each of B draws, the weight of the matched pairs that are accepted at each FAR.

    false: B×K, ascending, the weight of the mismatched pairs down to each of K levels; total: B, of
    all of them. true: B×M, ascending, of the matched pairs from the highest score. before: K+1,
    how many matched pairs are accepted with the first 0..K levels.
    """
    rows, found = np.arange(len(false)), []
    for far in fars:
        limits = far * total * (1 + 1e-12)  # all of them are accepted at FAR 1
        levels = [
            np.searchsorted(sums, limit, side="right")
            for sums, limit in zip(false, limits, strict=True)
        ]
        accepted = before[levels]
        found.append(np.where(accepted > 0, true[rows, accepted - 1], 0))
    return np.reshape(found, (len(fars), len(false)))


def draws_for(pairs: int) -> int:
    """How many draws: 2,000, fewer of more than 25,000 pairs, which take longer."""
    return int(np.clip(_MOST_WEIGHTS // pairs, _FEWEST_DRAWS, _MOST_DRAWS))


def interval(draws: np.ndarray, figure: float) -> tuple[float, float]:
    """The central interval of a figure's draws (B), which holds the figure itself."""
    low, high = np.quantile(draws, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return min(float(low), figure), max(float(high), figure)


class SubjectDraws:
    """The weights of S subjects in B draws, for figures that are sums over subjects.

    own: float32 B×S, of what belongs to one subject. drawn: float32 B×S; what two subjects share
    has the mean of theirs. Two of the same numbers and seed are the same.
    """

    def __init__(self, subjects: int, draws: int | None = None, seed: int = _SEED) -> None:
        rng, draws = np.random.default_rng(seed), draws or draws_for(subjects)
        self.halves = rng.standard_gamma(0.5, (2, draws))
        self.drawn = rng.standard_normal((draws, subjects), np.float32) ** 2
        self.own = (self.drawn + rng.standard_normal((draws, subjects), np.float32) ** 2) / 2

    def share(self, found: np.ndarray, of: np.ndarray) -> np.ndarray:
        """2×B: found/of, weights, with the half-pairs; the second row with them exchanged, for the
        second of two results (see `resample`)."""
        return (found + self.halves) / (of + self.halves.sum(axis=0))

    def mean(self, sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """2×B, as `share`: the mean of values of 0..1. sums, counts: S, of each subject's."""
        return self.share(self.own @ sums.astype(np.float64), self.own @ counts.astype(np.float64))


def mean_draws(values: np.ndarray, subjects: np.ndarray | None = None) -> np.ndarray:
    """2×B, as `SubjectDraws.share`: the mean of N values of 0..1, such as which probes were found
    at rank 1, in draws over subjects.

    subjects: N ids; the values of one get their weights together. None: each has its own.
    """
    values = np.asarray(values, np.float64)
    ids = np.arange(len(values)) if subjects is None else subjects
    whose = np.unique(ids, return_inverse=True)[1]
    sums, counts = np.bincount(whose, values), np.bincount(whose)
    return share_draws(sums[:, None], counts)[0]


def mean_interval(values: np.ndarray, subjects: np.ndarray | None = None) -> tuple[float, float]:
    """The interval of the mean of the values of `mean_draws`."""
    return interval(mean_draws(values, subjects)[0], float(np.mean(values)))


def share_intervals(sums: np.ndarray, counts: np.ndarray) -> list[tuple[float, float]]:
    """The intervals of the F shares of `share_draws`."""
    figures = sums.sum(axis=0) / counts.sum()
    drawn = share_draws(sums, counts)[:, 0]
    return [interval(own, float(f)) for own, f in zip(drawn, figures, strict=True)]


def share_draws(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """F×2×B, as `SubjectDraws.share`, of F shares: of `counts.sum()` things, those that
    `sums.sum(axis=0)` counts.

    sums: C×F, counts: C; a row for each subject, whose things get their weights together.
    """
    rng, draws = np.random.default_rng(_SEED), draws_for(len(counts))
    halves = rng.standard_gamma(0.5, (2, draws, 1))
    shares = np.empty((2, draws, sums.shape[1]))
    size = max(1, _WEIGHTS_AT_ONCE // len(counts))
    for start in range(0, draws, size):
        rows = slice(start, min(start + size, draws))
        weights = rng.standard_exponential((rows.stop - start, len(counts)))
        total = (weights @ counts)[:, None] + halves[:, rows].sum(axis=0)
        shares[:, rows] = (weights @ sums + halves[:, rows]) / total
    return np.moveaxis(shares, 2, 0)


def chance_of_other_order(differences: np.ndarray, difference: float) -> float:
    """The share of the draws (B) in which a difference has the other sign; draws of 0 count half.

    0.5 where there is no difference."""
    if difference == 0:
        return 0.5
    other = differences * np.sign(difference)
    return float(np.mean(other < 0) + np.mean(other == 0) / 2)


def _weights(
    same: np.ndarray, subjects: tuple[np.ndarray, np.ndarray] | None, draws: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks of draws: (their numbers, draws×P weights, draws×2 weights of the half-pairs)."""
    rng = np.random.default_rng(_SEED)
    size = max(1, _WEIGHTS_AT_ONCE // len(same))
    count = 0 if subjects is None else 1 + max(int(side.max()) for side in subjects)
    for start in range(0, draws, size):
        block = min(size, draws - start)
        halves = rng.standard_gamma(0.5, (block, 2))
        if subjects is None:
            weights = rng.standard_exponential((block, len(same)))
        else:
            left, right = subjects
            drawn = rng.standard_normal((block, count)) ** 2
            own = (drawn + rng.standard_normal((block, count)) ** 2) / 2
            both = (drawn[:, left] + drawn[:, right]) / 2
            weights = np.where(same, own[:, left], both)
        yield slice(start, start + block), weights, halves
