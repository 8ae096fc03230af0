"""Ten folds evaluated with a loop over 20,001 thresholds."""

import numpy as np

_STEPS = 10_000


def fold_accuracies(
    left: np.ndarray, right: np.ndarray, same: np.ndarray, folds: np.ndarray
) -> list[float]:
    """Accuracies (0..1) of P pairs of P×D features by fold, protocol `cosine`."""
    found = []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        mean = np.mean(np.concatenate((left[train], right[train])), axis=0)
        a, b = left - mean, right - mean
        a = a / np.sqrt(np.sum(a**2, axis=1, keepdims=True))
        b = b / np.sqrt(np.sum(b**2, axis=1, keepdims=True))
        scores = np.sum(a * b, axis=1)
        threshold = _best_threshold(scores[train], same[train])
        found.append(_accuracy(scores[test], same[test], threshold))
    return found


def _best_threshold(scores: np.ndarray, same: np.ndarray) -> float:
    thresholds = np.arange(-_STEPS, _STEPS + 1) / _STEPS
    accuracies = np.array([_accuracy(scores, same, threshold) for threshold in thresholds])
    return float(np.mean(thresholds[accuracies == np.max(accuracies)]))


def _accuracy(scores: np.ndarray, same: np.ndarray, threshold: float) -> float:
    right = np.sum(scores[same] > threshold) + np.sum(scores[~same] < threshold)
    return float(right / len(scores))
