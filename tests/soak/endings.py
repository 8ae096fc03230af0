"""How a run ended, and which processes it has."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from Utils.run_folder import is_checkpoint_folder
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.merge_checkpoint import merge_folder


def end_of(save_dir: Path) -> dict[str, Any]:
    """All tensors that decide how a run goes on, and its position, of its last checkpoint."""
    (last,) = save_dir.glob("*/checkpoints/last.*")
    saved = merge_folder(last)[0] if is_checkpoint_folder(last) else read_run(last)
    return {name: saved[name] for name in ("backbone", "head", "optimizer", "position")}


def difference(found: Any, expected: Any, where: str = "") -> str | None:
    """The first thing in which two ends differ."""
    if isinstance(expected, dict):
        if found.keys() != expected.keys():
            return f"{where} has other entries"
        parts = (difference(found[key], expected[key], f"{where}.{key}") for key in expected)
        return next(filter(None, parts), None)
    if isinstance(expected, torch.Tensor):
        return None if torch.equal(found, expected) else f"{where} differs"
    return None if found == expected else f"{where} is {found}, not {expected}"


def told(err: str) -> str | None:
    """None if a job ended with one message for its user; torchrun's own traceback comes after."""
    said = " ".join(re.split("Traceback|E[0-9]{4} ", err)[0].split())
    if not said.count("Error:") and "exitcode:-9" in "".join(err.split()):
        return None  # torchrun ended the other one first, and its report names the killed one
    right = said.count("Error:") == 1 and "another process of this job" in said
    return None if right and "last checkpoint" in said else f"said: {said[-300:] or err[-300:]}"


def workers_of(pid: int) -> list[int]:
    """The processes that a script has forked."""
    with suppress(OSError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if not is_helper(child)]
    return []


def is_helper(pid: str) -> bool:
    with suppress(OSError):
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
