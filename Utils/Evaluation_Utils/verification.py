"""Verification in K folds: do two photos show the same person? On arrays alone.

Each fold is evaluated with a threshold chosen on the other folds. Two protocols are in use, and
their figures differ by a few tenths of a percent, so a figure needs its protocol's name:

`cosine`, of the wujiyang/Face_Pytorch and QuasarLight repositories. The features of an image and of
its mirror image are concatenated; the mean of the training folds is subtracted from the raw
features; the score is the cosine. The accuracies at 20,001 thresholds from -1 to 1 are compared and
the *mean* of all the best ones is taken. A score equal to the threshold is wrong for both classes.

`insightface`, of deepinsight/insightface (`eval/verification.py`), after facenet. The two features
are summed; pairs are compared by the squared distance of the normalised features, on the thresholds
0, 0.01, ... 3.99; the *first* best one is taken, and a distance equal to it means "not the same".

All arithmetic is in float64 and in the order of these repositories, so that ties are decided as
they decide them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from Utils.Evaluation_Utils.centered_cosines import CenteredCosines
from Utils.Evaluation_Utils.roc import (
    OperatingPoint,
    Roc,
    as_flags,
    auc,
    equal_error_rate,
    roc_curve,
    tar_at_far,
)

REPORTED_FARS = (0.1, 0.01, 0.001)

_ROWS_AT_ONCE = 256  # a block of features that stays in the processor's cache


@dataclass(frozen=True, eq=False)
class Protocol:
    """How one lineage computes a figure from pairs of features.

    combine: (N×D of images, N×D of their mirror images) -> N×D′ features.
    subtract_mean: whether the training folds' mean feature is subtracted before normalising.
    similarity: (P×D′, P×D′, both L2-normalised) -> P scores, higher = more alike.
    thresholds: the candidates, in the order in which they are tried and in the protocol's own unit.
    score_sign: a threshold times this is on the scale of the scores.
    tie_rejects: whether a score equal to the threshold means "not the same"; otherwise it is an
        error for both classes.
    choose: (candidates, number of right answers at each) -> the threshold.
    """

    combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
    subtract_mean: bool
    similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]
    thresholds: np.ndarray
    score_sign: float
    tie_rejects: bool
    choose: Callable[[np.ndarray, np.ndarray], float]


def _concatenate(features: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return np.concatenate((features, flipped), axis=1)


def _add(features: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    return features.astype(np.float64) + flipped.astype(np.float64)


def _cosine(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.sum(left * right, axis=1)


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
        similarity=_cosine,
        thresholds=np.arange(-10000, 10001) / 10000,
        score_sign=1.0,
        tie_rejects=False,
        choose=_mean_of_best,
    ),
    "insightface": Protocol(
        combine=_add,
        subtract_mean=False,
        similarity=_minus_squared_distance,
        thresholds=np.arange(0, 4, 0.01),
        score_sign=-1.0,
        tie_rejects=True,
        choose=_first_best,
    ),
}


@dataclass(frozen=True, eq=False)
class VerificationResult:
    """The result of `evaluate` on P pairs in K folds. Rates and accuracies are 0..1.

    accuracy, std: mean and population standard deviation of the K fold_accuracies.
    fold_thresholds (K), threshold (their mean): in the protocol's unit, a cosine after mean
        subtraction (`cosine`) or a squared distance (`insightface`).
    scores: P scores of all pairs with nothing subtracted (plain cosine; minus squared distance).
        No threshold was fitted to them: roc, auc, eer and operating_points come from these.
    fold_scores: P scores that decided in each pair's own fold; compare with score_threshold.
    wrong: P bools, the pairs that got the wrong answer there.
    same: P bools, as given.
    """

    protocol: str
    accuracy: float
    std: float
    fold_accuracies: tuple[float, ...]
    fold_thresholds: tuple[float, ...]
    threshold: float
    score_threshold: float
    operating_points: tuple[OperatingPoint, ...]
    auc: float
    eer: float
    roc: Roc = field(repr=False)
    scores: np.ndarray = field(repr=False)
    fold_scores: np.ndarray = field(repr=False)
    wrong: np.ndarray = field(repr=False)
    same: np.ndarray = field(repr=False)

    @property
    def tar_at_far(self) -> dict[float, float]:
        """TAR at each of REPORTED_FARS; see `roc.tar_at_far` for what it means on few pairs."""
        return {point.target: point.tar for point in self.operating_points}

    def to_dict(self) -> dict:
        """The figures as JSON-ready numbers, without the arrays of P scores.

        A threshold that accepts nothing (+inf) is None: JSON has no infinity.
        """
        return {
            "protocol": self.protocol,
            "pairs": len(self.same),
            "matched": self.roc.positives,
            "mismatched": self.roc.negatives,
            "accuracy": self.accuracy,
            "std": self.std,
            "fold_accuracies": list(self.fold_accuracies),
            "fold_thresholds": list(self.fold_thresholds),
            "threshold": self.threshold,
            "tar_at_far": {str(far): tar for far, tar in self.tar_at_far.items()},
            "operating_points": [
                {
                    "far_target": point.target,
                    "far": point.far,
                    "tar": point.tar,
                    "threshold": point.threshold if np.isfinite(point.threshold) else None,
                }
                for point in self.operating_points
            ],
            "auc": self.auc,
            "eer": self.eer,
        }


def combine_flip(features: np.ndarray, flipped: np.ndarray, protocol: str = "cosine") -> np.ndarray:
    """The features for `evaluate`, from N×D of the images and N×D of their mirror images.

    `cosine`: N×2D, the two side by side. `insightface`: N×D float64, their sum.
    Raises ValueError for shapes that differ or an unknown protocol.
    """
    chosen = _find_protocol(protocol)
    features, flipped = np.asarray(features), np.asarray(flipped)
    if features.ndim != 2 or features.shape != flipped.shape:
        raise ValueError(
            f"features have shape {features.shape} and flipped {flipped.shape}; expected the same "
            "N×D twice: a row for each image and for its mirror image"
        )
    return chosen.combine(features, flipped)


def evaluate(
    features_left: np.ndarray,
    features_right: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    protocol: str = "cosine",
) -> VerificationResult:
    """Evaluate P pairs in K folds.

    features_left, features_right: P×D′ of any float type, as from `combine_flip`, not normalised.
    same: P bools. folds: P ints, the fold of each pair; K >= 2 consecutive numbers.
    protocol: a name in PROTOCOLS.

    A feature of length zero has no direction and stays zero when normalised: its cosine with
    anything is 0, its squared distance to a normalised feature 1 and to another zero 0.

    Raises ValueError for shapes that do not match, features that are not finite (naming the row),
    fewer than two folds, an empty fold, only one kind of pair, or an unknown protocol.
    """
    chosen = _find_protocol(protocol)
    left = _checked_features("features_left", features_left)
    right = _checked_features("features_right", features_right)
    if left.shape != right.shape:
        raise ValueError(
            f"features_left has shape {left.shape} and features_right {right.shape}; expected the "
            "same P×D twice: row k of each is pair k"
        )
    same = as_flags(same, len(left))
    fold_numbers, folds = _checked_folds(folds, len(left))

    scores = _pair_scores(left, right, chosen)
    roc = roc_curve(scores, same)
    fold_scores, wrong, thresholds = scores.copy(), np.empty_like(same), []
    train = folds != fold_numbers[:, None]  # K×P
    centered = CenteredCosines(left, right, train) if chosen.subtract_mean else None
    grid = np.sort(chosen.thresholds * chosen.score_sign)
    for k in range(len(train)):
        fitted, own = np.flatnonzero(train[k]), np.flatnonzero(~train[k])
        fitted_scores = scores[fitted]
        if centered:
            mean = centered.means[k]
            fitted_scores, unsure = centered.approximate(k, fitted, grid)
            rows = fitted[unsure]
            fitted_scores[unsure] = _pair_scores(left[rows], right[rows], chosen, mean)
            fold_scores[own] = _pair_scores(left[own], right[own], chosen, mean)
        thresholds.append(_fit_threshold(fitted_scores, same[fitted], chosen))
        wrong[own] = ~_is_right(fold_scores[own], same[own], thresholds[-1], chosen)

    accuracies = np.array([np.mean(~wrong[folds == number]) for number in fold_numbers])
    threshold = float(np.mean(thresholds))
    return VerificationResult(
        protocol=protocol,
        accuracy=float(np.mean(accuracies)),
        std=float(np.std(accuracies)),
        fold_accuracies=tuple(accuracies.tolist()),
        fold_thresholds=tuple(thresholds),
        threshold=threshold,
        score_threshold=threshold * chosen.score_sign,
        operating_points=tar_at_far(roc, REPORTED_FARS),
        auc=auc(roc),
        eer=equal_error_rate(roc),
        roc=roc,
        scores=scores,
        fold_scores=fold_scores,
        wrong=wrong,
        same=same,
    )


def pair_scores(left: np.ndarray, right: np.ndarray, protocol: str) -> np.ndarray:
    """P scores (higher = more alike) of P×D′ features, as from `combine_flip`."""
    features = (np.ascontiguousarray(side, dtype=np.float64) for side in (left, right))
    return _pair_scores(*features, _find_protocol(protocol))


def _find_protocol(name: str) -> Protocol:
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    nearest = difflib.get_close_matches(name.lower(), PROTOCOLS, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"protocol {name!r} is unknown, expected one of {', '.join(PROTOCOLS)}{hint}")


def _pair_scores(
    left: np.ndarray, right: np.ndarray, protocol: Protocol, mean: np.ndarray | None = None
) -> np.ndarray:
    """P scores of P×D′ features (float64), `mean` (D′) subtracted first if given."""
    scores = np.empty(len(left))
    for start in range(0, len(left), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        a, b = left[rows], right[rows]
        if mean is not None:
            a, b = a - mean, b - mean
        scores[rows] = protocol.similarity(_normalise(a), _normalise(b))
    return scores


def _normalise(features: np.ndarray) -> np.ndarray:
    length = np.sqrt(np.sum(features**2, axis=1, keepdims=True))
    return features / np.where(length == 0, np.inf, length)  # by infinity: a zero row stays zero


def _fit_threshold(scores: np.ndarray, same: np.ndarray, protocol: Protocol) -> float:
    """The protocol's threshold on the training folds, in the protocol's unit."""
    candidates = protocol.thresholds * protocol.score_sign
    matched, mismatched = np.sort(scores[same]), np.sort(scores[~same])
    accepted = len(matched) - np.searchsorted(matched, candidates, side="right")
    side = "right" if protocol.tie_rejects else "left"
    rejected = np.searchsorted(mismatched, candidates, side=side)
    return protocol.choose(protocol.thresholds, accepted + rejected)


def _is_right(
    scores: np.ndarray, same: np.ndarray, threshold: float, protocol: Protocol
) -> np.ndarray:
    """Which pairs (bools) get the right answer at a threshold in the protocol's unit."""
    threshold = threshold * protocol.score_sign
    rejected = scores <= threshold if protocol.tie_rejects else scores < threshold
    return np.where(same, scores > threshold, rejected)


