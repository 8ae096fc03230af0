"""Data sets of photographs that are aligned before they are trained with or evaluated on."""

import fcntl
import json
import os
import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Config import Config
from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils.alignment import mtcnn
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.transform import TEMPLATE, similarity, warp
from Utils.Datasets_Utils.demo.loose import still
from Utils.Datasets_Utils.demo.people import random_identity
from Utils.Datasets_Utils.images import read_image
from Utils.Evaluation_Utils.inputs import find_benchmark, open_benchmark
from Utils.Training_Utils.data import open_training_data


class Photographs:
    """Drawn photographs of four people, three of each, a list of their points, and pairs. The last
    one is not in the list."""

    def __init__(self, root: Path) -> None:
        self.images, self.points, self.pairs = root / "set", root / "points.txt", root / "pairs.txt"
        rng = np.random.default_rng(3)
        self.names, lines = [], []
        for person in range(4):
            identity = random_identity(rng)
            for number in (1, 2, 3):
                shot = still(rng, identity, 30)
                name = f"p{person}/p{person}_{number:04d}.png"
                (self.images / name).parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(self.images / name), shot.draw()[..., ::-1])
                self.names.append(name)
                lines.append(" ".join([name, *map(str, shot.points().ravel().tolist())]))
        self.points.write_text("\n".join(lines[:-1]))
        self.moved = dict(zip(self.names, lines, strict=True))
        pairs = ["2\t2\n"]
        for fold in (0, 1):
            a, b = f"p{2 * fold}", f"p{2 * fold + 1}"
            pairs += [f"{a}\t1\t2\n", f"{b}\t1\t3\n", f"{a}\t1\t{b}\t2\n", f"{a}\t2\t{b}\t3\n"]
        self.pairs.write_text("".join(pairs))

    def crop(self, name: str) -> np.ndarray:
        """By the published recipe."""
        points = np.array(self.moved[name].split()[1:], float).reshape(5, 2)
        return warp(read_image(self.images / name), similarity(points, TEMPLATE))


@pytest.fixture
def photographs(tmp_path) -> Photographs:
    return Photographs(tmp_path)


def config(photographs: Photographs, **settings) -> Config:
    own = {
        "lfw_dataset_path": str(photographs.images),
        "lfw_file_list": str(photographs.pairs),
        "train_dataset": "Own",
        "train_dataset_path": str(photographs.images),
        "align": str(photographs.points),
    }
    return Config(batch_size=2, num_workers=0, **{**own, **settings})


def kept(photographs: Photographs) -> list[Path]:
    return sorted(photographs.images.parent.glob(".set.*.aligned"))


def test_pairs_are_of_the_crops_and_one_without_a_face_stays_and_is_counted(photographs):
    data, _ = open_benchmark(config(photographs), find_benchmark("lfw"))
    assert len(data.same) == 8
    for name, image in zip(data.names, data.images, strict=True):
        name = f"{name}.png"
        expected = photographs.crop(name) if name != photographs.names[-1] else None
        if expected is None:
            expected = read_image(photographs.images / name)
        assert np.array_equal(image, expected), name
    notes = "; ".join(data.notes)
    count = len(data.names)
    assert f"{count - 1} of {count} images" in notes
    assert "no face in 1, their centre is cropped instead: p3/p3_0003" in notes


def test_crops_are_used_again_until_a_photograph_or_the_points_change(photographs):
    def crops() -> dict[Path, int]:
        open_benchmark(config(photographs), find_benchmark("lfw"))
        files = (path for folder in kept(photographs) for path in folder.rglob("*.png"))
        return {path: path.stat().st_mtime_ns for path in files}

    first = crops()
    assert crops() == first
    victim = next(iter(first))
    victim.unlink()  # is made again
    assert crops().keys() == first.keys()
    photograph = photographs.images / photographs.names[0]
    os.utime(photograph, (1, 1))
    assert len(crops()) > len(first)
    assert len(kept(photographs)) == 2
    photographs.points.write_text(
        photographs.points.read_text() + "\n" + photographs.moved[photographs.names[-1]]
    )
    data, _ = open_benchmark(config(photographs), find_benchmark("lfw"))
    assert len(kept(photographs)) == 3
    assert "no face" not in "; ".join(data.notes)


def test_a_digit_in_the_middle_of_a_long_list_makes_other_crops(photographs):
    filling = "# nothing\n" * 1000
    text = filling + photographs.points.read_text() + "\n" + filling
    line = photographs.moved[photographs.names[0]]
    other = line[:-1] + ("1" if line[-1] == "2" else "2")
    for written in (text, text.replace(line, other)):
        photographs.points.write_text(written)
        open_benchmark(config(photographs), find_benchmark("lfw"))
    assert len(kept(photographs)) == 2


