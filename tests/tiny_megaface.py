"""A MegaFace of twenty probes and 700 distractors, 32×32, for two untrained networks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path

import cv2
import numpy as np
import torch

from Backbone import build_backbone, describe_backbone
from tests.processes import run_script, torchrun
from Utils.run_folder import FORMAT

PEOPLE = ("J.K._Simmons", "Mary Jane", "Otto", "Ada", "Zoe")
PHOTOS, DISTRACTORS = 4, 700


@dataclasses.dataclass(frozen=True)
class Tiny:
    """Probes, distractors and two untrained networks for 32×32 photos."""

    root: Path

    def checkpoint(self, number: int = 0) -> Path:
        return self.root / f"network{number}.pt"

    def flags(self, *more: object, checkpoint: int | None = 0) -> list[str]:
        root = self.root
        named = [] if checkpoint is None else ["--checkpoint", self.checkpoint(checkpoint)]
        words = [
            *("--facescrub_dataset_path", root / "probes"),
            *("--facescrub_file_list", root / "facescrub.json"),
            *("--megaface_dataset_path", root / "distractors"),
            *("--megaface_file_list", root / "megaface.json_*_1"),
            *("--device", "cpu", "--num_workers", 0, "--fprs", "1e-2,1e-3"),
        ]
        return [str(word) for word in (*named, *words, *more)]


def make_tiny(root: Path) -> Tiny:
    """Draw them below a folder."""
    rng = np.random.default_rng(0)
    probes, ids, distractors = [], [], []
    for person in PEOPLE:
        pattern = rng.integers(0, 256, (4, 4, 3))
        for photo in range(PHOTOS):
            # As in FaceScrub: dots, blanks, and one name without an extension.
            suffix = "" if (person, photo) == ("Otto", 1) else ".png"
            name = f"{person}/{person}_{24000 + photo}{suffix}"
            _write(root / "probes" / name, pattern + rng.normal(0, 40, pattern.shape))
            probes.append(name)
            ids.append(person)
    for number in range(DISTRACTORS):
        name = f"{number // 100:03d}/{number // 10:05d}/{number}@N00_{number}_0.jpg"
        _write(root / "distractors" / name, rng.integers(0, 256, (4, 4, 3)))
        distractors.append(name)
    (root / "facescrub.json").write_text(json.dumps({"path": probes, "id": ids}))
    for count in (10, 100, DISTRACTORS):
        listed = {"path": distractors[:count], "id": ["x"] * count}
        (root / f"megaface.json_{count}_1").write_text(json.dumps(listed))
    for number in range(2):
        torch.manual_seed(number)
        backbone = build_backbone("SmallNet", 16, (32, 32))
        state = {"format": FORMAT, "architecture": describe_backbone(backbone)}
        torch.save({**state, "backbone": backbone.state_dict()}, root / f"network{number}.pt")
    return Tiny(root)


def _write(path: Path, pattern: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = cv2.resize(pattern.clip(0, 255).astype(np.float32), (32, 32)).astype(np.uint8)
    suffix = path.suffix if path.suffix in (".jpg", ".png") else ".png"
    path.write_bytes(cv2.imencode(suffix, image)[1].tobytes())


def megaface(
    *arguments: object, processes: int = 1, painted: bool | None = None
) -> subprocess.CompletedProcess:
    """Run the script; with several processes, under torchrun."""
    script = "MegaFace_Evaluation.py"
    launch = torchrun(processes, script) if processes > 1 else [script]
    return run_script(*launch, *arguments, painted=painted)


def features_of(folder: Path, name: str) -> Path:
    """The only folder of probes' or distractors' features in a run's output."""
    (found,) = (folder / "features").glob(f"{name}-*")
    return found


def table_of(folder: Path, name: str) -> np.ndarray:
    return np.load(features_of(folder, name) / "features.npy")


def results_of(folder: Path) -> dict:
    """The figures of megaface.json, without the paths."""
    return json.loads((folder / "megaface.json").read_text())["results"]


def error_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr[done.stderr.rindex("Error: ") :].split())
