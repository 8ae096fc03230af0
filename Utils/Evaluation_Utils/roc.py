"""ROC arithmetic on plain arrays: the curve, the area under it, TAR at a FAR, equal error rate.

Words: a pair is *accepted* when its score is at or above a threshold. FAR (false accept rate) is
the share of mismatched pairs accepted, TAR (true accept rate) the share of matched pairs accepted,
FRR = 1 - TAR. Definitions follow Fawcett, "An introduction to ROC analysis" (2006): equal scores
move together, so they make one point of the curve and a straight segment to it.

Everything is counted in integers and divided once, so the figures are exact up to one rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve with one point per distinct score, from (0, 0) to (1, 1).

    far, tar: float64 arrays of K+1 rates (0..1), both non-decreasing.
    thresholds: float64 array of K+1 scores; point k accepts the pairs with score >= thresholds[k].
        The first is +inf: nothing accepted.
    positives, negatives: how many matched and mismatched pairs the rates are shares of.
    """

    far: np.ndarray
    tar: np.ndarray
    thresholds: np.ndarray
    positives: int
    negatives: int


@dataclass(frozen=True)
class OperatingPoint:
    """One attainable setting of the accept threshold, chosen for a target FAR.

    target: the FAR asked for. far, tar: the rates reached. threshold: accept when score >= it
    (+inf: accept nothing).
    """

    target: float
    far: float
    tar: float
    threshold: float


def roc_curve(scores: np.ndarray, same: np.ndarray) -> Roc:
    """The ROC curve of P scores (higher = more alike), `same` (P bools) saying which pairs match.

    Raises ValueError for scores that are not finite, lengths that differ, or only one kind of pair.
    """
    scores = _finite_scores(scores)
    same = as_flags(same, len(scores))
    positives, negatives = int(same.sum()), int((~same).sum())
    if positives == 0 or negatives == 0:
        kind = "mismatched" if positives == 0 else "matched"
        raise ValueError(
            f"same: all {len(same)} pairs are {kind}; a ROC curve needs matched and mismatched "
            "pairs, give it both"
        )
    order = np.argsort(scores)[::-1]
    ordered = scores[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of equal scores
    distinct = ordered[ends]
    true_accepts = np.cumsum(same[order])[ends]
    false_accepts = ends + 1 - true_accepts
    return Roc(
        far=np.concatenate(([0.0], false_accepts / negatives)),
        tar=np.concatenate(([0.0], true_accepts / positives)),
        thresholds=np.concatenate(([np.inf], distinct)),
        positives=positives,
        negatives=negatives,
    )


def auc(roc: Roc) -> float:
    """The area under the curve, 0..1.

    Equal to the Mann-Whitney statistic: the chance that a matched pair scores above a mismatched
    one, ties counted half.
    """
    false_accepts, true_accepts = _counts(roc)
    widths, heights = np.diff(false_accepts), true_accepts[1:] + true_accepts[:-1]
    whole = 2 * roc.positives * roc.negatives
    if whole >= 2**63:  # every pair of 100,000 images
        return float(widths.astype(np.float64) @ heights / whole)
    return int(np.sum(widths * heights)) / whole


def tar_at_far(roc: Roc, fars: Iterable[float]) -> tuple[OperatingPoint, ...]:
    """For each target FAR, the largest TAR whose FAR does not exceed it.

    Only thresholds that the scores attain are considered: nothing is interpolated, so the FAR
    reached is at or below the target. Of several thresholds with that TAR the strictest is given.
    With fewer negatives than 1/FAR no false accept at all is allowed: the figure is then the TAR at
    zero false accepts, whatever the target.

    Raises ValueError for a target outside 0..1.
    """
    return tuple(_operating_point(roc, float(target)) for target in fars)


def equal_error_rate(roc: Roc) -> float:
    """The rate (0..1) at which FAR = FRR.

    The two rates rarely meet at a point of the curve: the crossing is then taken on the straight
    line between the last point with FAR < FRR and the next one.
    """
    false_accepts, true_accepts = _counts(roc)
    # FAR - FRR times positives * negatives: rises strictly, from -1 to 1 in those units.
    excess = false_accepts * roc.positives + (true_accepts - roc.positives) * roc.negatives
    after = int(np.argmax(excess >= 0))
    before = after - 1
    share = -excess[before] / (excess[after] - excess[before])
    step = false_accepts[after] - false_accepts[before]
    return float((false_accepts[before] + share * step) / roc.negatives)


def as_flags(same: np.ndarray, count: int) -> np.ndarray:
    """`same` as `count` bools, from bools or 0/1.

    Raises ValueError for another shape, or for other values: -1 for a mismatched pair would
    otherwise count as true.
    """
    flags = np.asarray(same)
    if flags.shape != (count,):
        raise ValueError(
            f"same has shape {flags.shape}, expected ({count},): one flag for each pair"
        )
    if flags.dtype != bool and not np.isin(flags, (0, 1)).all():
        wrong = flags[~np.isin(flags, (0, 1))][0]
        raise ValueError(f"same holds {wrong!r}; expected True/False or 1/0, e.g. `flags == 1`")
    return flags.astype(bool)


def _finite_scores(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}, expected one score for each pair")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise ValueError(
            f"scores: {bad.size} of {scores.size} are not finite, the first is "
            f"{scores[bad[0]]} at index {bad[0]}; drop those pairs or mend the features"
        )
    return scores


def _counts(roc: Roc) -> tuple[np.ndarray, np.ndarray]:
    """False and true accepts at each point, as int64: a rate is its count, divided and rounded."""
    return (
        np.rint(roc.far * roc.negatives).astype(np.int64),
        np.rint(roc.tar * roc.positives).astype(np.int64),
    )


def _operating_point(roc: Roc, target: float) -> OperatingPoint:
    if not 0 <= target <= 1:
        raise ValueError(f"FAR target {target} is not a rate; expected a number from 0 to 1")
    last = np.searchsorted(roc.far, target, side="right") - 1
    point = np.searchsorted(roc.tar, roc.tar[last], side="left")
    return OperatingPoint(
        target=target,
        far=float(roc.far[point]),
        tar=float(roc.tar[point]),
        threshold=float(roc.thresholds[point]),
    )
