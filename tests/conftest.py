"""What several test files need."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from Config import Config, read_config, settings_for
from tests import processes
from tests.processes import ROOT, leave_unpainted, run_script  # noqa: F401
from tests.tiny_megaface import Tiny, make_tiny
from Utils.Evaluation_Utils.megaface.evaluation import evaluate_megaface


def pytest_configure(config: pytest.Config) -> None:
    """Scripts paint only the pictures that a test looks at; those of tests/soak paint all."""
    processes.PAINTED = False


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data: FACE_TEST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("FACE_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real test data: {folder} is not there (name its folder: FACE_TEST_DATA)")
    return folder


@dataclass(frozen=True)
class TinyFaces:
    """A training set and a verification set small enough for a network to train in seconds."""

    root: Path
    train: Path
    train_list: Path
    lfw: Path
    lfw_pairs: Path
    backbone: str = "MobileFaceNet"

    @property
    def flags(self) -> list[str]:
        """What makes Train.py train on them: 24 images of 6 people, 32×32, batches of 8."""
        return [
            *("--train_dataset", "Tiny", "--train_dataset_path", str(self.train)),
            *("--train_file_list", str(self.train_list)),
            *("--lfw_dataset_path", str(self.lfw), "--lfw_file_list", str(self.lfw_pairs)),
            *("--input_size", "32,32", "--feature_dim", "16", "--batch_size", "8"),
            *("--backbone", self.backbone),
            *("--total_epoch", "3", "--milestones", "2", "--log_freq", "2", "--test_freq", "4"),
            *("--save_freq", "2", "--num_workers", "0", "--no-use_visdom", "--device", "cpu"),
        ]

    def config(self, save_dir: Path, **changes: object) -> Config:
        """The settings of `flags`, but for changes, for a run in this process."""
        config = Config(
            train_dataset="Tiny",
            train_dataset_path=str(self.train),
            train_file_list=str(self.train_list),
            lfw_dataset_path=str(self.lfw),
            lfw_file_list=str(self.lfw_pairs),
            **{"input_size": (32, 32), "feature_dim": 16, "batch_size": 8, "total_epoch": 3},
            **{"milestones": (2,), "log_freq": 2, "test_freq": 4, "save_freq": 2},
            **{"num_workers": 0, "use_visdom": False, "device": "cpu", "save_dir": str(save_dir)},
            backbone=self.backbone,
        )
        return replace(config, **changes)


@pytest.fixture(scope="session")
def tiny_faces(tmp_path_factory: pytest.TempPathFactory) -> TinyFaces:
    """They are the same in all tests."""
    faces = make_tiny_faces(tmp_path_factory.mktemp("tiny faces"))  # a blank, as users have
    return replace(faces, backbone="SmallNet")


def make_tiny_faces(root: Path) -> TinyFaces:
    """Blurred noise: a pattern for each person, varied for each photo."""
    rng = np.random.default_rng(0)
    lines = []
    for person in range(6):
        pattern = rng.integers(0, 256, (4, 4, 3))
        for photo in range(4):
            name = f"person {person}/{photo}.png"
            _write_face(root / "train" / name, pattern, rng)
            lines.append(f"{name}  {person}\n")
    (root / "train.txt").write_text("".join(lines))
    pairs = ["2\t3\n"]
    for fold in range(2):
        people = [f"Person_{fold}_{i}" for i in range(3)]
        for name in people:
            pattern = rng.integers(0, 256, (4, 4, 3))
            for photo in (1, 2):
                _write_face(root / "lfw" / name / f"{name}_{photo:04d}.jpg", pattern, rng)
        pairs += [f"{name}\t1\t2\n" for name in people]
        pairs += [f"{people[i]}\t1\t{people[(i + 1) % 3]}\t2\n" for i in range(3)]
    (root / "pairs.txt").write_text("".join(pairs))
    return TinyFaces(root, root / "train", root / "train.txt", root / "lfw", root / "pairs.txt")


def _write_face(path: Path, pattern: np.ndarray, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.resize((pattern + rng.normal(0, 25, pattern.shape)).clip(0, 255), (32, 32))
    cv2.imwrite(str(path), image.astype(np.uint8))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A small MegaFace."""
    return make_tiny(tmp_path_factory.mktemp("mega face"))


@pytest.fixture
def unpainted(monkeypatch):
    """Pictures are saved as empty files. Tests that look at pictures paint them."""
    leave_unpainted(monkeypatch.setattr)


@pytest.fixture
def run_megaface(capsys, unpainted):
    """A function that does in this process what MegaFace_Evaluation.py does, and returns its
    output."""

    def run(*arguments: object) -> str:
        config = read_config("", settings_for("megaface"), argv=list(map(str, arguments)))
        report = evaluate_megaface(config)
        return capsys.readouterr().out + report.table

    return run


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size in bytes: writing more fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_one_paragraph(run: subprocess.CompletedProcess, *said: str) -> None:
    """The script failed with one paragraph that says these things, and no traceback."""
    assert run.returncode not in (0, None), run.stdout
    assert "Traceback" not in run.stderr
    error = run.stderr[run.stderr.rindex("Error:") :]
    assert "\n\n" not in error.strip()
    words = " ".join(error.split())
    for text in said:
        assert text in words
