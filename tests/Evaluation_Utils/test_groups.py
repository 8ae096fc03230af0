"""groups.py: numbers worked by hand, and a plain float64 computation with loops."""

import json
from dataclasses import replace

import numpy as np
import pytest

from Config import Config
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.groups import evaluate_groups, groups_table, spread, with_groups
from Utils.Evaluation_Utils.verification import evaluate


def test_the_published_example_of_the_spread():
    """Of RL-RBN's table of RFW: mean 94.64, standard deviation 1.10 (n - 1), ratio 1.64."""
    found = spread([0.9618, 0.9467, 0.9372, 0.9398])
    assert 100 * found["mean"] == pytest.approx(94.6375)
    assert 100 * found["std"] == pytest.approx(1.10, abs=0.005)
    assert found["skewed_error_ratio"] == pytest.approx(6.28 / 3.82)
    assert spread([0.9, 1.0])["skewed_error_ratio"] is None
    assert spread([0.9]) == {"mean": 0.9, "std": None, "skewed_error_ratio": None}
    assert spread([]) == {"mean": None, "std": None, "skewed_error_ratio": None}


def angles(degrees):
    """P×2 pairs of unit features with these angles between them: scores are their cosines."""
    radians = np.deg2rad(degrees)
    left = np.tile([1.0, 0.0], (len(radians), 1))
    return left, np.stack([np.cos(radians), np.sin(radians)], axis=1)


# Eight pairs of group a and eight of b, in two folds; mismatched pairs of b are more alike.
DEGREES = [10, 20, 80, 90, 10, 30, 70, 90] + [10, 40, 50, 35, 20, 45, 60, 90]
SAME = np.array([1, 1, 0, 0] * 4, bool)
FOLDS = np.repeat([0, 1, 0, 1], 4)
GROUPS = np.repeat(["a", "b"], 8)


def test_figures_worked_by_hand():
    left, right = angles(DEGREES)
    result = evaluate(left, right, SAME, FOLDS, "insightface")
    found = evaluate_groups(left, right, result, FOLDS, GROUPS, far=0.125)
    # Of 8 mismatched pairs one may be accepted, that of 35°: the largest TAR is then 30° and less
    # with none; 40° and 45° lie behind 35°, so the strictest threshold with TAR 7/8 is 45°.
    assert found.threshold == pytest.approx(-(2 - 2 * np.cos(np.deg2rad(45))))
    assert found.far == 1 / 8
    a, b = found.groups["a"], found.groups["b"]
    assert (a.fmr, a.fnmr, b.fmr, b.fnmr) == (0, 0, 1 / 4, 0)
    # On group a alone no mismatched pair is accepted, down to its matched pair of 30°.
    found = evaluate_groups(left, right, result, FOLDS, GROUPS, 0.125, threshold_group="a")
    assert found.threshold == pytest.approx(-(2 - 2 * np.cos(np.deg2rad(30))))
    assert (found.groups["b"].fmr, found.groups["b"].fnmr) == (0, 1 / 2)
    # Squared distances in a: .03 .12 | 1.65 2 and .03 .27 | 1.32 2. The first best of fold 2, .27,
    # is right for all of fold 1; that of fold 1, .13, refuses the .27 of fold 2.
    # In b: .03 .47 | .71 .36 and .12 .59 | 1 2. That of fold 2, .59, accepts the .36 of fold 1;
    # that of fold 1, .04 (3 right), refuses both matched pairs of fold 2.
    assert (a.accuracy, a.folds, b.accuracy) == (7 / 8, 2, 5 / 8)
    assert found.mean == 0.75
    assert found.std == pytest.approx(np.sqrt(2 * 0.125**2))
    assert found.skewed_error_ratio == 3
    assert found.across == 0


