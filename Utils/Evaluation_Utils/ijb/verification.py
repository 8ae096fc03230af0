"""IJB's 1:1: scores of the listed pairs of templates, and TAR@FAR by two rules.

exact: the highest TAR with a FAR of at most the target, as elsewhere in this project (roc.py).
nearest: how published figures are read off, by insightface's eval_ijbc.py. Of the corners that
scikit-learn's roc_curve leaves of the curve, the one whose FAR is nearest to the target, even if it
is above; of equally near ones that with the higher TAR. nearest_no_drop: the same among all points
of the curve, as with roc_curve's drop_intermediate=False.
"""

from dataclasses import dataclass

import numpy as np

from Utils.Evaluation_Utils.roc import OperatingPoint, Roc, auc, roc_curve, tar_at_far

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_ROWS = 256  # first templates whose scores are computed at once


@dataclass(frozen=True, eq=False)
class VerificationFigures:
    """exact, nearest, nearest_no_drop: a point for each of FARS. corners: the curve, without
    collinear points."""

    exact: tuple[OperatingPoint, ...]
    nearest: tuple[OperatingPoint, ...]
    nearest_no_drop: tuple[OperatingPoint, ...]
    auc: float
    corners: Roc


def pair_scores(templates: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 P cosines of pairs of rows of `templates`, T×D, L2-normalised.

    Few templates are the first of a pair (3,531 of IJB-C's 23,124), and most of their products with
    the second ones are listed. So blocks of whole products are computed, and the pairs taken out.
    """
    firsts = _used(first, len(templates))
    place = np.empty(len(templates), np.int32)  # of a template among those of a product
    place[firsts] = np.arange(len(firsts))
    row = place[first]
    # 16-bit numbers are sorted by radix, several times faster than larger ones.
    block = (row // _ROWS).astype(np.uint16 if len(firsts) < _ROWS << 16 else np.int64)
    order = np.argsort(block, kind="stable")
    ends = np.cumsum(np.bincount(block))
    scores = np.empty(len(first))
    for number, end in enumerate(ends.tolist()):
        pairs = order[ends[number - 1] if number else 0 : end]
        seconds = second[pairs]
        columns = _used(seconds, len(templates))
        place[columns] = np.arange(len(columns))
        start = number * _ROWS
        products = templates[firsts[start : start + _ROWS]] @ templates[columns].T
        scores[pairs] = products[row[pairs] - start, place[seconds]]
    return scores


def _used(rows: np.ndarray, count: int) -> np.ndarray:
    """The different ones of rows below count, ascending."""
    used = np.zeros(count, bool)
    used[rows] = True
    return np.flatnonzero(used)


def evaluate_pairs(scores: np.ndarray, same: np.ndarray) -> VerificationFigures:
    """The figures of P pairs by their scores; same: P bools. Raises ValueError for NaN."""
    roc = roc_curve(scores, same)
    left = corners(roc)
    return VerificationFigures(
        tar_at_far(roc, FARS), nearest(left, FARS), nearest(roc, FARS), auc(left), left
    )


def corners(roc: Roc) -> Roc:
    """The curve without the points that scikit-learn's roc_curve drops: those at which the second
    difference of both rates is 0, the origin not counted."""
    false = np.rint(roc.far[1:] * roc.negatives).astype(np.int64)
    true = np.rint(roc.tar[1:] * roc.positives).astype(np.int64)
    kept = np.ones(len(roc.far), bool)
    if len(false) > 2:
        kept[2:-1] = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    return Roc(roc.far[kept], roc.tar[kept], roc.thresholds[kept], roc.positives, roc.negatives)


def nearest(roc: Roc, fars: tuple[float, ...]) -> tuple[OperatingPoint, ...]:
    """For each target FAR, the point of the curve whose FAR is nearest to it."""
    points = []
    for target in fars:
        last = len(roc.far) - 1 - int(np.argmin(np.abs(roc.far[::-1] - target)))
        far, tar, threshold = (float(values[last]) for values in (roc.far, roc.tar, roc.thresholds))
        points.append(OperatingPoint(target, far, tar, threshold))
    return tuple(points)
