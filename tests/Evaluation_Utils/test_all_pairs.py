"""Every pair of a labelled set: exact against a float64 list of all pairs, bounded, the command."""

import json
import shutil
import tracemalloc

import cv2
import numpy as np
import pytest
import torch

from Config import Config
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import torchrun
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.errors import DataError, RunError
from Utils.Evaluation_Utils.all_pairs import counting
from Utils.Evaluation_Utils.all_pairs.figures import FARS, evaluate
from Utils.Evaluation_Utils.all_pairs.report import evaluate_all_pairs
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.identification import exact_scores, negatives
from Utils.Evaluation_Utils.report import evaluate_set
from Utils.Evaluation_Utils.roc import roc_curve, tar_at_far
from Utils.Evaluation_Utils.verification import combine_flip
from Utils.Pretrained_Utils import load_backbone
from Utils.processes import ALONE
from Utils.Training_Utils.start import build_state

ALL_FARS = (*FARS, 0.5, 1.0)


def problem(seed):
    """Features with ties, copies and rows of zeros; identities of one image; groups, or None."""
    rng = np.random.default_rng(seed)
    count, dim = int(rng.integers(4, 90)), int(rng.choice([2, 3, 8, 64]))
    ids = rng.integers(0, max(2, count // int(rng.integers(1, 6))), count)
    ids[:3] = [0, 0, 1]
    features = rng.normal(size=(count, dim))
    features += rng.choice([0, 1, 3]) * rng.normal(size=(ids.max() + 1, dim))[ids]
    if seed % 3 == 0:
        features = np.round(features)
    copied, at = rng.integers(0, count, (2, count // 3))
    features[at] = 2 * features[copied]
    features[rng.integers(0, count, 3)] = 0
    dtype = (np.float32, np.float64, np.float16)[seed % 3]
    groups = np.array(list("abc"))[rng.integers(0, 3, count)] if seed % 2 else None
    return features.astype(dtype), ids, groups


def all_pairs_of(features, ids):
    """(i, j, float64 scores, whether of one identity) of every pair i < j."""
    rows = features.astype(np.float64)
    lengths = np.sqrt((rows**2).sum(1, keepdims=True))
    unit = rows / np.where(lengths > 0, lengths, np.inf)
    i, j = np.triu_indices(len(ids), 1)
    scores = np.array([(unit[a] * unit[b]).sum() for a, b in zip(i, j, strict=True)])
    return i, j, scores, ids[i] == ids[j]


def figures_of(scores, same, threshold):
    """(points, FARs that are not measured, FMR and FNMR at a threshold), from lists of scores."""
    impostor, genuine = scores[~same], scores[same]
    measured = [far for far in ALL_FARS if len(impostor) * far >= 1 and len(genuine)]
    points = tar_at_far(roc_curve(scores, same), measured) if measured else ()
    return (
        points,
        tuple(far for far in ALL_FARS if far not in measured),
        np.mean(impostor >= threshold) if len(impostor) else None,
        pytest.approx(np.mean(genuine < threshold)) if len(genuine) else None,
    )


@pytest.mark.parametrize("seed", range(12))
def test_all_figures_are_those_of_a_list_of_every_pair(seed, monkeypatch):
    if seed % 5 == 4:  # a GPU's way of counting
        for module in (counting, exact_scores, negatives):
            monkeypatch.setattr(module, "uses_numpy", lambda scores: False)
    features, ids, groups = problem(seed)
    i, j, scores, same = all_pairs_of(features, ids)
    names = np.array([""] * len(ids)) if groups is None else groups
    group = np.where(names[i] == names[j], names[i], "across")
    chosen = next((g for g in "abc" if 0 < same[group == g].sum() < (group == g).sum()), "")
    chosen = chosen if seed % 4 == 1 else ""
    given = [float(scores[seed]), 0.3, np.inf]
    result = evaluate(
        *(features, ids, groups, ALL_FARS),
        group_far=(0.1, 0.01, 1e-6)[seed % 3],
        threshold_group=chosen,
        thresholds=given,
        block_size=(1, 3, 16, 0)[seed % 4],
    )
    inside = group == chosen if chosen else np.ones(len(scores), bool)
    (one,) = tar_at_far(roc_curve(scores[inside], same[inside]), [result.one.target])
    assert result.one == one
    sets = {"": (result.every, np.ones(len(scores), bool))}
    sets |= {name: (own, group == name) for name, own in result.groups.items()}
    assert set(result.groups) == (set() if groups is None else set(groups))
    for found, own in sets.values():
        assert (found.genuine, found.impostor) == (same[own].sum(), (~same[own]).sum())
        figures = (found.points, found.not_measured, found.fmr, found.fnmr)
        assert figures == figures_of(scores[own], same[own], one.threshold)
    if groups is not None:
        across = figures_of(scores[group == "across"], same[group == "across"], one.threshold)
        assert (result.across.fmr, result.across.fnmr) == across[2:]
    for threshold, rates in zip(given, result.given, strict=True):
        assert rates == (np.mean(scores[~same] >= threshold), np.mean(scores[same] >= threshold))
    # Each image is searched for among all others; each identity's accepted genuine pairs.
    first = []
    for image in range(len(ids)):
        own = (i == image) | (j == image)
        if (own & same).any():
            first.append(scores[own & same].max() >= scores[own & ~same].max())
    assert result.found_first.tolist() == first
    for number, person in enumerate(np.unique(ids)):
        own = scores[same & (ids[i] == person)]
        accepted = [(own >= point.threshold).sum() for point in result.every.points]
        assert result.hits[number].tolist() == [len(own), *accepted]
    # The curve for pictures is of products, in bins: no point is further from the true curve.
    curve = result.curve
    for k in range(1, len(curve.far)):
        rates = [np.mean(scores[~same] >= curve.thresholds[k] + shift) for shift in (1e-4, -1e-4)]
        assert rates[0] <= curve.far[k] <= rates[1]
    assert (curve.far[-1], curve.tar[-1]) == (1, 1)


def test_memory_is_bounded_for_many_genuine_pairs():
    """Of two people's 3,000 photos, the scores of genuine pairs alone would be 18 MB."""
    features = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    ids = np.arange(3000) % 2
    evaluate(features[:100], ids[:100], block_size=64)  # imports
    tracemalloc.start()
    result = evaluate(features, ids, block_size=128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.every.genuine == 2 * 1500 * 1499 // 2
    assert peak < 14e6  # 6 MB of which count the products in bins


def test_what_can_not_be_evaluated_is_said():
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="4 images there is only one identity"):
        evaluate(features, [7, 7, 7, 7])
    with pytest.raises(DataError, match="no identity with two images"):
        evaluate(features, [0, 1, 2, 3])
    with pytest.raises(DataError, match="900 images are of 300 groups"):
        evaluate(np.eye(900), np.arange(900) // 2, [str(n // 3) for n in range(900)])
    for group, counts in (("x", "0 genuine and 0 impostor"), ("b", "1 genuine and 0 impostor")):
        with pytest.raises(DataError, match=f"'{group}'.*{counts} pairs.*The groups are: a, b"):
            evaluate(features, [0, 0, 1, 1], list("aabb"), threshold_group=group)
    features[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2 holds NaN"):
        evaluate(features, [0, 0, 1, 1])


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = Config(input_size=(32, 32), feature_dim=16)
    state = build_state(config, 2, 1, torch.device("cpu"), None)
    path = tmp_path_factory.mktemp("checkpoint") / "net.pt"
    torch.save(state.checkpoint(config, 10, ALONE), path)
    return path


@pytest.fixture
def command(checkpoint, tmp_path):
    """A function that runs the command, and the results file of a set named train."""
    flags = ("--all_pairs", "--checkpoint", checkpoint, "--output", tmp_path / "out")
    flags = (*flags, "--device", "cpu", "--num_workers", 0)

    def run(*more, launch=("-m", "Utils.Evaluation_Utils"), **how):
        return run_script(*launch, *flags, *more, **how)

    return run, tmp_path / "out" / "train.json"


def test_the_command_prints_and_writes_the_figures_of_a_folder(
    command, checkpoint, tiny_faces, tmp_path
):
    run, results = command
    groups = tmp_path / "groups.txt"
    photos = sorted(tiny_faces.train.glob("*/*"))
    names = [str(photo.relative_to(tiny_faces.train)) for photo in photos]
    group = np.array(["west" if name < "person 3" else "east" for name in names])
    groups.write_text("".join(f"{n}\t{g}\n" for n, g in zip(names, group, strict=True)))
    flags = ("--data", tiny_faces.train, "--groups", groups, "--group_far", 0.05)
    shown = run(*flags, check=True).stdout
    values = json.loads(results.read_text())
    figures, of_groups = values["results"]["cosine"], values["groups"]["cosine"]
    # The same from the library's embeddings, pair by pair.
    images = ImageFiles([str(photo) for photo in photos])
    both = embed(load_backbone(checkpoint), images, torch.device("cpu"), num_workers=0)
    i, j, scores, same = all_pairs_of(combine_flip(*both), ids := np.arange(24) // 4)
    points = tar_at_far(roc_curve(scores, same), [0.1, 0.01])
    assert f"every pair of 24 images of 6 identities: {same.sum()} genuine and 240 imp" in shown
    for found, point in zip(figures["operating_points"], points, strict=True):
        assert (found["far_target"], found["far"], found["tar"]) == (
            *(point.target, point.far, point.tar),
        )
        assert found["threshold"] == pytest.approx(point.threshold, abs=1e-6)
        low, high = figures["intervals"]["tar_at_far"][str(point.target)]
        assert 0 <= low <= point.tar <= high <= 1
        assert f"{100 * point.tar:.2f} %" in shown
    assert figures["not_measured"] == [1e-3, 1e-4, 1e-5, 1e-6]
    assert "not measured: FAR 0.001, 0.0001, 1e-05, 1e-06, less than one of 240 imp" in shown
    (one,) = tar_at_far(roc_curve(scores, same), [0.05])
    for name, found in of_groups["groups"].items():
        own = (group[i] == name) & (group[j] == name)
        assert (found["genuine"], found["impostor"]) == (18, 48)
        assert found["fmr"] == np.mean(scores[own & ~same] >= one.threshold)
        assert found["fnmr"] == pytest.approx(np.mean(scores[own & same] < one.threshold))
    assert of_groups["across"]["impostor"] == 144
    assert len(list(results.parent.glob("train_*.png"))) == 2
    # Features are used again. Under torchrun, and at its own thresholds, the figures are the same.
    launch = torchrun(2, "Utils/Evaluation_Utils/__main__.py")
    again = ("--threshold_from", shutil.copy(results, tmp_path / "before.json"))
    assert "all there" in run(*flags, *again, check=True).stdout
    at = json.loads(results.read_text())["at_thresholds"]["results"]["cosine"]
    assert [(p["far"], p["tar"]) for p in at] == [(p.far, p.tar) for p in points]
    shutil.rmtree(results.parent)
    run(*flags, launch=launch, check=True)
    assert json.loads(results.read_text()) == values
    assert len(ids) == values["images"]


def test_lists_archives_and_the_other_score(command, tiny_faces, tmp_path):
    run, results = command
    run("--data", tiny_faces.train, check=True)
    folder = json.loads(results.read_text())
    archive = shutil.make_archive(str(tmp_path / "train"), "zip", tiny_faces.train)
    for flags in (
        ("--data", tiny_faces.train, "--pairs", tiny_faces.train_list),
        ("--data", archive),
    ):
        run(*flags, check=True)
        assert json.loads(results.read_text())["results"] == folder["results"]
    run("--data", tiny_faces.train, "--protocol", "insightface", check=True)
    (figures,) = json.loads(results.read_text())["results"].values()
    # Minus the squared distance of normalised features.
    assert all(-4 <= point["threshold"] <= 0 for point in figures["operating_points"])


def test_features_used_again_keep_flaws_and_another_set_of_one_name_keeps_its_results(
    checkpoint, tiny_faces, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the default folder for results is in it
    photos = tmp_path / "one/images"
    shutil.copytree(tiny_faces.train, photos)
    encoded = cv2.imencode(".jpg", cv2.imread(str(photos / "person 0/0.png")))[1]
    flawed = photos / "person 0/9.jpg"
    flawed.write_bytes(encoded.tobytes()[:-2])
    settings = {"checkpoint": str(checkpoint), "device": "cpu", "num_workers": 0}
    config = Config(**settings, data=str(photos), all_pairs=True)
    flaws = []
    for _ in range(2):
        folder = evaluate_all_pairs(config).folder
        flaws += json.loads((folder / "images.json").read_text())["flaws"]
    assert flaws == 2 * [f"{flawed}: a JPEG without its end marker"]
    (tmp_path / "two").mkdir()
    other = shutil.copytree(tiny_faces.lfw, tmp_path / "two/images")
    pairs = str(tiny_faces.lfw_pairs)
    before = (folder / "images.json").read_bytes()
    for evaluation, listed in ((evaluate_all_pairs, ""), (evaluate_set, pairs)):
        with pytest.raises(RunError, match=r"images.json has the results of other data, .*one/im"):
            evaluation(Config(**settings, data=str(other), pairs=listed))
    assert (folder / "images.json").read_bytes() == before
    kept = evaluate_set(Config(**settings, data=str(other), pairs=pairs, output="another"))
    assert (kept.folder / "images.json").is_file()


def test_mistakes_end_in_one_paragraph(command, tiny_faces, tmp_path):
    run, _ = command
    groups = tmp_path / "groups.txt"
    groups.write_text("person 0/0.png\twest\n")
    lone = tmp_path / "lone"
    shutil.copytree(tiny_faces.train / "person 0", lone / "person 0")
    data = ("--data", tiny_faces.train)
    for flags, said in (
        (("--data", lone), ("4 images there is only one identity",)),
        ((*data, "--groups", groups), ("no group for 23 of the 24 images", "person 0/1.png")),
        ((*data, "--threshold_group", "west"), ("threshold_group is 'west'", "--groups FILE")),
        ((*data, "--quality", "norm"), ("quality is 'norm'", "with all_pairs")),
        ((*data, "--pairs", tiny_faces.lfw_pairs), (str(tiny_faces.lfw_pairs),)),
    ):
        assert_one_paragraph(run(*flags), *said)
    with pytest.raises(DataError, match=r"no pairs.*--all_pairs` evaluates every pair"):
        open_verification_set(tiny_faces.train)
