"""People of a test set in a training set: the arithmetic, LFW's people found, names, lists."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import open_training_set
from Utils.Evaluation_Utils.overlap import nearest
from Utils.Evaluation_Utils.overlap.nearest import (
    class_centres,
    class_sums,
    measure_scale,
    nearest_classes,
)
from Utils.Evaluation_Utils.overlap.people import open_tested, same_names

OVERLAP = "Utils.Evaluation_Utils.overlap"
CPU = torch.device("cpu")


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def clouds(rng, people, images, spread=0.6, dim=64):
    """(features, labels): people around random directions."""
    labels = rng.permutation(np.repeat(np.arange(people), images))
    centres = unit(rng.normal(size=(people, dim)))
    noise = rng.normal(size=(len(labels), dim)) / np.sqrt(dim)
    return unit(centres[labels] + spread * noise).astype(np.float32), labels


def test_nearest_classes_are_those_of_all_products(monkeypatch):
    rng = np.random.default_rng(0)
    features, labels = clouds(rng, 30, 4)
    features[labels == 7] = 0  # nobody could read these
    centres = np.stack([features[labels == c].sum(0) for c in range(30)])
    centres = centres / np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    cosines = features @ centres.T
    order = np.argsort(-cosines, axis=1)[:, :5]
    for rows, cells in ((1 << 16, 1 << 24), (7, 40)):
        monkeypatch.setattr(nearest, "ROWS", rows)
        monkeypatch.setattr(nearest, "_CELLS", cells)
        found = class_centres(class_sums(features.astype(np.float16), labels, 30))
        np.testing.assert_allclose(found, centres, atol=1e-3)
        classes, values = nearest_classes(features, centres, 5, CPU)
        there = labels != 7
        np.testing.assert_array_equal(classes[there], order[there])
        np.testing.assert_allclose(values, np.take_along_axis(cosines, order, 1), atol=1e-6)
        others = nearest_classes(features, centres, 1, CPU, labels)[0][:, 0]
        masked = np.where(np.arange(30) == labels[:, None], -2, cosines)
        np.testing.assert_array_equal(others[there], masked.argmax(1)[there])


def test_as_many_strangers_are_beyond_the_threshold_as_the_far_says():
    rng = np.random.default_rng(1)
    features, labels = clouds(rng, 400, 5)
    sums = class_sums(features, labels, 400)
    strangers, _ = clouds(rng, 3000, 1)
    cosines = nearest_classes(strangers, class_centres(sums), 1, CPU)[1][:, 0]
    for far in (0.1, 0.02):
        scale = measure_scale(features, labels, sums, far, CPU)
        assert far / 2.5 < np.mean(cosines >= scale.threshold) < far * 2.5
        given = measure_scale(features, labels, sums, 0.5, CPU, scale.threshold)
        assert given.far == pytest.approx(far)
    own = [features[i] @ unit(sums[labels[i]] - features[i]) for i in range(50)]
    np.testing.assert_allclose(scale.same[:50], own, atol=1e-5)
    assert scale.missed == pytest.approx(np.mean(scale.same < scale.threshold))
    # A network for which all faces are alike: no cosine says anything, and none is above 1.
    crowd = unit(features + 9 * unit(np.ones(64))).astype(np.float32)
    blind = measure_scale(crowd, labels, class_sums(crowd, labels, 400), 1e-6, CPU)
    assert scale.threshold < blind.threshold <= 1
    # One person in 20 is in the set under two names: their images are near another class.
    twice = np.where((labels < 40) & (rng.random(len(labels)) < 0.5), labels + 1000, labels)
    twice = np.unique(twice, return_inverse=True)[1]
    again = measure_scale(features, twice, class_sums(features, twice, twice.max() + 1), 0.02, CPU)
    assert np.quantile(again.other, 0.98) > scale.threshold + 0.1
    assert again.threshold == pytest.approx(scale.threshold, abs=0.03)


@pytest.fixture(scope="module")
def two_sets(shared_data, tmp_path_factory):
    """(folder, the training folders of people of the test set): train/00..79, test/<name>."""
    root = tmp_path_factory.mktemp("two sets")
    people = {}
    for file in sorted((shared_data / "lfw_half/images").glob("*/*.jpg")):
        people.setdefault(file.parent.name, []).append(file)
    several = [name for name, files in people.items() if len(files) >= 4][:80:4]
    others = [name for name, files in people.items() if len(files) in (2, 3)][:60]
    strangers = [name for name, files in people.items() if len(files) == 1][:30]
    shared = []
    for number, name in enumerate(sorted(several + others)):
        files = people[name][2:5] if name in several else people[name]
        shared += [f"{number:02d}"] if name in several else []
        for file in files:
            target = root / f"train/{number:02d}" / f"{file.stem[-4:]}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    for name in (*several, *strangers):
        (root / "test" / name).mkdir(parents=True)
        for file in people[name][:2]:
            shutil.copyfile(file, root / "test" / name / file.name)
    return root, shared


def test_people_of_a_test_set_are_found_and_the_clean_list_lacks_them(
    two_sets, shared_data, tmp_path
):
    root, shared = two_sets
    weights = shared_data / "checkpoints/mobilefacenet_xiaoccer_068.ckpt"
    command = ("-m", OVERLAP, root / "train", root / "test", "--checkpoint", weights)
    flags = ("--output", tmp_path, "--num_workers", "0", "--device", "cpu")
    run = run_script(*command, *flags, check=True, painted=True)
    with open(tmp_path / "overlap.csv") as file:
        rows = list(csv.DictReader(file))
    found = {row["class"].split("/")[0] for row in rows}
    assert len(found & set(shared)) >= 0.85 * len(shared)
    assert len(found - set(shared)) <= 3
    assert [float(row["cosine"]) for row in rows] == sorted(
        (float(row["cosine"]) for row in rows), reverse=True
    )
    assert rows[0]["test_image"] in run.stdout
    clean = open_training_set(root / "train", tmp_path / "clean_list.txt")
    kept = {clean.name(i).split("/")[0] for i in range(len(clean))}
    assert kept == {path.name for path in (root / "train").iterdir()} - found
    with open(tmp_path / "nearest.csv") as file:
        assert len(list(csv.DictReader(file))) == 20 * 2 + 30
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["identities in both"] == len(found)
    assert report["test people"] == 20 + 30
    for picture in ("overlap.png", "scores.png"):
        assert cv2.imread(str(tmp_path / picture)).std() > 20
    again = run_script(*command, *flags, "--threshold", "0.99", check=True)
    assert "in both sets: 0 of" in again.stdout
    assert "all there" in again.stdout
    assert len(open_training_set(root / "train", tmp_path / "clean_list.txt")) == len(
        open_training_set(root / "train")
    )


def test_names_that_both_sets_have_are_found_without_a_network(two_sets, tmp_path):
    root, _ = two_sets
    names = sorted(path.name for path in (root / "test").iterdir())[:3]
    train = tmp_path / "train"
    for folder in ("m.0abc1", "Somebody Else", names[0], names[1].replace("_", " ").lower()):
        shutil.copytree(root / "train/00", train / folder)
    run = run_script("-m", OVERLAP, train, root / "test", "--output", tmp_path / "out", check=True)
    assert "in both sets: 2 of 4 identities (by name 2)" in run.stdout
    clean = open_training_set(train, tmp_path / "out/clean_list.txt")
    kept = {clean.name(i).split("/")[0] for i in range(len(clean))}
    assert kept == {"m.0abc1", "Somebody Else"}


def test_pictures_that_both_sets_have_are_found_without_a_network(two_sets, tmp_path):
    root, _ = two_sets
    train = tmp_path / "train"
    for folder in ("00", "01", "02", "03"):
        shutil.copytree(root / "train" / folder, train / folder)
    stolen = sorted((root / "test").glob("*/*.jpg"))[5]
    copy = cv2.resize(cv2.imread(str(stolen)), (80, 80), interpolation=cv2.INTER_AREA)
    for name in ("01/copy.jpg", "03/again.jpg"):
        cv2.imwrite(str(train / name), copy, [cv2.IMWRITE_JPEG_QUALITY, 70])
    (train / "02/damaged.jpg").write_bytes(b"no image")
    command = ("-m", OVERLAP, train, root / "test", "--output", tmp_path / "out", "--pictures")
    run = run_script(*command, "--num_workers", "0", check=True)
    assert "in both sets: 2 of 4 identities (by name 0, by picture 2)" in run.stdout
    with open(tmp_path / "out/overlap.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["why"]) for row in rows] == [("1", "picture"), ("3", "picture")]
    assert {row["test_image"] for row in rows} == {f"{stolen.parent.name}/{stolen.name}"}


def test_matched_pairs_and_folders_say_who_is_in_a_verification_set(shared_data):
    lfw = shared_data / "lfw_half"
    tested = open_tested(lfw / "images", lfw / "pairs.txt")
    folders = [name.split("/")[0] for name in tested.names]
    assert len(np.unique(tested.people)) == len(set(folders))
    assert {(a, b) for a, b in zip(folders, tested.people.tolist(), strict=True)} == {
        (a, int(tested.people[folders.index(a)])) for a in folders
    }
    packed = open_tested(shared_data / "formats/lfw_small.bin")
    assert 80 < len(np.unique(packed.people)) < len(packed)
    data = open_training_set(lfw / "images")
    assert {name for name in folders if "_" in name} == {
        data.name(int(np.argmax(data.labels == label))).split("/")[0]
        for label in same_names(data, tested)
    }


def test_what_cannot_be_used_is_named(two_sets):
    root, _ = two_sets
    command = ("-m", OVERLAP, root / "train", root / "test")
    assert_one_paragraph(run_script(*command, "--far", "0"), "far", "above 0")
    assert_one_paragraph(run_script(*command, "--threshold", "2"), "threshold", "from -1 to 1")
    assert_one_paragraph(run_script(*command[:-1], root / "none"), "none does not exist")