def _checked_features(name: str, features: np.ndarray) -> np.ndarray:
    """P×D′ as float64 in row order: the order of summation must not depend on the memory layout."""
    features = np.ascontiguousarray(features, dtype=np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise ValueError(f"{name} has shape {features.shape}, expected P×D: a row for each pair")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise ValueError(
            f"{name}: row {bad[0]} holds NaN or infinity ({bad.size} such rows of "
            f"{len(features)}); the model's output is broken there, check its weights and input"
        )
    return features


def _checked_folds(folds: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The folds in order (K ints) and the fold of each pair (P ints)."""
    folds = np.asarray(folds)
    if folds.shape != (count,) or not np.issubdtype(folds.dtype, np.integer):
        raise ValueError(
            f"folds has shape {folds.shape} and type {folds.dtype}, expected ({count},) integers: "
            "the fold of each pair"
        )
    numbers = np.unique(folds)
    if len(numbers) < 2:
        raise ValueError(
            f"folds: all {count} pairs are in fold {numbers[0]}; at least 2 folds are needed, as "
            "each is evaluated with a threshold chosen on the others"
        )
    gaps = np.flatnonzero(np.diff(numbers) > 1)
    if gaps.size:
        raise ValueError(
            f"folds: fold {numbers[gaps[0]] + 1} holds no pair, though there are folds from "
            f"{numbers[0]} to {numbers[-1]}; number the folds consecutively"
        )
    return numbers, folds
