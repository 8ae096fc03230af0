"""roc.py against definitions written out as loops, and against scikit-learn where it is there."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from Utils.Evaluation_Utils.roc import Roc, auc, equal_error_rate, roc_curve, tar_at_far

SEEDS = range(25)


def problem(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores with many ties, of both kinds of pair."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(8, 90))
    same = rng.random(count) < rng.uniform(0.2, 0.8)
    same[:2] = True, False
    scores = np.round(rng.normal(size=count) + same * rng.uniform(0, 3), int(rng.integers(0, 3)))
    return scores, same


def rates(scores: np.ndarray, same: np.ndarray, threshold: float) -> tuple[float, float]:
    accepted = scores >= threshold
    far = sum(a and not s for a, s in zip(accepted, same, strict=True)) / sum(~same)
    tar = sum(a and s for a, s in zip(accepted, same, strict=True)) / sum(same)
    return far, tar


@pytest.mark.parametrize("seed", SEEDS)
def test_each_point_is_what_its_threshold_accepts(seed):
    scores, same = problem(seed)
    roc = roc_curve(scores, same)

    expected = [rates(scores, same, threshold) for threshold in roc.thresholds]
    assert list(zip(roc.far, roc.tar, strict=True)) == expected
    assert roc.thresholds.tolist() == [np.inf, *sorted(set(scores.tolist()), reverse=True)]
    assert (roc.far[0], roc.tar[0], roc.far[-1], roc.tar[-1]) == (0, 0, 1, 1)
    assert (roc.positives, roc.negatives) == (same.sum(), (~same).sum())


@pytest.mark.parametrize("seed", SEEDS)
def test_auc_is_the_mann_whitney_statistic(seed):
    scores, same = problem(seed)
    wins = sum(
        Fraction(int(p > n) * 2 + int(p == n), 2) for p in scores[same] for n in scores[~same]
    )
    assert auc(roc_curve(scores, same)) == float(wins / (int(same.sum()) * int((~same).sum())))


@pytest.mark.parametrize("seed", SEEDS)
def test_auc_agrees_with_scikit_learn(seed):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, same = problem(seed)
    assert auc(roc_curve(scores, same)) == pytest.approx(metrics.roc_auc_score(same, scores))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("target", [0.0, 0.001, 0.05, 0.1, 0.25, 1 / 3, 1.0])
def test_tar_at_far_is_the_best_attainable(seed, target):
    scores, same = problem(seed)
    attainable = [rates(scores, same, threshold) for threshold in (np.inf, *set(scores))]
    best = max(tar for far, tar in attainable if far <= target)
    lowest_far = min(far for far, tar in attainable if tar == best)

    (point,) = tar_at_far(roc_curve(scores, same), [target])
    assert (point.target, point.tar, point.far) == (target, best, lowest_far)
    assert rates(scores, same, point.threshold) == (point.far, point.tar)


@pytest.mark.parametrize("seed", SEEDS)
def test_equal_error_rate_lies_on_the_curve(seed):
    scores, same = problem(seed)
    points = sorted(
        (Fraction(far).limit_denominator(100), 1 - Fraction(tar).limit_denominator(100))
        for far, tar in (rates(scores, same, t) for t in (np.inf, *set(scores)))
    )
    points.sort(key=lambda point: point[0] - point[1])
    crossings = set()
    for (far0, frr0), (far1, frr1) in pairwise(points):
        if far0 - frr0 < 0 <= far1 - frr1:
            share = (frr0 - far0) / ((frr0 - far0) + (far1 - frr1))
            assert far0 + share * (far1 - far0) == frr0 + share * (frr1 - frr0)
            crossings.add(far0 + share * (far1 - far0))
    (expected,) = crossings
    assert equal_error_rate(roc_curve(scores, same)) == pytest.approx(float(expected), abs=1e-15)


def test_worked_by_hand():
    # matched 4 3 1, mismatched 3 2 0 0; thresholds 4 3 2 1 0
    roc = roc_curve(np.array([4, 3, 1, 3, 2, 0, 0.0]), np.array([1, 1, 1, 0, 0, 0, 0]))
    assert roc.far.tolist() == [0, 0, 0.25, 0.5, 0.5, 1]
    assert roc.tar.tolist() == [0, 1 / 3, 2 / 3, 2 / 3, 1, 1]
    assert auc(roc) == (4 + 3.5 + 2) / 12
    # From (FAR 1/4, FRR 1/3) to (1/2, 1/3): they meet at 1/3.
    assert equal_error_rate(roc) == pytest.approx(1 / 3, abs=1e-15)
    half, quarter, none = tar_at_far(roc, [0.5, 0.3, 0.001])
    assert (half.tar, half.far, half.threshold) == (1, 0.5, 1)
    assert (quarter.tar, quarter.far, quarter.threshold) == (2 / 3, 0.25, 3)
    assert (none.tar, none.far, none.threshold) == (1 / 3, 0, 4)


def test_a_target_equal_to_an_attained_far_is_met():
    same = np.arange(4000) < 1000
    scores = np.where(same, 0.5, -np.arange(4000.0))
    scores[1000:1003] = 1.0  # three of 3,000 mismatched pairs above every matched one
    (point,) = tar_at_far(roc_curve(scores, same), [0.001])
    assert (point.far, point.tar) == (0.001, 1.0)


def test_a_matched_pair_below_a_false_accept_is_lost_on_few_negatives():
    (point,) = tar_at_far(roc_curve([0.9, 0.1, 0.8], [False, True, False]), [0.001])
    assert (point.far, point.tar, point.threshold) == (0, 0, np.inf)


@pytest.mark.parametrize(
    ("scores", "same", "message"),
    [
        ([1, 2], [True, True], "all 2 pairs are matched"),
        ([1, 2], [False, False], "all 2 pairs are mismatched"),
        ([1, np.nan], [True, False], "nan at index 1"),
        ([np.inf, 2], [True, False], "inf at index 0"),
        ([1, 2, 3], [True, False], r"\(2,\), expected \(3,\)"),
        ([[1, 2]], [True, False], r"\(1, 2\)"),
        ([1, 2], [1, -1], "-1"),
        ([], [], "all 0 pairs"),
    ],
)
def test_what_cannot_make_a_curve_is_refused(scores, same, message):
    with pytest.raises(ValueError, match=message):
        roc_curve(scores, same)


@pytest.mark.parametrize("target", [-0.1, 1.5, float("nan")])
def test_a_target_that_is_no_rate_is_refused(target):
    with pytest.raises(ValueError, match="not a rate"):
        tar_at_far(roc_curve([1, 2], [True, False]), [target])


def test_the_area_of_more_pairs_than_64_bits_can_multiply():
    """Half of the pairs of 100,000 images are genuine, 90 % of them above 90 % of the others."""
    rates = np.array([0, 0.1, 1]), np.array([0, 0.9, 1])
    curve = Roc(*rates, np.array([np.inf, 0.5, 0]), 2_500_000_000, 2_500_000_000)
    assert auc(curve) == pytest.approx(0.1 * 0.45 + 0.9 * 0.95)
