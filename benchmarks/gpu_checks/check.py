"""What a check is, what it reports, and where it runs."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from Config import Config
from Utils.Datasets_Utils.demo.sets import DemoSets, DemoSizes, ensure_demo_sets
from Utils.errors import first_line

ROOT = Path(__file__).resolve().parents[2]
OK, WRONG, SLOW, SKIPPED = "ok", "WRONG", "SLOW", "SKIPPED"

_FEW_FACES = DemoSizes(
    train_people=12,
    train_photos=5,
    folds=2,
    lfw_pairs=8,
    agedb_pairs=8,
    cfp_pairs=8,
    people_per_fold=4,
    probe_people=2,
    probe_photos=2,
    distractors=10,
)


@dataclass(frozen=True)
class Row:
    """A line of the table. verdict: OK, WRONG, SLOW or SKIPPED. found: what was measured. note: the
    conditions, or why it is not ok. ratio: of times or rates, in the rows about speed."""

    name: str
    verdict: str
    found: str = ""
    note: str = ""
    ratio: float | None = None


@dataclass(frozen=True)
class Place:
    """Where checks run. device: to be checked. quick: use tiny sizes, whose figures mean nothing.
    folder: a temporary one, for all files."""

    device: torch.device
    quick: bool
    folder: Path

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def size(self, full: int, quick: int) -> int:
        """One of two sizes."""
        return quick if self.quick else full

    @cached_property
    def faces(self) -> DemoSets:
        """The demo faces, drawn at the first use: those of the repository if it has them."""
        if self.quick:
            return ensure_demo_sets(self.folder / "few faces", sizes=_FEW_FACES)
        own = ROOT / "Datasets" / "Demo"
        return ensure_demo_sets(own if own.is_dir() else self.folder / "Demo")

    @property
    def data(self) -> dict[str, Any]:
        """The settings that name the training set and the test sets."""
        if not self.quick:
            return {"demo_dataset_path": str(self.faces.root)}
        faces = self.faces
        return {
            **{"train_dataset": "FewFaces", "train_dataset_path": str(faces.train_images)},
            **{"train_file_list": str(faces.train_list)},
            **{"lfw_dataset_path": str(faces.lfw_images), "lfw_file_list": str(faces.lfw_pairs)},
            "agedb_dataset_path": str(faces.agedb_images),
            "agedb_file_list": str(faces.agedb_pairs),
            **{"cfp_dataset_path": str(faces.cfp_images), "cfp_file_list": str(faces.cfp_pairs)},
        }

    def config(self, with_data: bool = False, **settings: Any) -> Config:
        """Settings for a check: without Visdom, saving into the temporary folder."""
        base = {
            **{"device": str(self.device), "use_visdom": False, "milestones": ()},
            **{"save_dir": str(self.folder / "runs"), "num_workers": 2},
        }
        return Config(**{**base, **(self.data if with_data else {}), **settings})

    def finish(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


# A check yields its rows; a part of it that may fail alone goes through `attempt`.
Rows = Iterable[Row]


@dataclass(frozen=True)
class Check:
    """A row of the table of checks. seconds: its time limit. after: names of checks that must have
    ended before, because it reads what they left. alone: nothing else may run beside it, because
    it measures times."""

    name: str
    seconds: float
    function: Callable[[Place], Rows]
    after: tuple[str, ...] = ()
    alone: bool = False


def row(name: str, right: bool, found: str = "", note: str = "") -> Row:
    """A row that is OK or WRONG."""
    return Row(name, OK if right else WRONG, found, note)


def attempt(name: str, part: Callable[[], Row]) -> Row:
    """The row of a part; if it raises any error, a row that tells the error and its place."""
    try:
        return part()
    except Exception as error:  # of any kind: the other parts are still to be checked
        traceback.print_exc()  # to the log of the check
        return Row(name, WRONG, type(error).__name__, describe(error))


def describe(error: BaseException) -> str:
    """An error's first line and the deepest line of this repository that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and ".venv" not in f.filename]
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{first_line(error)[:150]}{place}"
