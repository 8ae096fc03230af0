"""Intervals, comparisons and thresholds of other sets: by hand, by brute force, by simulation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.random import Generator

from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils import plots
from Utils.Evaluation_Utils.analysis import many_pairs
from Utils.Evaluation_Utils.analysis.bootstrap import (
    SubjectDraws,
    _weights,
    chance_of_other_order,
    interval,
    mean_interval,
    resample,
)
from Utils.Evaluation_Utils.analysis.further import Others, further_figures, open_others
from Utils.Evaluation_Utils.analysis.intervals import compare, intervals
from Utils.Evaluation_Utils.analysis.kept_scores import (
    KeptScores,
    ProtocolScores,
    keep_scores,
    load_scores,
    scores_path,
    subjects_of,
)
from Utils.Evaluation_Utils.analysis.many_pairs import open_set_draws, tar_draws
from Utils.Evaluation_Utils.analysis.pictures import plot_det, plot_discard
from Utils.Evaluation_Utils.analysis.quality import curves_at, discard_curve, read_quality
from Utils.Evaluation_Utils.analysis.thresholds import (
    at_thresholds,
    read_thresholds,
    warn_of_another_network,
)
from Utils.Evaluation_Utils.report import evaluate_pairs
from Utils.Evaluation_Utils.roc import roc_curve, tar_at_far
from Utils.files import save_json

NORMAL = NormalDist()
APART = 2.5  # between the mean scores of matched and mismatched pairs, in standard deviations
FARS = (0.1, 0.01)


def answers(
    scores: np.ndarray, same: np.ndarray, folds: np.ndarray
) -> tuple[np.ndarray, list[float]]:
    """Which pairs get the wrong answer with the best threshold of the other folds; and these."""
    wrong, thresholds = np.empty(len(same), bool), []
    for fold in np.unique(folds):
        own = folds == fold
        order = np.argsort(-scores[~own])
        best = np.argmax(np.cumsum(np.where(same[~own][order], 1, -1)))
        thresholds.append(float(scores[~own][order][best]))
        wrong[own] = (scores[own] >= thresholds[-1]) != same[own]
    return wrong, thresholds


def true_accuracy(threshold: float) -> float:
    return (NORMAL.cdf(threshold) + NORMAL.cdf(APART - threshold)) / 2


def simulated(rng: Generator, clustered: bool) -> tuple[np.ndarray, ...]:
    """600 pairs with normal scores of variance 1: (scores, same, folds, left and right subject).

    clustered: four matched pairs a person, who have half of their variance in common.
    """
    same, folds = np.arange(600) % 2 == 0, np.arange(600) // 60
    left = np.repeat(np.arange(75), 8)
    right = np.where(same, left, (left + rng.integers(1, 75, 600)) % 75)
    person, own = rng.normal(size=75), rng.normal(size=600)
    shared = np.where(same, person[left], (person[left] + person[right]) / 2) * np.sqrt(0.5)
    rest = np.where(same, 0.5, 0.75)
    return (
        APART * same + (shared + np.sqrt(rest) * own if clustered else own),
        same,
        folds,
        left,
        right,
    )


@pytest.mark.parametrize("clustered", [False, True])
def test_95_percent_intervals_cover_the_truth_in_90_to_98_percent_of_simulated_sets(clustered):
    """Of an accuracy the truth is that of the folds' thresholds on endlessly many pairs."""
    tars = [NORMAL.cdf(APART + NORMAL.inv_cdf(far)) for far in FARS]
    covered, without_subjects = np.zeros(3), 0
    for seed in range(200):
        scores, same, folds, *subjects = simulated(np.random.default_rng(seed), clustered)
        wrong, thresholds = answers(scores, same, folds)
        truth = [np.mean([true_accuracy(threshold) for threshold in thresholds]), *tars]
        points = tar_at_far(roc_curve(scores, same), FARS)
        figures = [1 - wrong.mean(), *(point.tar for point in points)]
        by = tuple(subjects) if clustered else None
        found = resample(scores, same, wrong, folds, FARS, by, draws=400)
        draws = (found.accuracy, *found.tar)
        for at, (drawn, figure) in enumerate(zip(draws, figures, strict=True)):
            low, high = interval(drawn, figure)
            covered[at] += low <= truth[at] <= high
        if clustered:
            plain = resample(scores, same, wrong, folds, FARS, draws=400)
            low, high = interval(plain.tar[0], figures[1])
            without_subjects += low <= truth[1] <= high
    assert np.all((covered >= 180) & (covered <= 196)), covered
    if clustered:
        assert without_subjects < covered[1]  # pairs of one person are not independent


