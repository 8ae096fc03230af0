"""The checkpoints of a run: files, or folders that all processes write.

    checkpoints/iteration_00000100.pt ... last.pt  best.pt      or
    checkpoints/iteration_00000100.dcp ... last.dcp  best.dcp   (the names are symbolic links)

A checkpoint holds everything that a run needs to continue as if it had never stopped. The class
tables of a folder are in their own files, see `sharded.py`; the rest is in its common.pt.

Everything is written under a temporary name and renamed when it is whole, so that a kill in the
middle leaves the older checkpoints as they were. Nothing in a checkpoint is run when it is read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from Config import Config
from Utils.errors import CheckpointError, RunError
from Utils.files import (
    link_or_copy,
    not_written,
    read_tensors,
    remove_temporaries,
    replace,
    write_tensors,
    writing,
)
from Utils.processes import Processes
from Utils.run_folder import BEST, COMMON, FORMAT, LAST, SUFFIX, RunFolder, is_checkpoint_folder
from Utils.Training_Utils.checkpoints.checks import check_entries
from Utils.Training_Utils.checkpoints.sharded import (
    TABLES,
    by_class,
    class_tables,
    describes_tables,
    write_tables,
)
from Utils.Training_Utils.state import TrainingState

_PARTIAL = ".partial"
_SECTIONS = ("settings", "architecture", "backbone", "head", "optimizer", "position", "random")


def read_run(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read a checkpoint of a run: all of a file, or all of a folder but its class tables.

    lazily: see `read_tensors`. Raises CheckpointError for a file that Train.py did not write.
    """
    folder = Path(path) if is_checkpoint_folder(Path(path)) else None
    state = read_tensors(folder / COMMON if folder else path, lazily)
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise CheckpointError(
            f"checkpoint {path} was not written by Train.py, so a run can't be resumed from it."
        )
    missing = sorted(name for name in _SECTIONS if not isinstance(state.get(name), dict))
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(missing)}.")
    if folder:
        if not describes_tables(state.get(TABLES)):
            raise CheckpointError(f"checkpoint {path} does not describe its class tables.")
        state[TABLES]["folder"] = str(folder)
    elif TABLES in state:
        raise CheckpointError(
            f"checkpoint {path} lacks the class tables; they are beside it: give the folder "
            f"{Path(path).parent}."
        )
    return state


def check_fits(
    state: dict[str, Any], path: Path, config: Config, num_classes: int, num_images: int
) -> None:
    """Raise CheckpointError if a checkpoint is of another network or of other classes; in the
    middle of an epoch also where images or batches are others, so that its order can't continue;
    and where the file is damaged."""
    check_entries(state, path)
    saved = Config.from_dict(state["settings"])
    for name in (
        "backbone",
        "feature_dim",
        "input_size",
        "margin",
        "sub_centers",
        "optimizer",
        "head_optimizer",
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
    if state["position"]["batch"] == 0:
        return
    for name, ours, theirs in (
        ("batch_size", config.batch_size, saved.batch_size),
        ("seed", config.seed, saved.seed),
        ("sampler", config.sampler, saved.sampler),
        ("number of training images", num_images, state["num_images"]),
    ):
        if ours != theirs:
            raise CheckpointError(
                f"checkpoint {path} is from the middle of an epoch with {name} {theirs}, now it "
                f"is {ours}: keep it, or resume from the end of an epoch."
            )


def saves_folders(config: Config, sharded: bool) -> bool:
    """Whether checkpoints are folders, as `checkpoint_format` says. sharded: the head is."""
    return config.checkpoint_format == "sharded" or (config.checkpoint_format == "auto" and sharded)


class CheckpointWriter:
    """Writes the checkpoints of a run. All processes must call `save`.

    resumed: the checkpoint that the run was resumed from, which it need not write again.
    """

    def __init__(
        self, run: RunFolder, folders: bool, processes: Processes, resumed: Path | None = None
    ) -> None:
        self._run = run
        self._folders = folders
        self._processes = processes
        self._newest = resumed.resolve() if resumed else None

    def save(
        self, state: TrainingState, config: Config, num_images: int, best: bool = False
    ) -> None:
        """Write a checkpoint and name it `last`; where it is the best one, also `best`.

        Raises RunError in all processes if one can't write; the older ones are whole.
        """
        contents = state.checkpoint(config, num_images, self._processes, not self._folders)
        if not self._folders:
            self._from_main(self._write_file, state.iteration, contents, best)
            return
        path = self._run.checkpoints / f"iteration_{state.iteration:08d}{SUFFIX}"
        if path.resolve() == self._newest:  # nothing was trained since: the tables are the same
            if best:  # before the checkpoint says so: a kill would leave it without a name
                self._from_main(self._name_folder, path, BEST)
            self._from_main(write_tensors, path / COMMON, contents)
        else:
            self._write_folder(path, state, contents)
            self._newest = path.resolve()
        for name in (BEST, LAST) if best else (LAST,):
            self._from_main(self._name_folder, path, name)

    def _from_main(self, write: Callable[..., None], *given: Any) -> None:
        """Write in the main process. The others wait: those that went on would do so in the next
        step, where patience ends in minutes."""

        def named() -> None:
            with writing(self._run.checkpoints):
                write(*given)

        self._processes.from_main(named)

    def _write_file(self, iteration: int, contents: dict, best: bool) -> None:
        path = self._run.checkpoints / (BEST if best else f"iteration_{iteration:08d}.pt")
        write_tensors(path, contents)
        link_or_copy(path, self._run.checkpoints / LAST)
        for name in (LAST, BEST) if best else (LAST,):
            _remove((self._run.checkpoints / name).with_suffix(SUFFIX))

    def _write_folder(self, path: Path, state: TrainingState, common: dict) -> None:
        partial = path.with_name(f".{path.name}{_PARTIAL}")

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write_tensors(partial / COMMON, common)

        def finish() -> None:
            shutil.rmtree(path, ignore_errors=True)  # not yet named when a run was killed
            os.rename(partial, path)

        self._from_main(begin)
        tables = class_tables(state.head, state.optimizer)
        tables = {name: by_class(state.head, rows) for name, rows in tables.items()}
        try:
            write_tables(partial, tables, self._processes.group)
        except OSError as error:  # in all processes, whichever it was
            raise RunError(not_written(path, error)) from None
        self._from_main(finish)

    def _name_folder(self, folder: Path, name: str) -> None:
        link = self._run.checkpoints / name
        temporary = link.with_name(f".{name}.link")
        _remove(temporary)
        try:
            temporary.symlink_to(folder.name)
            replace(temporary, link.with_suffix(SUFFIX))
        except OSError:
            _remove(temporary)
            _copy_folder(folder, temporary)
            _remove(link.with_suffix(SUFFIX))
            os.rename(temporary, link.with_suffix(SUFFIX))
        link.unlink(missing_ok=True)  # of a file, where the form of the checkpoints changed


def _copy_folder(source: Path, target: Path) -> None:
    """Make a folder with the same files, where the file system has no symbolic links."""
    target.mkdir()
    for path in source.iterdir():
        link_or_copy(path, target / path.name)


def _remove(path: Path) -> None:
    """Remove a link, or the folder that stands for one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_unfinished(run: RunFolder) -> None:
    """Remove what a killed process left half written."""
    for partial in run.checkpoints.glob(f".*{SUFFIX}{_PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
    for name in (LAST, BEST):
        _remove(run.checkpoints / f".{name}.link")
    for folder in (run.path, run.checkpoints, *run.checkpoints.glob(f"iteration_*{SUFFIX}")):
        remove_temporaries(folder)
