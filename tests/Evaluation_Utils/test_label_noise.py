"""Wrong labels: the geometry, a trained network's report, the list without the worst."""

import csv
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from Backbone import build_backbone
from Config import Config, ConfigError
from tests.conftest import _write_face, assert_one_paragraph, run_script
from tests.scripts.test_training import only_run
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import CheckpointError, DataError
from Utils.Evaluation_Utils import label_noise
from Utils.Evaluation_Utils.clean_list import leave_out_worst, rank, write_report
from Utils.Evaluation_Utils.embedding import embed
from Utils.Evaluation_Utils.label_noise import _class_weights, angles_to_centres, measure
from Utils.Pretrained_Utils.load import build, read_weights
from Utils.Training_Utils.trainer import Trainer

PEOPLE, PHOTOS = 20, 10


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.fixture
def clouds():
    """(features, labels) of classes of 1 to 12 images around random directions, in any order."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), np.arange(1, 13))
    rng.shuffle(labels)
    centres = unit(rng.normal(size=(12, 16)))
    features = unit(centres[labels] + 0.2 * rng.normal(size=(len(labels), 16)))
    return features.astype(np.float32), labels


def test_angles_are_those_to_the_geometric_median_of_the_others(clouds):
    features, labels = clouds
    angles = angles_to_centres(features, labels)
    for label in range(3, 12):
        members = np.flatnonzero(labels == label)
        x = features[members].astype(np.float64)
        median = minimize(
            lambda m, x=x: np.linalg.norm(x - m, axis=1).sum(), x.mean(0), tol=1e-12
        ).x
        weights = 1 / np.linalg.norm(x - median, axis=1)
        for place, image in enumerate(members):
            others = np.delete(weights, place) @ np.delete(x, place, axis=0)
            wanted = np.degrees(np.arccos(unit(others) @ x[place]))
            assert angles[image] == pytest.approx(wanted, abs=0.2)
    (alone,) = np.flatnonzero(labels == 0)
    assert np.isnan(angles[alone])
    first, second = np.flatnonzero(labels == 1)
    between = np.degrees(np.arccos(features[first] @ features[second]))
    assert angles[[first, second]] == pytest.approx([between] * 2, abs=1e-2)


def test_blocks_of_any_size_give_the_same_angles(clouds, monkeypatch, tmp_path):
    features, labels = clouds
    whole = angles_to_centres(features, labels)
    np.save(tmp_path / "features.npy", features)
    monkeypatch.setattr(label_noise, "ROWS", 9)  # fewer than the largest class has
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    np.testing.assert_allclose(angles_to_centres(mapped, labels), whole, atol=1e-3)


def test_a_centre_stays_with_the_majority_where_a_mean_does_not():
    rng = np.random.default_rng(1)
    right, wrong = unit(rng.normal(size=(2, 64)))
    features = unit(
        np.concatenate(
            (right + 0.02 * rng.normal(size=(11, 64)), wrong + 0.02 * rng.normal(size=(9, 64)))
        )
    )
    angles = angles_to_centres(features, np.zeros(20, int))
    assert angles[:11].max() < 25
    assert angles[11:].min() > 60
    assert np.degrees(np.arccos(unit(features.mean(0)) @ right)) > 35
    assert rank(angles, np.zeros(20, int)).typical[0] < 11


def test_weights_of_another_number_of_classes_are_refused(tiny_faces):
    data = open_training_set(tiny_faces.train, tiny_faces.train_list)
    with pytest.raises(CheckpointError, match=r"6×4.*has 7×4"):
        _class_weights(torch.zeros(7, 4), data, 4)


@pytest.fixture(scope="module")
def noisy_run(tmp_path_factory):
    """(checkpoint, images, list, images whose label is wrong) of a network trained with one label
    in ten wrong."""
    root = tmp_path_factory.mktemp("noisy")
    rng = np.random.default_rng(0)
    names = [f"{person:02d}/{photo}.png" for person in range(PEOPLE) for photo in range(PHOTOS)]
    for person in range(PEOPLE):
        pattern = rng.integers(0, 256, (4, 4, 3))
        for photo in range(PHOTOS):
            _write_face(root / "images" / f"{person:02d}/{photo}.png", pattern, rng)
    labels = np.repeat(np.arange(PEOPLE), PHOTOS)
    wrong = rng.choice(len(labels), len(labels) // 10, replace=False)
    labels[wrong] = (labels[wrong] + rng.integers(1, PEOPLE, len(wrong))) % PEOPLE
    lines = [f"{name}  {label}\n" for name, label in zip(names, labels, strict=True)]
    (root / "list.txt").write_text("".join(lines))
    config = Config(
        **{"train_dataset": "Noisy", "train_dataset_path": str(root / "images")},
        **{"train_file_list": str(root / "list.txt"), "input_size": (32, 32), "feature_dim": 32},
        backbone="SmallNet",
        **{"batch_size": 20, "total_epoch": 8, "milestones": (6,), "num_workers": 0},
        **{"use_visdom": False, "device": "cpu", "save_dir": str(root / "runs")},
    )
    Trainer(config).run()
    return only_run(root / "runs") / "checkpoints/last.pt", root, wrong


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--device", "gpu"], "expected auto, cpu, cuda or cuda:N"),
        (["--batch_size", "0"], "setting batch_size is 0: it must be at least 1"),
        (["--num_workers", "-1"], "setting num_workers is -1: it must be at least 0"),
    ],
)
def test_settings_out_of_range_are_named(noisy_run, monkeypatch, tmp_path, flags, said):
    checkpoint, root, _ = noisy_run
    words = ["label_noise", checkpoint, root / "images", "--output", tmp_path, *flags]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(ConfigError, match=said):
        label_noise.main()


def suspected(angles, wrong):
    """The share of the wrong labels among the 15 % furthest from their centres."""
    worst = np.argsort(-np.asarray(angles))[: round(0.15 * len(angles))]
    return len(set(worst.tolist()) & set(wrong.tolist())) / len(wrong)


def test_wrong_labels_lie_far_from_the_weights_of_the_head(noisy_run, tmp_path):
    checkpoint, root, wrong = noisy_run
    data = open_training_set(root / "images", root / "list.txt")
    weights = read_weights(checkpoint)
    head = _class_weights(weights.head, data, 32)
    angles, _ = measure(data, build(weights), tmp_path, torch.device("cpu"), class_weights=head)
    assert suspected(angles, wrong) >= 0.8
    straight, mirrored = embed(build(weights), [data[0][0]], torch.device("cpu"))
    cosine = unit(straight[0] + mirrored[0]) @ unit(head[data.labels[0]])
    assert angles[0] == pytest.approx(np.degrees(np.arccos(cosine)), abs=0.1)  # kept as fp16


def test_wrong_labels_are_among_the_most_suspicious(noisy_run, tmp_path):
    checkpoint, root, wrong = noisy_run
    run = run_script(
        *("-m", "Utils.Evaluation_Utils.label_noise", checkpoint, root / "images"),
        *("--file_list", root / "list.txt", "--output", tmp_path, "--device", "cpu"),
        *("--num_workers", "0"),
        check=True,
        painted=True,
    )
    with open(tmp_path / "images.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == PEOPLE * PHOTOS
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    angles = [float(row["angle"]) for row in rows]
    assert angles == sorted(angles, reverse=True)
    by_image = {int(row["image"]): float(row["angle"]) for row in rows}
    assert suspected([by_image[i] for i in range(len(rows))], wrong) >= 0.8
    assert rows[0]["name"] in run.stdout
    picture = cv2.imread(str(tmp_path / "worst.png"))
    assert picture.std() > 20
    assert json.loads((tmp_path / "report.json").read_text())["images"] == len(rows)
    with open(tmp_path / "identities.csv") as file:
        identities = list(csv.DictReader(file))
    by_label = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(float(row["angle"]))
    for row in identities:
        own = by_label[row["label"]]
        assert float(row["median angle"]) == pytest.approx(np.median(own), abs=0.02)
        assert float(row["largest angle"]) == pytest.approx(max(own), abs=0.02)
        assert int(row["images"]) == len(own)

    target = tmp_path / "clean.txt"
    text = leave_out_worst(tmp_path, target, share=0.15)
    assert f"left out: {round(0.15 * len(rows))} images, 0 identities" in text
    names, labels, *_ = parse_list(target)
    kept = {name: int(label) for name, label in zip(names, labels, strict=True)}
    assert kept == {row["name"]: int(row["label"]) for row in rows[round(0.15 * len(rows)) :]}
    assert list(names) == sorted(names), "not in the order of the set"
    open_training_set(root / "images", target)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_is_listed_and_counts_for_nothing(
    tiny_faces, tmp_path, num_workers
):
    shutil.copytree(tiny_faces.train, tmp_path / "train")
    whole = open_training_set(tmp_path / "train", tiny_faces.train_list)
    damaged = 5
    (tmp_path / "train" / whole.name(damaged)).write_bytes(b"no image")
    rest = np.delete(np.arange(len(whole)), damaged)
    without = TrainingSet(whole.images, whole.labels[rest], whole.source, rest)
    torch.manual_seed(0)
    backbone = build_backbone("SmallNet", 16, (32, 32)).eval()
    for again in range(2):  # the second time from the file
        angles, unreadable = measure(
            *(whole, backbone, tmp_path / "features", torch.device("cpu"), 4, num_workers)
        )
        assert unreadable.tolist() == [damaged], again
    assert np.isnan(angles[damaged])
    expected, none = measure(without, backbone, tmp_path / "other", torch.device("cpu"))
    assert none.tolist() == []
    np.testing.assert_allclose(angles[rest], expected, atol=0.05)
    text = write_report(whole, angles, unreadable, tmp_path, {})
    assert f"images that can't be read: 1\n{whole.name(damaged)}" in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images that can't be read"] == [whole.name(damaged)]
    with open(tmp_path / "identities.csv") as file:
        rows = {int(row["label"]): row for row in csv.DictReader(file)}
    own = angles[(whole.labels == whole.labels[damaged]) & ~np.isnan(angles)]
    found = rows[whole.labels[damaged]]
    assert float(found["median angle"]) == pytest.approx(np.median(own), abs=0.02)
    assert found["typical image"] != whole.name(damaged)
    (tmp_path / "train" / whole.name(damaged)).write_bytes(whole.encoded(damaged + 1))
    with pytest.raises(
        DataError, match="another value of `images`"
    ):  # no old features for a new image
        measure(whole, backbone, tmp_path / "features", torch.device("cpu"))


def write_images(path, rows):
    with open(path / "images.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("rank", "angle", "label", "image", "name"))
        writer.writerows((rank, *row) for rank, row in enumerate(rows, 1))


def test_a_clean_list_numbers_the_labels_anew_and_keeps_lonely_images(tmp_path):
    rows = [(90, 1, 2, "c"), (60, 0, 0, "a, b"), (60.01, 0, 1, "b"), (50, 2, 3, "d"),
            ("nan", 3, 4, "e")]  # fmt: skip
    write_images(tmp_path, rows)
    leave_out_worst(tmp_path, tmp_path / "list.txt", max_angle=60)
    assert (tmp_path / "list.txt").read_text() == "a, b  0\nd  1\ne  2\n"
    leave_out_worst(tmp_path, tmp_path / "list.txt", share=0.2)
    assert (tmp_path / "list.txt").read_text() == "a, b  0\nb  0\nd  1\ne  2\n"
    leave_out_worst(tmp_path, tmp_path / "list.txt", share=0.99)
    assert (tmp_path / "list.txt").read_text() == "e  0\n"
    write_images(tmp_path, [(90, 0, 0, "a")])
    with pytest.raises(DataError, match=r"max_angle 60 .*nothing is written"):
        leave_out_worst(tmp_path, tmp_path / "none.txt", max_angle=60)
    with pytest.raises(DataError, match=r"share 0.9 .*nothing is written"):
        leave_out_worst(tmp_path, tmp_path / "none.txt", share=0.9)


def test_a_report_that_cannot_be_used_is_named(tmp_path):
    command = ("-m", "Utils.Evaluation_Utils.clean_list", tmp_path, tmp_path / "list.txt")
    assert_one_paragraph(run_script(*command, "--share", "0.1"), "run label_noise")
    write_images(tmp_path, [(90, 0, 0, "a"), ("wide", 0, 1, "b")])
    with pytest.raises(DataError, match="line 3"):
        leave_out_worst(tmp_path, tmp_path / "list.txt", share=0.1)
    for label, name in ((10**30, "b"), (0, "b" * 200_000)):
        write_images(tmp_path, [(90, 0, 0, "a"), (80, label, 1, name)])
        with pytest.raises(DataError, match="line 3 is no row"):
            leave_out_worst(tmp_path, tmp_path / "list.txt", share=0.1)
    write_images(tmp_path, [(90, 0, 0, "a"), (80, 0, 2, "b")])
    with pytest.raises(DataError, match="lacks some"):
        leave_out_worst(tmp_path, tmp_path / "list.txt", share=0.1)
    with pytest.raises(ConfigError, match="one of --max_angle and --share"):
        leave_out_worst(tmp_path, tmp_path / "list.txt")
    for out_of_range in ({"share": 1.0}, {"max_angle": -1.0}, {"max_angle": float("nan")}):
        with pytest.raises(ConfigError, match=next(iter(out_of_range))):
            leave_out_worst(tmp_path, tmp_path / "list.txt", **out_of_range)
