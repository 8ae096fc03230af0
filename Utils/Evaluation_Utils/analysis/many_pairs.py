"""TAR@FAR of millions of pairs, such as IJB's, in draws over subjects (see bootstrap.py).

A threshold at a FAR is where the weights of the mismatched pairs above it reach a share of all
their weights. TAR changes only where a matched pair lies, so mismatched pairs are counted between
matched ones, by subject: a product of the subjects' weights with these counts gives all draws.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from Utils.Evaluation_Utils.analysis.bootstrap import SubjectDraws, accepted_weight

DRAWS = 1000

_ALL_UP_TO = 2**20  # mismatched pairs that are ordered in any case
_LEVELS = 512  # where ranks grow by a factor of e: a FAR is met within 0.2 %, never exceeded
_COUNTS_AT_ONCE = 2**23
_DRAWS_AT_ONCE = 50


def tar_draws(
    draws: SubjectDraws,
    scores: np.ndarray,
    same: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    fars: Sequence[float],
) -> np.ndarray:
    """F×2×B: TAR of P pairs at each FAR, as `SubjectDraws.share`.

    scores: P, higher = more alike. left, right: P ints below S, the subjects of each pair; a
    matched pair's is the left one.
    """
    matched = np.flatnonzero(same)
    matched = matched[np.argsort(-scores[matched], kind="stable")]
    different = ~same
    subjects = draws.own.shape[1]
    total = np.bincount(left, different, subjects) + np.bincount(right, different, subjects)
    top, complete = _highest(scores, different, max(fars))
    rank, before = _levels(-scores[matched], -scores[top], complete)
    false = _weights_down_to(rank, draws.drawn, left[top], right[top])
    return _at_fars(draws, false, draws.drawn @ total / 2, left[matched], before, fars)


def open_set_draws(
    draws: SubjectDraws,
    mate_scores: np.ndarray,
    mate_subjects: np.ndarray,
    best: np.ndarray,
    best_subjects: np.ndarray,
    fpirs: Sequence[float],
) -> np.ndarray:
    """F×2×B: TPIR at each FPIR, as `SubjectDraws.share`.

    mate_scores: of the searches with a mate, -inf where it is not found first. best: the highest
    scores of the searches without one. The subjects, ints below S, are those of the searches.
    """
    ranked, order = np.argsort(-mate_scores, kind="stable"), np.argsort(-best, kind="stable")
    rank, before = _levels(-mate_scores[ranked], -best[order], True)
    counted = np.where(np.isfinite(mate_scores[ranked]))[0]
    before = np.minimum(before, len(counted))
    false = np.cumsum(draws.own[:, best_subjects[order]], axis=1, dtype=np.float64)
    total = false[:, -1]
    return _at_fars(draws, false[:, rank - 1], total, mate_subjects[ranked], before, fpirs)


def _at_fars(
    draws: SubjectDraws,
    false: np.ndarray,
    total: np.ndarray,
    subjects: np.ndarray,
    before: np.ndarray,
    fars: Sequence[float],
) -> np.ndarray:
    """F×2×B, from the arguments of `accepted_weight`; subjects: of the matched pairs, the highest
    score first."""
    found, every = np.empty((len(fars), len(false))), np.empty(len(false))
    for start in range(0, len(false), _DRAWS_AT_ONCE):
        rows = slice(start, start + _DRAWS_AT_ONCE)
        true = np.cumsum(draws.own[rows, subjects], axis=1, dtype=np.float64)
        found[:, rows] = accepted_weight(false[rows], total[rows], true, before, fars)
        every[rows] = true[:, -1]
    return np.stack([draws.share(weight, every) for weight in found])


def _highest(scores: np.ndarray, different: np.ndarray, far: float) -> tuple[np.ndarray, bool]:
    """(mismatched pairs from the highest score on, whether they are all of them): enough for `far`
    in all draws, whose weights shift it by some percent."""
    mismatched = scores[different]
    count = max(_ALL_UP_TO, int(2 * far * len(mismatched)))
    complete = count >= len(mismatched)
    if complete:
        top = np.flatnonzero(different)
    else:
        lowest = np.partition(mismatched, len(mismatched) - count)[len(mismatched) - count]
        top = np.flatnonzero(different & (scores >= lowest))
    return top[np.argsort(-scores[top])], complete


def _levels(
    matched: np.ndarray, mismatched: np.ndarray, complete: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(K ascending numbers of mismatched pairs, K+1 numbers of matched ones that are accepted with
    no more than these), of ascending distances. complete: whether no mismatched pair is beyond."""
    last = np.flatnonzero(np.append(np.diff(mismatched) > 0, True))  # of equal ones
    accepted = np.searchsorted(matched, mismatched[last], side="left")
    accepted = np.append(accepted, len(matched) if complete else accepted[-1])
    rank = last + 1
    rises = np.flatnonzero(np.diff(accepted))
    step = np.floor(_LEVELS * np.log(rank[rises]))
    rises = rises[np.append(np.diff(step) > 0, True)[: len(rises)]]
    return rank[rises], np.append(accepted[0], accepted[rises + 1])


def _weights_down_to(
    rank: np.ndarray, drawn: np.ndarray, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """float64 B×K: the weight of the first rank[k] mismatched pairs, of subjects left, right."""
    draws, subjects = drawn.shape
    false = np.empty((draws, len(rank)))
    ends = np.append(0, rank)
    size = max(1, _COUNTS_AT_ONCE // subjects)
    for start in range(0, len(rank), size):
        stop = min(start + size, len(rank))
        pairs = slice(ends[start], ends[stop])
        block = np.repeat(np.arange(stop - start), np.diff(ends[start : stop + 1])) * subjects
        counts = np.zeros((stop - start) * subjects, np.float32)
        for side in (left[pairs], right[pairs]):
            counts += np.bincount(block + side, minlength=len(counts))
        false[:, start:stop] = drawn @ counts.reshape(-1, subjects).T / 2
    return np.cumsum(false, axis=1)
