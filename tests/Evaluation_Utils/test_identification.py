"""identification.py against MegaFace's rules written out with loops over a float64 score matrix."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.processes import run_script, torchrun
from Utils.errors import DataError
from Utils.Evaluation_Utils.identification import (
    ScoringSettings,
    Trial,
    evaluate,
    evaluate_trials,
    evaluation,
    exact_scores,
    negatives,
    ranks,
    scoring,
)
from Utils.Evaluation_Utils.roc import roc_curve, tar_at_far

ROOT = Path(__file__).resolve().parent.parent.parent
SEEDS = range(16)
RANKS = (1, 2, 5, 100_000)
FPRS = (0.3, 0.05, 1e-3, 1e-6)
FPIRS = (0.2, 0.05, 1e-3)


def unit(rows):
    rows = rows.astype(np.float64)
    length = np.sqrt(np.sum(rows**2, axis=1, keepdims=True))
    return np.divide(rows, length, out=np.zeros_like(rows), where=length != 0)


def score_matrix(left, right):
    return np.sum(unit(left)[:, None] * unit(right)[None], axis=2)


def problem(seed):
    """Few coarse features, so that ties abound; people with one photo; or smooth, noisy ones."""
    rng = np.random.default_rng(seed)
    people, gallery, dim = rng.integers(3, 12), rng.integers(1, 150), rng.integers(2, 9)
    ids = np.repeat(np.arange(people), rng.integers(1, 6, people))
    ids = np.append(ids, [people, people])  # so that there is a pair
    rng.shuffle(ids)
    if seed % 2:
        probes = rng.integers(-1, 2, (len(ids), dim))
        distractors = rng.integers(-1, 2, (gallery, dim))
    else:
        centres = rng.normal(size=(people + 1, dim * 4))
        probes = centres[ids] + rng.normal(size=(len(ids), dim * 4))
        distractors = rng.normal(size=(gallery, dim * 4))
        distractors[: gallery // 3] = probes[rng.integers(0, len(ids), gallery // 3)] * 2
    return probes.astype(np.float32), ids, distractors.astype(np.float32)


def brute_force(probes, ids, distractors, ties="mate"):
    """Everything, by the definitions."""
    against = score_matrix(probes, distractors)
    between = score_matrix(probes, probes)
    beats, ordered, first, positives = [], [], [], []
    for p in range(len(ids)):
        for m in range(len(ids)):
            if p != m and ids[p] == ids[m]:
                mate = between[p, m]
                higher = against[p] > mate if ties == "mate" else against[p] >= mate
                beats.append(int(higher.sum()))
                ordered.append(mate)
                first.append(not higher.any())
                if p < m:
                    positives.append(mate)
    figures = {"beats": sorted(beats)}
    for name, rows in (("all", against), ("devkit", against[:100])):
        scores = np.concatenate([positives, rows.ravel()])
        same = np.arange(len(scores)) < len(positives)
        curve = roc_curve(scores, same)
        figures[name] = (curve, tar_at_far(curve, FPRS))
    figures["open"] = []
    best = against.max(axis=1)
    ordered, first = np.array(ordered), np.array(first)
    for fpir in FPIRS:
        found = 0.0
        for threshold in np.unique(ordered):
            if np.mean(best >= threshold) <= fpir:
                found = max(found, np.mean(first & (ordered >= threshold)))
        figures["open"].append(1 - found)
    return figures


def check_equal(result, expected):
    assert result.beats.tolist() == expected["beats"]
    for name in ("all", "devkit"):
        curve, points = expected[name]
        got = result.verification[name]
        assert got.points == points
        assert (got.positives, got.negatives) == (curve.positives, curve.negatives)
        # Each point of our curve is a point of the full one.
        full = set(zip(curve.far.tolist(), curve.tar.tolist(), curve.thresholds, strict=True))
        ours = got.curve
        assert set(zip(ours.fpr.tolist(), ours.tpr.tolist(), ours.thresholds, strict=True)) <= full
        assert ours.fpr[0] == 0
        assert ours.fpr[-1] == 1
    assert [p.fnir for p in result.open_set] == pytest.approx(expected["open"], abs=1e-12)
    assert all(p.fpir <= p.target for p in result.open_set)


def run(seed, **settings):
    return evaluate(*problem(seed), RANKS, FPRS, FPIRS, ScoringSettings(**settings))


def everything(result):
    """All figures of a result as plain values, to compare two bit for bit."""
    return repr(
        (
            result.rank_rates,
            [a.tolist() for a in result.cmc],
            result.beats.tolist(),
            result.open_set,
            result.confusions,
            [
                (n, v.points, v.positives, v.negatives, v.curve.fpr.tolist(), v.curve.tpr.tolist())
                for n, v in result.verification.items()
            ],
        )
    )


@pytest.fixture(params=["NumPy", "the device"])
def each_way(request, monkeypatch):
    """Scores are looked through by NumPy, as on a CPU, and by the operations of a GPU."""
    if request.param == "the device":
        for module in (exact_scores, negatives, ranks):
            monkeypatch.setattr(module, "uses_numpy", lambda scores: False)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("ties", ["mate", "against"])
@pytest.mark.parametrize("seed", SEEDS)
def test_exactly_the_brute_force(seed, ties):
    result = run(seed, ties=ties)
    expected = brute_force(*problem(seed), ties)
    check_equal(result, expected)
    beats = np.array(expected["beats"])
    assert result.rank_rates == {rank: np.mean(beats < rank) for rank in RANKS}
    ids = problem(seed)[1]
    assert result.alone == sum(np.sum(ids == i) == 1 for i in ids)


def test_the_random_problems_do_have_ties_and_lone_probes():
    tied = sum(
        brute_force(*problem(seed))["beats"] != brute_force(*problem(seed), "against")["beats"]
        for seed in SEEDS
    )
    assert tied >= 5
    assert sum(run(seed).alone > 0 for seed in SEEDS) >= 5


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_for_any_block_size(seed, block_size):
    assert everything(run(seed, block_size=block_size)) == everything(run(seed))


def test_many_probes_get_smaller_blocks():
    """Their scores, float32, and a few copies of them have to fit into a GPU's memory."""
    gpu = ScoringSettings(device=torch.device("cuda"))
    assert gpu.distractors_at_once(3530) == scoring.BLOCK_SIZES["cuda"]
    for probes in (10**5, 10**6, 10**9):
        assert probes * gpu.distractors_at_once(probes) <= max(2**26, probes)
    assert ScoringSettings(block_size=5).distractors_at_once(10**9) == 5


