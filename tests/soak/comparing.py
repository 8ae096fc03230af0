"""How a run that was killed and continued differs from one left alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import torch

from Utils.run_folder import RunFolder, is_checkpoint_folder
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.merge_checkpoint import merge_folder


def difference(run: RunFolder, alone: RunFolder) -> str | None:
    """How a run differs from the one left alone; None if it does not."""
    ours, theirs = ({p.name for p in r.checkpoints.iterdir()} for r in (run, alone))
    if missing := theirs - ours:
        return f"no {missing}"
    half_written = [p.name for p in run.path.rglob(".*") if p.name != ".lock"]
    if half_written:
        return f"half-written files are left: {half_written}"
    if not run.curves.is_file():
        return "no curves.png"
    for name, read in (("results", _json), ("metrics", rows_of), ("last", _all), ("best", _all)):
        paths = getattr(run, name), getattr(alone, name)
        if where := _differ(*map(read, paths)):
            return f"{paths[0].name} differs at {where}"
    return None


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without images per second."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def _all(path: Path) -> dict[str, Any]:
    state = merge_folder(path)[0] if is_checkpoint_folder(path) else read_run(path)
    del state["settings"]  # with another save_dir
    return state


def _differ(ours: Any, theirs: Any, where: str = "") -> str | None:
    """Where two values differ first, with them; None if they are equal to the last bit."""
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return None if torch.equal(ours, theirs) else f"{where}: a tensor"
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        pairs = [(f"{where}.{key}", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = [(f"{where}.{i}", *pair) for i, pair in enumerate(zip(ours, theirs, strict=True))]
    else:
        return None if ours == theirs else f"{where}: {ours}, alone {theirs}"[:1000]
    return next(filter(None, (_differ(a, b, name) for name, a, b in pairs)), None)