def test_other_weights_in_the_usual_place_make_other_crops(photographs, tmp_path, monkeypatch):
    pytest.importorskip("facenet_pytorch", reason="the weights of MTCNN are in this package")
    data, _ = open_benchmark(config(photographs, align="mtcnn"), find_benchmark("lfw"))
    assert "aligned by mtcnn" in "; ".join(data.notes)
    folder = tmp_path / "Pretrained"
    folder.mkdir()
    for file in DETECTORS["mtcnn"].open(None).files:
        state = torch.load(file, weights_only=True)
        torch.save({key: value * 0.999 for key, value in state.items()}, folder / file.name)
    monkeypatch.setattr(mtcnn, "FOLDER", folder)
    open_benchmark(config(photographs, align="mtcnn"), find_benchmark("lfw"))
    assert len(kept(photographs)) == 2


def test_training_sees_the_crops_without_those_that_have_no_face(photographs):
    data = open_training_data(config(photographs))
    assert len(data) == 11
    assert data.num_classes == 4
    for index, name in enumerate(photographs.names[:-1]):
        image, label = data[index]
        assert np.array_equal(image, photographs.crop(name))
        assert label == int(name[1])
        assert data.name(index) == name
    notes = "; ".join(data.notes)
    assert "11 of 12 images" in notes
    assert "no face in 1, left out: p3/p3_0003.png" in notes


def test_an_identity_without_any_face_is_left_out_and_the_others_keep_their_names(photographs):
    lines = [line for name, line in photographs.moved.items() if not name.startswith("p1")]
    photographs.points.write_text("\n".join(lines))
    data = open_training_data(config(photographs))
    assert data.num_classes == 3
    assert data.classes == ["0", "2", "3"]
    assert np.bincount(data.labels).tolist() == [3, 3, 3]


def test_archives_are_aligned_too_and_crops_are_not_aligned_again(photographs, tmp_path):
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in photographs.names:
            file.write(photographs.images / name, name)
    data = open_training_data(config(photographs, train_dataset_path=str(archive)))
    assert np.array_equal(data[4][0], photographs.crop(photographs.names[4]))
    kept_crops = next(tmp_path.glob(".set.zip.*.aligned"))
    again = open_training_data(config(photographs, train_dataset_path=str(kept_crops)))
    assert "not aligned again" in "; ".join(again.notes)


def test_a_read_only_set_has_its_crops_in_the_users_cache(photographs, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    photographs.images.parent.chmod(0o555)
    try:
        open_benchmark(config(photographs), find_benchmark("lfw"))
        assert not kept(photographs)
        assert list(cache.rglob("aligned.csv"))
    finally:
        photographs.images.parent.chmod(0o755)


def test_a_program_waits_for_another_that_makes_the_same_crops(photographs):
    def work() -> None:
        open_benchmark(config(photographs), find_benchmark("lfw"))

    work()
    (folder,) = kept(photographs)
    (folder / "aligned.csv").unlink()
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    waiting = threading.Thread(target=work)
    waiting.start()
    waiting.join(1)  # ten times as long as it works
    assert not (folder / "aligned.csv").exists()
    os.close(other)
    waiting.join()
    assert (folder / "aligned.csv").exists()


def test_scripts_align_and_say_so(photographs, tmp_path):
    paths = ("--lfw_dataset_path", photographs.images, "--lfw_file_list", photographs.pairs)
    own = ("--train_dataset", "Own", "--train_dataset_path", photographs.images)
    small = ("--feature_dim", 16, "--input_size", "32,32", "--batch_size", 4, "--total_epoch", 1)
    small += ("--milestones=", "--num_workers", 0, "--no-use_visdom", "--device", "cpu")
    small += ("--save_dir", tmp_path / "runs")
    align = ("--align", photographs.points)
    run = run_script("Train.py", *own, *small, *align, check=True)
    assert "no face in 1, left out" in run.stdout
    checkpoint = next((tmp_path / "runs").glob("*/checkpoints/last.pt"))
    flags = ("--checkpoint", checkpoint, "--output", tmp_path / "out", "--device", "cpu")
    flags = (*flags, "--num_workers", 0)
    run = run_script("LFW_Evaluation.py", *paths, *flags, *align, check=True)
    assert "their centre is cropped instead" in run.stdout
    notes = json.loads((tmp_path / "out/lfw.json").read_text())["notes"]
    assert any("aligned by the landmarks" in note for note in notes)
    every = ("-m", "Utils.Evaluation_Utils", "--all_pairs", "--data", photographs.images)
    run = run_script(*every, *flags, *align, check=True)
    assert "11 of 12 images" in run.stdout
    wrong = ("LFW_Evaluation.py", *paths, *flags, "--align")
    assert_one_paragraph(
        run_script(*wrong, "yumet"), "'yumet'", "yunet, mtcnn", "list of landmarks"
    )
    own_file = ("--detector_file", tmp_path / "no.onnx")
    lonely = ("LFW_Evaluation.py", *paths, *flags, *own_file)
    assert_one_paragraph(run_script(*lonely), "detector_file", "align", "give both")
    assert_one_paragraph(run_script(*lonely, *align), "detector_file", "not a detector")
    assert_one_paragraph(run_script(*wrong, "yunet", *own_file), "no.onnx", "Pretrained/README.md")