@pytest.mark.parametrize("score_dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("seed", range(6))
def test_the_same_whatever_the_product_is_computed_in(seed, score_dtype):
    assert everything(run(seed, score_dtype=score_dtype)) == everything(run(seed))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("score_dtype", ["fp32", "bf16"])
def test_the_same_on_cuda(score_dtype):
    there = run(4, score_dtype=score_dtype, device=torch.device("cuda"))
    assert everything(there) == everything(run(4))
    there = run_crowded(device=torch.device("cuda"))
    assert everything(there) == everything(run_crowded())


class Made(TorchDispatchMode):
    """Bytes of the largest tensor that is made meanwhile, and of all together."""

    largest = total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest, self.total = max(self.largest, made.nbytes), self.total + made.nbytes
        return made


@pytest.mark.parametrize("score_dtype", ["bf16", "fp16"])
def test_half_precision_takes_about_the_memory_of_single(score_dtype):
    """Also where half of all pairs are near enough to matter."""
    rng = np.random.default_rng(0)
    ids, size = np.repeat(np.arange(50), 2), (100, 256)
    probes = (rng.normal(size=(50, 256))[ids] + 0.5 * rng.normal(size=size)).astype(np.float32)
    distractors = rng.normal(size=(2048, 256)).astype(np.float32)
    used = {}
    for dtype in ("fp32", score_dtype):
        with Made() as used[dtype]:
            evaluate(
                probes, ids, distractors, fprs=(1e-4,), settings=ScoringSettings(score_dtype=dtype)
            )
    assert used[score_dtype].largest == used["fp32"].largest, "more than a block at once"
    assert used[score_dtype].total < 4 * used["fp32"].total


def crowded():
    """Scores within a few float32 roundings of each other: no product can tell them apart."""
    rng = np.random.default_rng(5)
    base = rng.normal(size=96)
    probes = (base + 2e-4 * rng.normal(size=(40, 96))).astype(np.float32)
    distractors = (base + 2e-4 * rng.normal(size=(700, 96))).astype(np.float32)
    ids = np.repeat(np.arange(10), 4)
    return probes, ids, distractors


def run_crowded(**settings):
    return evaluate(*crowded(), RANKS, FPRS, FPIRS, ScoringSettings(**settings))


def run_wide(**settings):
    """The points of a run that has to count negatives again."""
    before = evaluation._EXACT_CURVE, evaluation._MOST_KEPT
    evaluation._EXACT_CURVE, evaluation._MOST_KEPT = 3, 8
    try:
        result = evaluate(*crowded(), RANKS, WIDE_FPRS, FPIRS, ScoringSettings(**settings))
        return [v.points for v in result.verification.values()]
    finally:
        evaluation._EXACT_CURVE, evaluation._MOST_KEPT = before


@pytest.mark.usefixtures("each_way")
def test_exact_where_float32_is_not():
    probes, _, distractors = crowded()
    single = (unit(probes).astype(np.float32) @ unit(distractors).astype(np.float32).T)[0]
    order = np.argsort(score_matrix(probes[:1], distractors)[0])
    assert (np.diff(single[order]) < 0).any(), "float32 orders them rightly: no test"
    expected = brute_force(*crowded())
    for settings in ({}, {"block_size": 33}, {"score_dtype": "bf16"}):
        check_equal(run_crowded(**settings), expected)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("score_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("make", [crowded, lambda: problem(3), lambda: problem(4)])
def test_exact_when_little_is_kept(monkeypatch, make, score_dtype):
    """The lists of candidates are cut down and settled all the time."""
    monkeypatch.setattr(evaluation, "_EXACT_CURVE", 5)
    monkeypatch.setattr(negatives, "_WAITING", 3)
    monkeypatch.setattr(ranks, "_MANY", 0.0)
    monkeypatch.setattr(ranks, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(ranks, "_SCORES_AT_ONCE", 50)
    monkeypatch.setattr(exact_scores, "_PAIRS_AT_ONCE", 4)
    fprs, how = (0.02, 1e-3), ScoringSettings(block_size=16, score_dtype=score_dtype)
    result = evaluate(*make(), RANKS, fprs, FPIRS, how)
    expected = brute_force(*make())
    assert result.beats.tolist() == expected["beats"]
    for name in ("all", "devkit"):
        curve, _ = expected[name]
        got = result.verification[name]
        assert got.points == tar_at_far(curve, fprs)
        bulk = got.curve.fpr > 0.03
        assert bulk.any()
        for fpr, tpr, threshold in zip(
            got.curve.fpr[bulk], got.curve.tpr[bulk], got.curve.thresholds[bulk], strict=True
        ):
            # An edge of the histogram is no score: the full curve's next point above it holds.
            point = np.flatnonzero(curve.thresholds >= threshold)[-1]
            if score_dtype == "fp32" and make is not crowded:
                assert (fpr, tpr) == (curve.far[point], curve.tar[point])
            else:
                assert tpr == curve.tar[point]


@pytest.fixture
def keep_little(monkeypatch):
    """Hardly any negatives may be kept, so FPRs are found by counting again."""
    monkeypatch.setattr(evaluation, "_EXACT_CURVE", 3)
    monkeypatch.setattr(evaluation, "_MOST_KEPT", 8)
    monkeypatch.setattr(scoring, "_ROWS_AT_ONCE", 3)


WIDE_FPRS = (1.0, 0.999, 0.5, 0.3, 0.05, 0.01, 1e-3, 0.0)


def check_points(result, expected):
    for name in ("all", "devkit"):
        curve, _ = expected[name]
        assert result.verification[name].points == tar_at_far(curve, WIDE_FPRS), name


@pytest.mark.parametrize("score_dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("seed", [*SEEDS, "crowded"])
def test_tpr_at_fprs_that_more_negatives_reach_than_are_kept(keep_little, seed, score_dtype):
    parts = crowded() if seed == "crowded" else problem(seed)
    how = ScoringSettings(score_dtype=score_dtype, block_size=16)
    result = evaluate(*parts, RANKS, WIDE_FPRS, FPIRS, how)
    check_points(result, brute_force(*parts))


def test_several_trials_at_such_fprs(keep_little):
    probes, ids, distractors = problem(10)
    rng = np.random.default_rng(0)
    trials = [
        Trial(np.arange(len(ids)), np.arange(len(distractors))),
        Trial(rng.permutation(len(ids))[:-2], np.arange(0, len(distractors), 3)),
        Trial(np.arange(len(ids))[::-1], np.arange(7, 60)),
    ]
    together = evaluate_trials(probes, ids, distractors, trials, RANKS, WIDE_FPRS, FPIRS)
    for trial, result in zip(trials, together, strict=True):
        rows = trial.probes
        part = probes[rows], ids[rows], distractors[trial.distractors]
        check_points(result, brute_force(*part))


def test_far_distractors_at_such_fprs(keep_little):
    probes, ids, distractors = problem(2)
    far = 3 * len(distractors)
    trial = Trial(np.arange(len(ids)), np.arange(len(distractors)), far)
    (result,) = evaluate_trials(probes, ids, distractors, [trial], RANKS, WIDE_FPRS, FPIRS)
    near = brute_force(probes, ids, distractors)
    for name in ("all", "devkit"):
        # A quarter of the negatives is near, so a FPR is four times that of the near ones alone.
        expected = tar_at_far(near[name][0], [min(4 * fpr, 1.0) for fpr in WIDE_FPRS])
        for got, point in zip(result.verification[name].points, expected, strict=True):
            assert (got.tar, got.threshold) == (point.tar, point.threshold)
            assert got.far == pytest.approx(point.far / 4, abs=1e-12)


def test_a_wide_fpr_of_many_pairs_takes_little_memory(monkeypatch):
    monkeypatch.setattr(evaluation, "_MOST_KEPT", 100_000)
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(30), 10)
    probes = (rng.normal(size=(30, 16))[ids] + rng.normal(size=(300, 16))).astype(np.float32)
    distractors = rng.normal(size=(10_000, 16)).astype(np.float32)
    evaluate(probes, ids, distractors[:2000], fprs=(0.5,))
    tracemalloc.start()
    result = evaluate(probes, ids, distractors, fprs=(0.5,))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    scores = np.sort(score_matrix_of_many(probes, distractors))
    expected = scores[len(scores) // 2 - 1]  # the highest score that is one too many
    positives = score_matrix(probes, probes)[np.triu(ids[:, None] == ids, 1)]
    (point,) = result.verification["all"].points
    assert point.tar == np.mean(positives > expected)
    assert point.far == np.mean(scores >= point.threshold)
    assert peak < 8e7, "a million and a half scores were kept"


def test_many_trials_share_the_memory_of_one(monkeypatch):
    """Lists are kept for each choice of probes, and scores of each set of distractors."""
    monkeypatch.setattr(evaluation, "_MOST_KEPT", 100_000)
    monkeypatch.setattr(evaluation, "_EXACT_CURVE", 1000)
    monkeypatch.setattr(negatives, "_WAITING", 1000)
    rng = np.random.default_rng(3)
    ids = np.repeat(np.arange(150), 2)
    probes = rng.normal(size=(300, 8)).astype(np.float32)
    distractors = rng.normal(size=(16_000, 8)).astype(np.float32)
    clean, rows = np.arange(0, 300, 3).repeat(2) + np.tile([0, 1], 100), np.arange(16_000)
    chosen = [rows[:size] for size in range(2000, 16_001, 2000)]
    trials = [Trial(probes, part) for part in chosen for probes in (np.arange(300), clean)]
    fpr = (99_000 / (300 * 16_000),)
    evaluate_trials(probes, ids, distractors, trials[:1], fprs=fpr)
    tracemalloc.start()
    evaluate_trials(probes, ids, distractors, trials, fprs=fpr)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 160 * 100_000 + 2e7, "each list took what is there for all"


def score_matrix_of_many(left, right):
    return np.concatenate([score_matrix(left, part).ravel() for part in np.split(right, 100)])


def test_the_curve_ends_where_everything_is_accepted(monkeypatch):
    monkeypatch.setattr(evaluation, "_EXACT_CURVE", 5)
    for seed in (2, 3, 4):
        for far in (0, 50):
            probes, ids, distractors = problem(seed)
            trial = Trial(np.arange(len(ids)), np.arange(len(distractors)), far)
            (result,) = evaluate_trials(probes, ids, distractors, [trial], fprs=(1e-3,))
            curve = result.verification["all"].curve
            assert (curve.fpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 1, 1)
            assert (np.diff(curve.fpr) >= 0).all()
            assert (np.diff(curve.tpr) >= 0).all()
            assert (np.diff(curve.thresholds) < 0).all()


def test_any_number_of_trials_in_one_pass():
    probes, ids, distractors = problem(10)
    every = np.arange(len(ids))
    sizes = np.linspace(1, len(distractors), 70).astype(int)
    trials = [Trial(every, np.arange(size)) for size in sizes]
    trials += [Trial(every[1:], np.arange(size)) for size in sizes[::7]]
    together = evaluate_trials(probes, ids, distractors, trials, RANKS, FPRS, FPIRS)
    for trial, result in list(zip(trials, together, strict=True))[::6]:
        part = probes[trial.probes], ids[trial.probes], distractors[trial.distractors]
        check_equal(result, brute_force(*part))


def test_several_trials_in_one_pass_are_what_each_is_alone():
    probes, ids, distractors = problem(10)
    rng = np.random.default_rng(0)
    trials = [
        Trial(np.arange(len(ids)), np.arange(len(distractors))),
        Trial(rng.permutation(len(ids))[:-2], np.arange(0, len(distractors), 3)),
        Trial(np.arange(len(ids)), np.arange(5, len(distractors) // 2)),
        Trial(np.arange(len(ids))[::-1], np.array([2, 3, 5])),
    ]
    together = evaluate_trials(probes, ids, distractors, trials, RANKS, FPRS, FPIRS)
    for trial, result in zip(trials, together, strict=True):
        rows = trial.probes
        part = probes[rows], ids[rows], distractors[trial.distractors]
        expected = brute_force(*part)
        check_equal(result, expected)


def test_far_distractors_count_and_never_win():
    probes, ids, distractors = problem(2)
    trial = Trial(np.arange(len(ids)), np.arange(len(distractors)), far=10 * len(distractors))
    (result,) = evaluate_trials(probes, ids, distractors, [trial], RANKS, FPRS, FPIRS)
    assert result.beats.tolist() == brute_force(probes, ids, distractors)["beats"]
    assert result.verification["all"].negatives == 11 * len(ids) * len(distractors)
    assert result.distractors == 11 * len(distractors)


@pytest.mark.parametrize("kept", [3, 100_000])
def test_rows_of_no_trial_may_hold_anything(monkeypatch, kept):
    monkeypatch.setattr(evaluation, "_EXACT_CURVE", kept)
    probes, ids, distractors = problem(4)
    used = np.arange(1, len(distractors) - 1)
    trial = Trial(np.arange(len(ids)), used)
    spoilt = distractors.copy()
    spoilt[[0, -1]] = np.nan
    (found,) = evaluate_trials(probes, ids, spoilt, [trial], RANKS, FPRS, FPIRS)
    alone = evaluate(probes, ids, distractors[used], RANKS, FPRS, FPIRS)
    for kind, expected in alone.verification.items():
        curve = found.verification[kind].curve
        assert (curve.fpr.tolist(), curve.tpr.tolist()) == (
            expected.curve.fpr.tolist(),
            expected.curve.tpr.tolist(),
        )


def test_the_devkit_takes_negatives_from_the_first_hundred_probes():
    rng = np.random.default_rng(1)
    ids = np.repeat(np.arange(40), 3)
    probes = (rng.normal(size=(40, 16))[ids] + rng.normal(size=(120, 16))).astype(np.float32)
    distractors = rng.normal(size=(90, 16)).astype(np.float32)
    result = evaluate(probes, ids, distractors, RANKS, FPRS, FPIRS)
    check_equal(result, brute_force(probes, ids, distractors))
    assert result.verification["devkit"].negatives == 100 * 90
    assert result.verification["all"].negatives == 120 * 90
    assert result.verification["all"].points != result.verification["devkit"].points


def test_rates_allow_whole_numbers_of_negatives():
    from Utils.Evaluation_Utils.identification.figures import allowed

    assert allowed(1e-6, 10**8) == 100
    assert allowed(1e-6, 3530 * 10**6) == 3530
    assert allowed(1e-5, 3530 * 10**6) == 35300
    assert allowed(0.3, 10) == 3
    assert allowed(1e-3, 999) == 0


@pytest.mark.usefixtures("each_way")
def test_half_precision_files_are_scored_as_their_values_are(tmp_path):
    probes, ids, distractors = problem(4)
    np.save(tmp_path / "d.npy", distractors.astype(np.float16))
    mapped = np.load(tmp_path / "d.npy", mmap_mode="r")
    result = evaluate(probes.astype(np.float16), ids, mapped, RANKS, FPRS, FPIRS)
    check_equal(result, brute_force(probes.astype(np.float16), ids, np.array(mapped)))


@pytest.mark.usefixtures("each_way")
def test_huge_and_tiny_features_are_normalised_too():
    probes, ids, distractors = problem(4)
    scaled = distractors * np.float32(1e25)
    scaled[::2] *= np.float32(1e-45) * np.float32(1e10)
    result = evaluate(probes * np.float32(1e-20), ids, scaled, RANKS, FPRS, FPIRS)
    check_equal(result, brute_force(probes * np.float32(1e-20), ids, scaled))


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("power", [-1000, -520, -200, 200, 520, 1000])
def test_double_precision_features_of_any_scale(power):
    probes, ids, distractors = problem(4)
    expected = brute_force(probes, ids, distractors)
    probes, distractors = probes.astype(np.float64), distractors.astype(np.float64)
    scaled = np.ldexp(distractors, power)
    scaled[::3] = distractors[::3]
    check_equal(evaluate(probes, ids, scaled, RANKS, FPRS, FPIRS), expected)
    check_equal(evaluate(np.ldexp(probes, power), ids, scaled, RANKS, FPRS, FPIRS), expected)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, i, d: (p, i, d[:, :3]), "extract both with the same network"),
        (lambda p, i, d: (p, i[1:], d), "expected one for each"),
        (lambda p, i, d: (p, i, d[:0]), "distractors have shape"),
        (lambda p, i, d: (p, np.arange(len(p)), d), "no identity has two probes"),
        (lambda p, i, d: (np.where(p == p[5], np.nan, p), i, d), "probe features: row 5"),
        (lambda p, i, d: (p, i, np.where(d == d[2], np.inf, d)), "distractor features: row 2"),
        (lambda p, i, d: (p.astype(int), i, d), "floating-point"),
    ],
)
def test_what_can_not_be_judged_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        evaluate(*change(*problem(6)))


def test_the_same_where_the_caller_has_switched_gradients_off():
    with torch.inference_mode():
        found = everything(run(3))
    assert found == everything(run(3))


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from tests.Evaluation_Utils.test_identification import everything, run, run_crowded, run_wide
from Utils.processes import started_by_torchrun
def main():
    with started_by_torchrun() as processes:
        found = [everything(run(seed, processes=processes, block_size=16)) for seed in (3, 4)]
        found.append(everything(run_crowded(processes=processes, block_size=64)))
        found.append(run_wide(processes=processes, block_size=64))
        if processes.rank == 0:
            open({out!r}, "w").write(repr(found))
main()
"""


def test_the_same_under_torchrun(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out.txt"
    script.write_text(SCRIPT.format(root=str(ROOT), out=str(out)))
    run_script(*torchrun(3, script), check=True)
    alone = [everything(run(3)), everything(run(4)), everything(run_crowded()), run_wide()]
    assert out.read_text() == repr(alone)