@pytest.mark.parametrize("over_subjects", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_each_draw_is_the_weighted_figure(seed, over_subjects):
    """Against loops over thresholds, with ties, folds of unequal size and both half-pairs."""
    rng = np.random.default_rng(seed)
    same = rng.random(40) < 0.5
    scores = np.round(rng.normal(size=40) + same, 1)
    wrong, folds = rng.random(40) < 0.3, rng.integers(0, 3, 40)
    subjects = (rng.integers(0, 9, 40), rng.integers(0, 9, 40)) if over_subjects else None
    fars, mirrored = (0.0, 0.1, 0.5, 1.0), bool(seed % 2)
    found = resample(scores, same, wrong, folds, fars, subjects, mirrored, draws=6)
    ((_, weights, halves),) = _weights(same, subjects, 6)
    for draw in range(6):
        w, (right, lost) = weights[draw], halves[draw][::-1] if mirrored else halves[draw]
        shares = [w[(folds == f) & ~wrong].sum() / w[folds == f].sum() for f in range(3)]
        accuracy = (np.mean(shares) * w.sum() + right) / (w.sum() + right + lost)
        assert found.accuracy[draw] == pytest.approx(accuracy, rel=1e-9)
        for at, far in enumerate(fars):
            best = 0.0
            for threshold in scores:
                taken = scores >= threshold
                if w[taken & ~same].sum() <= far * w[~same].sum() * (1 + 1e-12):
                    best = max(best, w[taken & same].sum())
            tar = (best + right) / (w[same].sum() + right + lost)
            assert found.tar[at, draw] == pytest.approx(tar, rel=1e-9)


def many(rng: Generator, pairs: int = 400, decimals: int = 1) -> tuple[np.ndarray, ...]:
    """(scores with ties, same, left and right subject) of pairs of 12 people."""
    left, right = rng.integers(0, 12, (2, pairs))
    same = left == right
    return np.round(rng.normal(size=pairs) + same, decimals), same, left, right


def best_weight(threshold_of, scores, true, false, rate) -> float:
    """The highest sum of true at a threshold whose sum of false is at most its share, by a loop."""
    fitting = [
        true[threshold_of(t)].sum()
        for t in (np.inf, *scores)
        if false[threshold_of(t)].sum() <= rate * false.sum() * (1 + 1e-9)
    ]
    return max(fitting)


@pytest.mark.parametrize("seed", range(8))
def test_each_draw_over_subjects_is_the_weighted_tar(seed):
    """Against loops over thresholds; the second row has the half-pairs exchanged."""
    scores, same, left, right = many(np.random.default_rng(seed))
    draws, fars = SubjectDraws(12, draws=5, seed=seed), (0.0, 0.01, 0.1, 1.0)
    found = tar_draws(draws, scores, same, left, right, fars)
    for draw, (first, second) in enumerate(draws.halves.T):
        own, drawn = (w[draw].astype(np.float64) for w in (draws.own, draws.drawn))
        true = np.where(same, own[left], 0)
        false = np.where(same, 0, (drawn[left] + drawn[right]) / 2)
        for at, far in enumerate(fars):
            best = best_weight(lambda t: scores >= t, scores, true, false, far)
            for row, right_half in enumerate((first, second)):
                tar = (best + right_half) / (true.sum() + first + second)
                assert found[at, row, draw] == pytest.approx(tar, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_millions_of_pairs_are_cut_short_and_never_exceed_a_far(seed, monkeypatch):
    """With few pairs ordered and coarse steps, TARs are those at a FAR up to 13 % lower."""
    scores, same, left, right = many(np.random.default_rng(seed), 4000, decimals=3)
    draws, fars = SubjectDraws(12, draws=20), (0.05, 0.1)
    exact = tar_draws(draws, scores, same, left, right, fars)
    lower = tar_draws(draws, scores, same, left, right, [0.87 * far for far in fars])
    monkeypatch.setattr(many_pairs, "_ALL_UP_TO", 10)
    assert np.array_equal(tar_draws(draws, scores, same, left, right, fars), exact)
    monkeypatch.setattr(many_pairs, "_LEVELS", 8)
    coarse = tar_draws(draws, scores, same, left, right, fars)
    assert np.all(coarse <= exact)
    assert np.all(coarse >= lower)
    assert np.any(coarse < exact)


@pytest.mark.parametrize("seed", range(8))
def test_each_draw_of_an_open_set_is_the_weighted_rate(seed):
    rng = np.random.default_rng(seed)
    mate, best = np.round(rng.normal(1, 1, 30), 1), np.round(rng.normal(0, 1, 25), 1)
    mate[rng.random(30) < 0.2] = -np.inf  # not found first
    of_mate, of_best = rng.integers(0, 9, 30), rng.integers(0, 9, 25)
    draws, rates = SubjectDraws(9, draws=5, seed=seed), (0.0, 0.1, 0.5, 1.0)
    found = open_set_draws(draws, mate, of_mate, best, of_best, rates)
    scores = np.concatenate([mate, best])
    for draw, (half, other) in enumerate(draws.halves.T):
        own = draws.own[draw].astype(np.float64)
        true = np.concatenate([own[of_mate], np.zeros(25)])
        false = np.concatenate([np.zeros(30), own[of_best]])
        for at, rate in enumerate(rates):
            accepted = lambda t: (scores >= t) & np.isfinite(scores)  # noqa: E731
            expected = best_weight(accepted, scores, true, false, rate)
            share = (expected + half) / (true.sum() + half + other)
            assert found[at, 0, draw] == pytest.approx(share, rel=1e-5)


def test_intervals_of_many_pairs_cover_the_truth():
    """Of simulated sets with people whose pairs go together; 200 gave 96.5 and 96 %."""
    tars = [NORMAL.cdf(APART + NORMAL.inv_cdf(far)) for far in FARS]
    covered = np.zeros(2)
    for seed in range(60):
        scores, same, _, left, right = simulated(np.random.default_rng(seed), clustered=True)
        points = tar_at_far(roc_curve(scores, same), FARS)
        drawn = tar_draws(SubjectDraws(75, draws=400), scores, same, left, right, FARS)
        for at, (point, truth) in enumerate(zip(points, tars, strict=True)):
            low, high = interval(drawn[at, 0], point.tar)
            covered[at] += low <= truth <= high
    assert np.all((covered >= 54) & (covered <= 59)), covered


def test_weights_have_the_variances_that_the_text_says():
    same = np.array([True, True, False, False, False])
    left, right = np.array([0, 0, 0, 0, 3]), np.array([0, 0, 1, 2, 4])
    for subjects, shared in (((left, right), (1, 0.5)), (None, (0, 0))):
        weights = np.concatenate([w for _, w, _ in _weights(same, subjects, 200_000)])
        found = np.cov(weights.T)
        np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.02)
        np.testing.assert_allclose(np.diag(found), 1, atol=0.05)
        assert found[0, 1] == pytest.approx(shared[0], abs=0.05)  # two of one person
        assert found[2, 3] == pytest.approx(shared[1], abs=0.05)  # one person in common
        assert found[2, 4] == pytest.approx(0, abs=0.02)


def test_a_share_without_errors_has_jeffreys_interval():
    """100 right of 100: 0.025 is exceeded by Beta(100.5, 0.5) from 0.97525 on."""
    same = np.arange(100) % 2 == 0
    zeros = np.zeros(100, bool)
    found = resample(same.astype(float), same, zeros, np.arange(100) // 50, (), draws=20_000)
    low, high = interval(found.accuracy, 1.0)
    assert low == pytest.approx(0.97525, abs=1e-3)
    assert high == 1


def kept_scores(scores: np.ndarray, wrong: np.ndarray | None = None) -> KeptScores:
    count = len(scores)
    return KeptScores(
        names=np.array([f"{row // 2}/{row % 2}.jpg" for row in range(2 * count)]),
        norms=np.ones(2 * count),
        left=np.arange(0, 2 * count, 2),
        right=np.where(np.arange(count) % 2 == 0, 1, 3)
        + np.arange(0, 2 * count, 2) % (2 * count - 2),
        same=np.arange(count) % 2 == 0,
        folds=np.arange(count) // (count // 2),
        protocols={"cosine": ProtocolScores(scores, wrong)},
        source="kept",
    )


def pairs_of(names: list[str], same: list[int]) -> KeptScores:
    """Pairs of neighbours in a list of names."""
    at = np.arange(0, len(names), 2)
    nothing = np.zeros(len(at))
    return KeptScores(
        np.array(names), np.ones(len(names)), at, at + 1, np.array(same, bool), nothing, {}, ""
    )


@pytest.mark.parametrize(
    ("names", "same", "expected"),
    [
        (["Ann/1", "Ann/2", "Ann/1", "Bob/1"], [1, 0], ([0, 0], [0, 1])),
        (["7/frontal/1.jpg", "7/profile/1.jpg", "7/frontal/2.jpg", "8/profile/1.jpg"], [1, 0],
         ([0, 0], [0, 1])),
        (["Ann_0001.jpg", "Ann_0002.jpg", "Bob_0001.jpg", "Ann_0003.jpg"], [1, 0],
         ([0, 1], [0, 0])),
        (["0_AnnLee_35_f", "412_AnnLee_7_f", "9_Bob_B_60_m", "1_AnnLee_35_f"], [1, 0],
         ([0, 1], [0, 0])),
        (["Photos/0_Ann_35_f.jpg", "Photos/4_Ann_7_f.jpg", "Photos/9_Bob_60_m.JPG",
          "Photos/1_Ann_35_f.jpg"], [1, 0], ([0, 1], [0, 0])),
        (["1", "2", "3", "4"], [1, 0], None),
        (["a/1", "a/2", "a/3", "a/4"], [1, 0], None),  # a folder of two people
    ],
)  # fmt: skip
def test_subjects_are_known_where_names_agree_with_every_pair(names, same, expected):
    found = subjects_of(pairs_of(names, same))
    assert found == expected if expected is None else [s.tolist() for s in found] == list(expected)


def test_a_comparison_by_hand_and_both_ways():
    """100 pairs; this network has 4 errors, the other the same 4 and 8 more."""
    scores, wrong = np.where(np.arange(100) % 2 == 0, 1.0, 0.0), np.zeros(100, bool)
    wrong[:4] = True
    worse = wrong.copy()
    worse[10:18] = True
    one, two = kept_scores(scores, wrong), kept_scores(scores, worse)
    found = compare(one, two)["cosine"]["accuracy"]
    assert (found["this"], found["other"]) == (0.96, 0.88)
    assert found["difference"] == pytest.approx(0.08)
    # Sign test of 8 against 0: 2^-8; the normal interval of a paired difference, 0.08 ± 0.053.
    assert 0 < found["interval"][0] < 0.05
    assert 0.12 < found["interval"][1] < 0.16
    assert found["chance_of_other_order"] < 0.01
    back = compare(two, one)["cosine"]["accuracy"]
    assert back["difference"] == -found["difference"]
    assert back["chance_of_other_order"] < 0.01
    own = compare(one, one)["cosine"]["accuracy"]
    assert (own["difference"], own["chance_of_other_order"]) == (0, 0.5)
    # Intervals of the two alone overlap: that they are of the same pairs is what tells them apart.
    alone = [intervals(side)["cosine"]["accuracy"] for side in (one, two)]
    assert alone[0][0] < alone[1][1]


def test_the_chance_of_the_other_order_is_the_share_of_draws_beyond_zero():
    draws = np.array([-1.0, 0.0, 2.0, 3.0])
    assert chance_of_other_order(draws, 1.5) == 3 / 8
    assert chance_of_other_order(draws, -1.5) == 5 / 8


def test_a_far_that_was_not_measured_has_no_interval():
    found = intervals(kept_scores(np.linspace(0, 1, 40), np.zeros(40, bool)))["cosine"]
    assert found["over"] == "subjects"
    assert found["tar_at_far"]["0.1"]
    assert found["tar_at_far"]["0.01"] is None


def test_other_thresholds_by_hand(tmp_path):
    points = [
        {"far_target": 0.1, "threshold": 0.5},
        {"far_target": 0.01, "threshold": 0.75},
        {"far_target": 0.001, "threshold": None},
    ]
    path = tmp_path / "other.json"
    content = {
        "benchmark": "B",
        "checkpoint": "c",
        "results": {"cosine": {"operating_points": points}},
    }
    path.write_text(json.dumps(content))
    kept = kept_scores(np.array([0.9, 0.5, 0.5, 0.2, 0.4, 0.8]))
    rows = at_thresholds(kept, read_thresholds(path, ["cosine"]))["results"]["cosine"]
    assert [(r["far"], r["tar"], r["accuracy"]) for r in rows] == [
        (2 / 3, 2 / 3, 1 / 2),
        (1 / 3, 1 / 3, 1 / 2),
        (0.0, 0.0, 1 / 2),
    ]
    thresholds = read_thresholds(path, ["cosine"])
    assert warn_of_another_network(thresholds, str(Path("c").absolute())) == []
    assert "do not suit another" in warn_of_another_network(thresholds, "d/c")[0]
    alone = replace(kept, same=np.ones(6, bool))
    rows = at_thresholds(alone, read_thresholds(path, ["cosine"]))["results"]["cosine"]
    assert [rows[0][name] for name in ("far", "tar", "accuracy")] == [None, 4 / 6, None]


@pytest.mark.parametrize("text", ["[1]", "{}", '{"results": {"cosine": {"accuracy": 1}}}', "x"])
def test_files_without_thresholds_are_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"other\.json"):
        open_others(kept_scores(np.zeros(4)), ["cosine"], threshold_from=str(path))


@pytest.mark.parametrize("point", [{"far_target": 0.1, "threshold": float("nan")}, "0.1", {}])
def test_a_threshold_that_is_none_is_named(tmp_path, point):
    path = tmp_path / "other.json"
    good = {"far_target": 0.1, "threshold": 0.5}
    path.write_text(json.dumps({"results": {"cosine": {"operating_points": [good, point]}}}))
    with pytest.raises(DataError, match=r"other\.json: cosine has the threshold"):
        read_thresholds(path, ["cosine"])


def test_a_det_picture_is_drawn_of_perfect_scores_too(tmp_path):
    same = np.arange(20) % 2 == 0
    for name, scores in (("perfect", same * 1.0), ("usual", np.arange(20.0) * same)):
        plot_det({"cosine": roc_curve(scores, same)}, tmp_path / f"{name}.png", "A set")
        assert cv2.imread(str(tmp_path / f"{name}.png")).size > 0
        # No curve is in a perfect one's picture, so the legend says why.
        plot_det({"cosine": roc_curve(scores, same)}, tmp_path / f"{name}.svg", "A set")
        legend = "".join(re.findall("<!-- (.*) -->", (tmp_path / f"{name}.svg").read_text()))
        assert ("no error" in legend) == (name == "perfect")


def test_a_picture_of_qualities_has_a_long_title_in_full(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    same = np.arange(40) % 2 == 0
    curves = curves_at(same + 0.01 * np.arange(40), same, np.arange(40.0))
    name = (
        "IJB-C, norm divided out, no detector's score, image + mirror image: error versus discard"
    )
    for title in (name, "My_Photographs_" * 9, "short"):
        plot_discard(curves, tmp_path / "discard.png", title)
        figure = figures[-1]
        FigureCanvasAgg(figure).draw()
        shown = figure.axes[0].title
        place = shown.get_window_extent()
        assert 0 <= place.x0 < place.x1 <= figure.bbox.width
        assert "".join(shown.get_text().split()) == title.replace(" ", "")  # nothing is left out
    (label, *_) = figure.axes[0].get_legend_handles_labels()[1]
    assert label == f"FMR 0.01, found again: area {curves['0.01']['areas']['found_again']:.4f}"


def test_error_versus_discard_by_hand():
    """20 pairs, ten of each kind; the two lowest qualities are a rejected matched pair and the one
    mismatched pair above the others."""
    same = np.arange(20) < 10
    scores = np.r_[[0.5, 0.95], np.full(8, 0.9), [0.93], np.full(9, 0.1)]
    quality = np.r_[[1.0], np.full(9, 5.0), [2.0], np.full(9, 5.0)]
    curve = discard_curve(scores, same, quality, 0.01)
    assert curve.threshold == 0.95  # above the mismatched pair of 0.93
    # Nine of ten matched pairs are rejected, then eight of nine; with 0.93 gone, none at 0.5.
    assert curve.fixed[:3] == [9 / 10, 8 / 9, 8 / 9]
    assert curve.found_again[:3] == pytest.approx([9 / 10, 8 / 9, 0], abs=1e-12)
    # The ideal order drops one false non-match a step: 8 of 9 remain, ... none after nine steps.
    assert curve.ideal[:3] == [9 / 10, 8 / 9, 7 / 8]
    assert curve.ideal[9:] == [0.0] * (len(curve.shares) - 9)
    heights = np.array(curve.fixed)
    assert curve.area("fixed") == pytest.approx(
        0.05 * (heights.sum() - (heights[0] + heights[-1]) / 2)
    )


@pytest.mark.parametrize("seed", range(30))
def test_error_versus_discard_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(20, 120))
    same = rng.random(count) < 0.5
    scores = np.round(rng.normal(size=count) + same, int(rng.integers(0, 3)))
    quality = np.round(rng.random(count), 1)
    fmr = float(rng.choice([0.01, 0.1, 0.3]))

    def lowest_threshold(pairs: list[int]) -> float:
        mismatched = [scores[p] for p in pairs if not same[p]]
        fitting = [
            t for t in scores[pairs] if sum(s >= t for s in mismatched) <= fmr * len(mismatched)
        ]
        return min(fitting, default=np.inf)

    def missed(pairs: list[int], threshold: float) -> float:
        return np.mean([scores[p] < threshold for p in pairs if same[p]])

    curve = discard_curve(scores, same, quality, fmr)
    ranked = sorted(range(count), key=lambda pair: (quality[pair], pair))
    start = lowest_threshold(ranked)
    for step, share in enumerate(curve.shares):
        assert share == step / 20
        rest = ranked[step * count // 20 :]
        assert curve.fixed[step] == pytest.approx(missed(rest, start), abs=1e-12)
        again = missed(rest, lowest_threshold(rest))
        assert curve.found_again[step] == pytest.approx(again, abs=1e-12)
    assert curve.found_again[0] == pytest.approx(curve.fixed[0], abs=1e-12)


def test_a_pair_has_the_lower_quality_of_its_two_images():
    kept = kept_scores(np.linspace(1, 0, 40), np.zeros(40, bool))
    quality = np.random.default_rng(0).random(80)
    others = Others([], quality=("file", quality))
    found = further_figures(kept, others, "").values["quality"]["results"]["cosine"]["0.01"]
    pairs = [min(quality[a], quality[b]) for a, b in zip(kept.left, kept.right, strict=True)]
    expected = discard_curve(kept.protocols["cosine"].scores, kept.same, np.array(pairs), 0.01)
    assert found["fixed"] == expected.fixed
    assert found["areas"]["fixed"] == expected.area("fixed")


def test_a_file_of_qualities_is_read_by_name_and_its_faults_are_named(tmp_path):
    path = tmp_path / "quality.txt"
    path.write_text(
        "# by ours\nimage,quality\nAnn\\1.jpg 0.5\n\nan other, one\t-2e-1\nBob/1;3\nx 1\n"
    )
    names = ["Bob/1.png", "Ann/1", "an other, one"]
    assert read_quality(path, names).tolist() == [3, 0.5, -0.2]
    for text, said in (
        ("Ann/1 0.5\nBob/1 nan\n", r"quality\.txt, line 2: 'Bob/1 nan' is not"),
        ("Ann/1\n", r"quality\.txt, line 1: 'Ann/1' is not"),
        ("Ann/1 1\nAnn/1.jpg 2\n", r"quality\.txt, line 2: Ann/1\.jpg is there twice"),
        ("Ann/1 1\n", r"quality\.txt has no quality of 2 of the 3 images: Bob/1\.png"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=said):
            read_quality(path, names)
    with pytest.raises(DataError, match=r"nowhere\.txt"):
        read_quality(tmp_path / "nowhere.txt", names)


def test_the_interval_of_a_mean_is_jeffreys_and_wider_over_few_people():
    """40 of 100 found: Beta(40.5, 60.5) has the quantiles 0.3080 and 0.4977 (scipy)."""
    found = np.arange(100) < 40
    assert mean_interval(found) == pytest.approx((0.3080, 0.4977), abs=0.01)
    # Ten probes of each of ten people, all found or none: as few as ten independent ones.
    low, high = mean_interval(found, np.arange(100) // 10)
    assert high - low > 2 * (0.4977 - 0.3080)
    assert mean_interval(np.ones(100))[1] == 1


@pytest.fixture
def kept_on_disk(tmp_path):
    """A results file with its scores, as an evaluation writes them; returns how to make another."""

    def write(name: str, seed: int = 0, folds: int = 4):
        rng = np.random.default_rng(seed)
        people = rng.normal(size=(40, 8))
        left, right = (people + rng.normal(size=people.shape) for _ in range(2))
        data = VerificationSet(
            images=[None] * 80,
            names=[f"{row % 40}/{row}" for row in range(80)],
            left=np.arange(40),
            right=40 + (np.arange(40) + np.arange(40) % 2) % 40,
            same=np.arange(40) % 2 == 0,
            folds=np.arange(40) * folds // 40,
        )
        features = np.concatenate((left, right))
        results = evaluate_pairs(data, (features, features), ["cosine"])
        path = tmp_path / f"{name}.json"
        keep_scores(scores_path(path), data, features, results)
        figures = {protocol: result.to_dict() for protocol, result in results.items()}
        save_json(path, {"checkpoint": name, "results": figures})
        return path

    return write


def test_scores_of_another_evaluation_are_not_taken_for_those_of_a_results_file(kept_on_disk):
    one, two = kept_on_disk("one"), kept_on_disk("two", seed=1)
    own = load_scores(two)
    assert open_others(own, ["cosine"], str(one)).compared[0][1] == "one"
    scores_path(two).replace(scores_path(one))
    with pytest.raises(
        DataError, match=r"one\.json and .*one_scores\.npz are not of one eval.*accuracy"
    ):
        open_others(own, ["cosine"], str(one))


def test_results_that_can_t_be_compared_are_refused_before_the_work(kept_on_disk):
    one, two = kept_on_disk("one"), kept_on_disk("two", folds=2)
    with pytest.raises(DataError, match="other folds: pair 11 is in fold 1 there and 2 here"):
        open_others(load_scores(one), ["cosine"], str(two))
    with pytest.raises(DataError, match=r"one_scores\.npz holds no scores under insightface"):
        open_others(load_scores(one), ["insightface"], str(one))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cosine_wrong", lambda column: column.astype(int), r"cosine_wrong is \(40,\) of int64"),
        ("cosine_scores", lambda column: column[:-1], r"cosine_scores is \(39,\)"),
        ("same", lambda column: np.array(True), r"left is \(40,\)"),
        ("same", lambda column: np.where(column, 1, -1), "same is .* of int64"),
        ("norms", lambda column: column * np.nan, "value 1 of norms is NaN"),
        ("left", lambda column: column + 80, "images that have no names"),
        ("cosine_scores", None, "have no scores"),
    ],
)
def test_damaged_scores_are_named(kept_on_disk, name, change, said):
    path = scores_path(kept_on_disk("one"))
    columns = dict(np.load(path))
    column = columns.pop(name)
    np.savez(path, **columns, **({name: change(column)} if change else {}))
    with pytest.raises(DataError, match=rf"one_scores\.npz .*{said}"):
        load_scores(path.with_name("one.json"))


@pytest.mark.parametrize("place", ["half", "middle", "npy"])
def test_files_that_are_no_npz_are_one_paragraph(kept_on_disk, place):
    path = scores_path(kept_on_disk("one"))
    content = bytearray(path.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 200] = bytes(byte ^ 0x5A for byte in content[middle : middle + 200])
    path.write_bytes(content if place == "middle" else content[: middle + 9])
    if place == "npy":
        with open(path, "wb") as file:
            np.save(file, np.arange(3))
    with pytest.raises(DataError, match=r"one_scores\.npz can't be read"):
        load_scores(path.with_name("one.json"))
