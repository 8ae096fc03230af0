"""verification.py against both lineages' rules written out, for each of the thresholds."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

from Utils.Evaluation_Utils.roc import auc, equal_error_rate, roc_curve
from Utils.Evaluation_Utils.verification import PROTOCOLS, combine_flip, evaluate

SEEDS = range(24)
COSINES = np.arange(-10000, 10001) / 10000
DISTANCES = np.arange(0, 4, 0.01)


def problem(seed: int):
    """Pairs full of ties: few coarse values, duplicated pairs, left and right the same."""
    rng = np.random.default_rng(seed)
    count, width = int(rng.integers(16, 60)), int(rng.integers(1, 7))
    left = rng.integers(-2, 3, size=(count, width)).astype(np.float32)
    right = rng.integers(-2, 3, size=(count, width)).astype(np.float32)
    if seed % 3 == 0:
        left, right = left + rng.normal(size=width), right + rng.normal(size=(count, width))
    same = rng.random(count) < 0.5
    same[:2] = True, False
    right[rng.random(count) < 0.2] *= 3  # same direction
    identical = rng.random(count) < 0.2
    right[identical] = left[identical]
    left[count // 2 :], right[count // 2 :] = left[: -(count // 2)], right[: -(count // 2)]
    folds = rng.permutation(np.arange(count) % int(rng.integers(2, 6)))
    # A zero row has no direction; what becomes of it is a test of its own.
    left[~left.any(axis=1)], right[~right.any(axis=1)] = 1, 1
    return left, right, same, folds


def normalised(rows):
    length = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    return np.divide(rows, length, out=np.zeros_like(rows), where=length != 0)


def brute_force_cosine(left, right, same, folds):
    accuracies, thresholds, all_scores = [], [], np.empty(len(same))
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        mean = np.mean(np.concatenate([left[train], right[train]], axis=0), axis=0)
        scores = np.sum(normalised(left - mean) * normalised(right - mean), axis=1)
        positives = np.sum(scores[train & same] > COSINES[:, None], axis=1)
        negatives = np.sum(scores[train & ~same] < COSINES[:, None], axis=1)
        found = (positives + negatives) / np.sum(train)
        threshold = np.mean(COSINES[found == np.max(found)])
        right_ones = np.sum(scores[test & same] > threshold)
        right_ones += np.sum(scores[test & ~same] < threshold)
        accuracies.append(right_ones / np.sum(test))
        thresholds.append(threshold)
        all_scores[test] = scores[test]
    return accuracies, thresholds, all_scores


def brute_force_insightface(left, right, same, folds):
    distance = np.sum((normalised(left) - normalised(right)) ** 2, axis=1)
    accuracies, thresholds = [], []
    for fold in range(folds.max() + 1):
        train, test = folds != fold, folds == fold
        best, threshold = -1.0, None
        for t in DISTANCES:
            accuracy = np.mean((distance[train] < t) == same[train])
            if accuracy > best:
                best, threshold = accuracy, t
        accuracies.append(np.mean((distance[test] < threshold) == same[test]))
        thresholds.append(threshold)
    return accuracies, thresholds, -distance


BRUTE_FORCE = {"cosine": brute_force_cosine, "insightface": brute_force_insightface}


def as_float64(left, right, *rest):
    return left.astype(np.float64), right.astype(np.float64), *rest


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exactly_the_brute_force(protocol, seed):
    pairs = problem(seed)
    accuracies, thresholds, scores = BRUTE_FORCE[protocol](*as_float64(*pairs))
    result = evaluate(*pairs, protocol=protocol)

    assert list(result.fold_accuracies) == accuracies
    assert list(result.fold_thresholds) == thresholds
    assert result.accuracy == np.mean(accuracies)
    assert result.std == np.std(accuracies)
    assert result.threshold == np.mean(thresholds)
    assert np.array_equal(result.fold_scores, scores)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_exactly_the_brute_force_on_many_wide_rows(protocol):
    rng = np.random.default_rng(7)
    left = rng.normal(size=(700, 192)).astype(np.float32)
    same, folds = np.arange(700) % 70 < 35, np.arange(700) // 70
    right = rng.normal(size=left.shape).astype(np.float32) + left * same[:, None] * np.float32(0.2)
    pairs = left, right, same, folds
    accuracies, thresholds, _ = BRUTE_FORCE[protocol](*as_float64(*pairs))

    result = evaluate(*pairs, protocol=protocol)
    assert list(result.fold_accuracies) == accuracies
    assert list(result.fold_thresholds) == thresholds
    # The result must not hang on how the rows lie in memory.
    again = evaluate(np.asfortranarray(left), right[:, ::-1][:, ::-1], same, folds, protocol)
    assert np.array_equal(again.fold_scores, result.fold_scores)


@pytest.mark.parametrize("offset", [0.0, 30.0, 1e5, 1e9])
def test_exactly_the_brute_force_where_the_mean_hides_the_features(offset):
    """Most digits cancel when the mean is subtracted, in some rows all of them."""
    rng = np.random.default_rng(3)
    left = rng.normal(size=(300, 24)) + offset
    same, folds = np.arange(300) % 30 < 15, np.arange(300) // 30
    right = rng.normal(size=left.shape) + offset
    right[same] += (left[same] - offset) * 0.4
    left[::7], right[::11] = offset, left[::11]
    pairs = left, right, same, folds
    accuracies, thresholds, scores = brute_force_cosine(*pairs)

    result = evaluate(*pairs)
    assert list(result.fold_accuracies) == accuracies
    assert list(result.fold_thresholds) == thresholds
    assert np.array_equal(result.fold_scores, scores)


def test_scores_next_to_a_threshold_fall_on_the_side_of_the_exact_ones():
    """Each is a rounding from a threshold or on it, closer than an approximation can tell."""
    cosines = np.repeat(COSINES[::400], 5)
    cosines = np.clip(cosines + np.tile(np.arange(-2, 3) * 1e-16, len(COSINES[::400])), -1, 1)
    left, right = (np.concatenate((x, -x)) for x in on_circle(cosines))
    same = np.random.default_rng(0).random(len(left)) < 0.5
    folds = np.arange(len(left)) % 3
    accuracies, thresholds, scores = brute_force_cosine(left, right, same, folds)

    result = evaluate(left, right, same, folds)
    assert list(result.fold_accuracies) == accuracies
    assert list(result.fold_thresholds) == thresholds
    assert np.array_equal(result.fold_scores, scores)


def test_the_random_problems_do_have_ties():
    """Otherwise the tests above would say nothing about them."""
    tied, on_a_threshold, many_best = 0, 0, 0
    for seed in SEEDS:
        pairs = problem(seed)
        result = evaluate(*pairs)
        tied += len(np.unique(result.scores)) < len(result.scores)
        on_a_threshold += np.isin(result.scores, COSINES).any()
        many_best += not np.isin(result.fold_thresholds, COSINES).all()
    assert tied == len(SEEDS)
    assert on_a_threshold > 10
    assert many_best > 5


def on_circle(cosines):
    """Pairs of 2-d features with these cosines, whose mean is zero in every fold of four copies."""
    left = np.tile([1.0, 0.0], (len(cosines), 1))
    right = np.stack([cosines, np.sqrt(1 - np.square(cosines))], axis=1)
    return left, right


def test_cosine_worked_by_hand():
    # One pair of each kind and its mirror image in each fold: the mean is zero.
    cosines = np.array([1.0, 0.0])
    left, right = (np.concatenate([x, -x] * 2) for x in on_circle(cosines))
    same, folds = np.tile([True, False], 4), np.repeat([0, 1], 4)
    result = evaluate(left, right, same, folds)
    # All of 0.0001 ... 0.9999 are right for all; their mean is 0.5.
    assert result.fold_accuracies == (1.0, 1.0)
    assert result.fold_thresholds == pytest.approx((0.5, 0.5), abs=1e-12)
    assert (result.std, result.auc, result.eer) == (0, 1, 0)
    assert result.tar_at_far == {0.1: 1.0, 0.01: 1.0, 0.001: 1.0}


def test_cosine_score_on_the_threshold_is_wrong_for_both_kinds():
    """Fold 0 leaves one best threshold, 0: its scores are 5e-5 and -5e-5, thresholds are 1e-4
    apart. All scores of fold 1 are 0."""
    near, far = on_circle(np.array([5e-5, -5e-5])), on_circle(np.zeros(2))
    left, right = (np.concatenate([a, -a, b, -b]) for a, b in zip(near, far, strict=True))
    same, folds = np.tile([True, False], 4), np.repeat([0, 1], 4)
    result = evaluate(left, right, same, folds)
    assert result.fold_thresholds[1] == 0
    assert result.fold_scores[folds == 1].tolist() == [0] * 4
    assert result.fold_accuracies == (1, 0)
    assert result.wrong.tolist() == [False] * 4 + [True] * 4


def test_constant_features_score_0_without_a_warning():
    same, folds = np.tile([True, False], 10), np.repeat([0, 1], 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(np.ones((20, 4)), np.ones((20, 4)), same, folds)
    assert result.fold_scores.tolist() == [0] * 20
    assert (result.auc, result.eer) == (0.5, 0.5)


def test_insightface_worked_by_hand():
    left, right = on_circle(np.tile([1.0, 0.0], 2))  # squared distances 0 and 2
    result = evaluate(left, right, np.tile([True, False], 2), [0, 0, 1, 1], "insightface")
    # 0.01 is the first threshold above 0.
    assert result.fold_thresholds == (0.01, 0.01)
    assert result.fold_accuracies == (1.0, 1.0)
    assert result.score_threshold == -0.01
    assert result.scores.tolist() == [0, -2, 0, -2]


def test_insightface_distance_on_the_threshold_is_not_the_same():
    # Training: only mismatched pairs at 0, so the first best threshold is 0 and nothing is below.
    left = np.tile([1.0, 0.0], (4, 1))
    result = evaluate(left, left, [False, False, True, False], [0, 0, 1, 1], "insightface")
    assert result.fold_thresholds[1] == 0.0
    assert result.fold_accuracies[1] == 0.5
    assert result.wrong.tolist()[2:] == [True, False]


def test_flip_pairs_are_combined_as_each_protocol_wants():
    features, flipped = np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6], [7, 8]], "f4")
    assert combine_flip(features, flipped, "cosine").tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert combine_flip(features, flipped, "insightface").tolist() == [[6, 8], [10, 12]]
    with pytest.raises(ValueError, match=r"\(2, 2\) and flipped \(1, 2\)"):
        combine_flip(features, flipped[:1], "cosine")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_curve_comes_from_all_pairs_with_nothing_subtracted(protocol):
    left, right, same, folds = problem(5)
    result = evaluate(left + 3, right + 3, same, folds, protocol)
    a, b = (normalised((x + 3).astype(np.float64)) for x in (left, right))
    plain = {"cosine": np.sum(a * b, axis=1), "insightface": -np.sum((a - b) ** 2, axis=1)}
    assert np.array_equal(result.scores, plain[protocol])
    roc = roc_curve(plain[protocol], same)
    assert np.array_equal(result.roc.tar, roc.tar)
    assert (result.auc, result.eer) == (auc(roc), equal_error_rate(roc))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wrong_pairs_add_up_to_the_accuracy(protocol):
    left, right, same, folds = problem(9)
    result = evaluate(left, right, same, folds, protocol)
    by_fold = [1 - result.wrong[folds == fold].mean() for fold in range(folds.max() + 1)]
    assert result.fold_accuracies == pytest.approx(by_fold)
    assert 0 < result.wrong.sum() < len(same)


@pytest.mark.parametrize(
    ("protocol", "expected"), [("cosine", [0, 0, 0]), ("insightface", [-1, 0, -1])]
)
def test_a_feature_of_length_zero_has_no_direction(protocol, expected):
    left = np.array([[0.0, 0], [0, 0], [1, 0], [1, 0], [2, 0]])
    right = np.array([[1.0, 0], [0, 0], [0, 0], [1, 0], [0, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = evaluate(left, right, [True, False, True, True, False], [0, 0, 1, 1, 1], protocol)
    assert result.scores[:3].tolist() == expected
    assert np.isfinite(result.fold_scores).all()


def test_training_folds_of_one_kind_only_are_fine():
    left, right, _, _ = problem(3)
    same = np.arange(len(left)) < 8
    result = evaluate(left, right, same, (~same).astype(int))
    accuracies, thresholds, _ = brute_force_cosine(
        *as_float64(left, right), same, (~same).astype(int)
    )
    assert list(result.fold_accuracies) == accuracies
    assert list(result.fold_thresholds) == thresholds


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_any_float_type_is_computed_in_float64(kind):
    left, right, same, folds = problem(1)  # whole numbers: the same in every type
    narrow = evaluate(left.astype(kind), right.astype(kind), same, folds)
    assert np.array_equal(narrow.scores, evaluate(left, right, same, folds).scores)
    assert narrow.scores.dtype == np.float64


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_dictionary_is_json_and_says_the_figures(protocol):
    left, right, same, folds = problem(2)
    result = evaluate(left, right, same, folds, protocol)
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["protocol"] == protocol
    assert read["accuracy"] == result.accuracy
    assert read["fold_accuracies"] == list(result.fold_accuracies)
    assert read["fold_thresholds"] == list(result.fold_thresholds)
    assert read["tar_at_far"] == {str(far): tar for far, tar in result.tar_at_far.items()}
    assert (read["pairs"], read["matched"]) == (len(same), same.sum())
    assert max(len(v) for v in read.values() if isinstance(v, list)) < len(same)


def test_a_threshold_that_accepts_nothing_is_null_in_json():
    left, right = on_circle(np.array([1.0, 0.0, 1.0, 0.0]))
    result = evaluate(left, right, [False, True, False, True], [0, 0, 1, 1])
    assert result.to_dict()["operating_points"][2]["threshold"] is None
    json.dumps(result.to_dict(), allow_nan=False)


def changed(**change):
    arguments = {
        "features_left": np.ones((6, 2)),
        "features_right": np.ones((6, 2)),
        "same": np.tile([True, False], 3),
        "folds": np.repeat([0, 1, 2], 2),
    }
    return arguments | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features_right": np.ones((5, 2))}, r"\(6, 2\) and features_right \(5, 2\)"),
        ({"features_left": np.ones(6)}, r"features_left has shape \(6,\)"),
        ({"features_left": np.ones((0, 2)), "features_right": np.ones((0, 2))}, r"\(0, 2\)"),
        ({"same": np.tile([True, False], 2)}, r"same has shape \(4,\), expected \(6,\)"),
        ({"same": np.tile([1, -1], 3)}, "same holds .*-1"),
        ({"same": np.ones(6, bool)}, "all 6 pairs are matched"),
        ({"folds": np.repeat([0, 1], 2)}, r"folds has shape \(4,\)"),
        ({"folds": np.repeat([0.0, 1, 2], 2)}, "float64"),
        ({"folds": np.zeros(6, int)}, "at least 2 folds"),
        ({"folds": np.repeat([0, 1, 3], 2)}, "fold 2 holds no pair"),
        ({"protocol": "cosin"}, "'cosin' is unknown, expected one of .*did you mean 'cosine'"),
        ({"protocol": "xyz"}, "expected one of cosine, insightface$"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(**changed(**change))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["features_left", "features_right"])
def test_features_that_are_not_finite_are_refused_by_row(side, bad):
    features = np.ones((6, 2), np.float32)
    features[4, 1] = bad
    with pytest.raises(ValueError, match=f"{side}: row 4 holds NaN or infinity"):
        evaluate(**changed(**{side: features}))
