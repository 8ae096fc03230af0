"""Checkpoints: everything that a run needs to go on as if it had never stopped, in one file.

Written to a temporary name and renamed, so that a kill in the middle leaves the older ones whole;
read with `weights_only`, so that no code in a file is ever run. `dcp_folder` has the other form, a
folder, in which the class tables lie apart.
"""

import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from Config import Config
from Utils.errors import CheckpointError, first_line
from Utils.files import atomic_path, link_or_copy, writing
from Utils.run_folder import BEST, LAST, RunFolder
from Utils.Training_Utils.checkpoints.sharded import COMMON, SUFFIX, is_folder

FORMAT = "face-training-checkpoint-1"
SHOWN = 3

# What `torch.load` raises for files that are cut short or something else altogether.
READ_ERRORS = (
    *(RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError),
    *(zipfile.BadZipFile, struct.error, AssertionError, SafetensorError),
)


def save(run: RunFolder, state: dict[str, Any], iteration: int) -> Path:
    """Write checkpoints/iteration_<n>.pt and let last.pt be the same file."""
    path = run.checkpoints / f"iteration_{iteration:08d}.pt"
    write(path, state)
    link_or_copy(path, run.checkpoints / LAST)
    _remove_other_form(run.checkpoints / LAST)
    return path


def save_best(run: RunFolder, state: dict[str, Any]) -> None:
    """Write checkpoints/best.pt."""
    write(run.checkpoints / BEST, state)
    _remove_other_form(run.checkpoints / BEST)


def read(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read any file of tensors and plain values on the CPU.

    lazily: leave tensors on the disk until they are used, for one who uses few or parts of them.
    Raises CheckpointError where the file is missing, truncated, no checkpoint, or needs code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file.")
    try:
        mapped = lazily and zipfile.is_zipfile(path)  # others can't be left there
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {_refusal(path, error)}") from None
    except READ_ERRORS as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {_damage(error)}") from None


def unsafe_names(path: Path) -> list[str]:
    """The functions and classes, beyond those of tensors, that a file's pickle names; nothing of it
    is run. Empty for a file of another format, or a damaged one."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of many kinds, from a file that is damaged: reading it will say so
        return []


def read_run(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run, all of a file, or of a folder all but its class tables.

    lazily: see `read`. Raises CheckpointError for what Train.py did not write.
    """
    folder = Path(path) if is_folder(Path(path)) else None
    state = read(folder / COMMON if folder else path, lazily)
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise CheckpointError(
            f"checkpoint {path} was not written by Train.py, so a run can't go on from it."
        )
    missing = {
        "settings",
        "architecture",
        "backbone",
        "head",
        "optimizer",
        "position",
        "random",
    } - set(state)
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(sorted(missing))}.")
    if folder:
        state["class_tables"]["folder"] = str(folder)
    elif "class_tables" in state:
        raise CheckpointError(
            f"checkpoint {path} lacks the class tables; they lie beside it: give the folder "
            f"{Path(path).parent}."
        )
    return state


def check_fits(
    state: dict[str, Any], path: Path, config: Config, num_classes: int, num_images: int
) -> None:
    """Raise CheckpointError where a checkpoint is of another network, other classes, or, in the
    middle of an epoch, of other images or batches, so that it has no place to go on from."""
    saved = Config.from_dict(state["settings"])
    for name in (
        *("backbone", "feature_dim", "input_size", "margin", "sub_centers"),
        *("optimizer", "head_optimizer"),
    ):
        ours, theirs = getattr(config, name), getattr(saved, name)
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} has {name} {theirs}, the settings say {ours}; "
                f"resume with {theirs}, or start a new run."
            )
    if state["num_classes"] != num_classes:
        raise CheckpointError(
            f"checkpoint {path} has a head for {state['num_classes']} classes, the training set "
            f"{config.train_dataset} has {num_classes}; resume with the run's own training set."
        )
    if state["position"]["batch"]:
        _check_same_batches(saved, state["num_images"], path, config, num_images)


def _check_same_batches(
    saved: Config, saved_images: int, path: Path, config: Config, num_images: int
) -> None:
    for name, ours, theirs in (
        ("batch_size", config.batch_size, saved.batch_size),
        ("seed", config.seed, saved.seed),
        ("sampler", config.sampler, saved.sampler),
        ("number of training images", num_images, saved_images),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} stands in the middle of an epoch with {name} {theirs}, now it "
                f"is {ours}: keep it, or resume from the end of an epoch."
            )


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a file of tensors and plain values. Raises RunError where that can't be done."""
    with writing(path), atomic_path(path) as temporary:
        torch.save(state, temporary)


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Why the unpickler gave up, in words of this program: torch's own go on about its options."""
    # Files from before PyTorch 1.6 are no archives; the unpickler then names what it met first.
    names = unsafe_names(path) or re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        return "it is not a checkpoint, or a damaged one; nothing in it was run."
    shown = ", ".join(name[:80] for name in names[:SHOWN]) + (", ..." if names[SHOWN:] else "")
    return (
        f"it needs code to be read ({shown}); nothing in it was run. If you trust it, save its "
        f"state dict alone with the program that wrote it."
    )


def _damage(error: Exception) -> str:
    if "TorchScript" in str(error):
        return "it is a TorchScript program, which is not run; save its state dict alone."
    return f"it is truncated or not a checkpoint. ({first_line(error)})"


def _remove_other_form(path: Path) -> None:
    """Remove the folder's name that stood where now a file does."""
    path.with_suffix(SUFFIX).unlink(missing_ok=True)