@pytest.mark.parametrize("protocol", ["cosine", "insightface"])
@pytest.mark.parametrize("seed", range(15))
def test_figures_are_those_of_plain_loops(seed, protocol):
    rng = np.random.default_rng(seed)
    count, names = int(rng.integers(200, 300)), ["x", "y", "z", ""]
    left, right = rng.normal(size=(2, count, 4))
    same = rng.random(count) < 0.5
    right[same] += 2 * left[same]
    # Pairs of the same features tie; and some features are zero.
    copied, at = rng.integers(0, count, (2, 60))
    left[at], right[at] = left[copied], right[copied]
    right[rng.integers(0, count, 9)] = 0
    folds, groups = np.arange(count) % 3, np.array(names)[rng.integers(0, 4, count)]
    result = evaluate(left, right, same, folds, protocol)
    chosen, far = [("", 0.1), ("y", 0.3), ("", 1e-6)][seed % 3]
    found = evaluate_groups(left, right, result, folds, groups, far, chosen)

    def unit(v):
        return v / np.sqrt((v**2).sum()) if v.any() else v

    scores = []
    for a, b in zip(left, right, strict=True):
        a, b = unit(a), unit(b)
        scores.append((a * b).sum() if protocol == "cosine" else -((a - b) ** 2).sum())
    scores = np.array(scores)
    inside = [i for i in range(count) if chosen in ("", groups[i])]
    best = (-1, np.inf)  # the most matched pairs accepted, then the highest threshold
    for threshold in [np.inf, *scores[inside]]:
        wrong = [scores[i] >= threshold for i in inside if not same[i]]
        right_ones = sum(scores[i] >= threshold for i in inside if same[i])
        if np.mean(wrong) <= far and (right_ones, threshold) > best:
            best = (right_ones, threshold)
    assert found.threshold == pytest.approx(best[1], abs=1e-12)
    accuracies = []
    for name in names[:3]:
        own = [i for i in range(count) if groups[i] == name]
        fmr = np.mean([scores[i] >= best[1] - 1e-12 for i in own if not same[i]])
        fnmr = np.mean([scores[i] < best[1] - 1e-12 for i in own if same[i]])
        assert (found.groups[name].fmr, found.groups[name].fnmr) == (fmr, fnmr)
        # The group as a set of its own.
        alone = evaluate(left[own], right[own], same[own], folds[own], protocol)
        assert found.groups[name].accuracy == alone.accuracy
        accuracies.append(alone.accuracy)
    assert found.std == pytest.approx(np.sqrt(np.var(accuracies) * 3 / 2))
    across = [i for i in range(count) if groups[i] == "" and not same[i]]
    assert found.across == len(across)
    assert found.across_fmr == np.mean([scores[i] >= best[1] - 1e-12 for i in across])


def test_a_group_of_few_pairs_has_no_accuracy_and_json_no_infinity():
    left, right = angles([*DEGREES, 10, 5, 60])
    same, folds = np.array([*SAME, True, False, False]), np.array([*FOLDS, 0, 1, 1])
    groups = np.array([*GROUPS, "one", "two", ""])
    result = evaluate(left, right, same, folds, "cosine")
    found = evaluate_groups(left, right, result, folds, groups, far=0)
    # The most alike pair, of 5°, is a mismatched one: nothing can be accepted.
    assert found.threshold == np.inf
    assert found.groups["one"].accuracy is None
    assert (found.groups["one"].fmr, found.groups["one"].fnmr) == (None, 1)
    assert (found.groups["two"].fmr, found.groups["two"].fnmr) == (0, None)
    assert found.across == 1
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert values["threshold"] is None
    assert values["groups"]["two"]["mismatched"] == 1
    table = groups_table({"cosine": found}, {"cosine": {"groups": {"a": [0.5, 0.75]}}})
    assert "across groups" in table
    row = next(line for line in table.splitlines() if line.startswith("one"))
    assert row.split() == ["one", "1", "-", "-", "100.00", "%"]
    assert "50.00 to 75.00" in table
    assert "nothing is accepted" in table
    assert "folds made anew" not in table
    with pytest.raises(DataError, match=r"has 1 matched and 0 mis.*: a, b, one, two"):
        evaluate_groups(left, right, result, folds, groups, threshold_group="one")


def test_pairs_that_no_group_has_are_told(tmp_path):
    """a and b are one person in two groups; a file with a group for each image has no group."""
    names, path = list("abcd"), tmp_path / "groups.txt"
    left, right, same = np.array([0, 2, 0]), np.array([1, 3, 2]), np.array([True, True, False])
    data = VerificationSet([None] * 4, names, left, right, same, np.zeros(3, int))
    path.write_text("a x\nb y\nc x\nd x\n")
    config = Config(groups=str(path))
    note = "matched pairs of no one group, which count in none: 1, such as a and b"
    assert with_groups(data, config).notes == (note,)
    path.write_text("a x\nb x\nc x\nd x\n")
    assert with_groups(data, config).notes == ()
    for text, flags, said in (
        ("a 1\nb 2\nc 3\nd 4\n", same, "groups.txt: no pair is of two images of one group"),
        ("a x\nb x\nc x\nd x\n", same | True, "^the set has 3 matched and 0 mismatched pairs"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            with_groups(replace(data, same=flags), config)
