"""The rules by which lineages turn pairs of features into a verification figure: one row each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from Utils.Evaluation_Utils.pair_scores import cosine
from Utils.names import nearest_name


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
    nearest = nearest_name(name, PROTOCOLS)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    raise ValueError(f"protocol {name!r} is unknown, expected one of {', '.join(PROTOCOLS)}{hint}")
