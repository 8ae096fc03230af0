"""The checkpoints of a run, written by all its processes: as files, or as folders."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from Config import Config
from Utils.errors import RunError
from Utils.files import not_written, remove_temporaries, write_tensors
from Utils.processes import Processes
from Utils.run_folder import COMMON, SUFFIX, RunFolder
from Utils.Training_Utils import checkpoint as checkpoints
from Utils.Training_Utils.checkpoints.sharded import (
    Tables,
    put_back,
    whole,
    write_tables,
)


def saves_folders(config: Config, sharded: bool) -> bool:
    """Whether checkpoints are folders, as `checkpoint_format` says; sharded: the head is."""
    return config.checkpoint_format == "sharded" or (config.checkpoint_format == "auto" and sharded)


class CheckpointWriter:
    """Writes the checkpoints of a run; each method is called by all processes together.

    A folder is written while training goes on, one at a time; what went wrong is raised at the next
    save or at `wait`.
    """

    def __init__(self, run: RunFolder, folders: bool, processes: Processes) -> None:
        self._run = run
        self._folders = folders
        self._processes = processes
        # Its own: the exchanges of a save under way must not mix with those of training.
        alone = processes.group is None or not folders
        self._group = None if alone else dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1) if folders else None
        self._pending: Future[None] | None = None
        self._newest: Path | None = None  # the folder written last, or being written

    def save(
        self, state: dict[str, Any], tables: Tables, iteration: int, best: bool = False
    ) -> None:
        """Write a checkpoint, and let `best` be it, or else `last`.

        state, tables: as `TrainingState.checkpoint` returns them. Raises RunError where it can't be
        written; those before it are whole.
        """
        if self._folders:
            self._save_folder(state, tables, iteration, best)
            return
        tables = whole(tables)
        if self._processes.is_main:
            put_back(state, tables)
            if best:
                checkpoints.save_best(self._run, state)
            else:
                checkpoints.save(self._run, state, iteration)

    def wait(self) -> None:
        """Until everything is written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (dcp.CheckpointException, OSError, RuntimeError) as error:
            self._newest = None
            raise RunError(not_written(self._run.checkpoints, error)) from None

    def close(self) -> None:
        """`wait`, and end the thread that writes."""
        self.wait()
        if self._thread:
            self._thread.shutdown()

    def _save_folder(
        self, state: dict[str, Any], tables: Tables, iteration: int, best: bool
    ) -> None:
        self.wait()
        folder = self._run.checkpoints / f"iteration_{iteration:08d}{SUFFIX}"
        name = f"{'best' if best else 'last'}{SUFFIX}"
        if folder == self._newest:  # nothing was trained since: the tables are the same
            if self._processes.is_main:
                write_tensors(folder / COMMON, state)
                _name(folder, name)
            return
        partial = folder.with_name(f".{folder.name}.partial")
        if self._processes.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
            except OSError as error:
                raise RunError(not_written(folder, error)) from None
            write_tensors(partial / COMMON, state)
        self._processes.barrier()
        written = write_tables(partial, tables, self._group)
        self._newest = folder
        self._pending = self._thread.submit(self._publish, written, partial, folder, name)

    def _publish(self, written: Future[Any], partial: Path, folder: Path, name: str) -> None:
        written.result()
        if self._processes.is_main:
            aside = folder.with_name(f".{folder.name}.old")
            shutil.rmtree(aside, ignore_errors=True)
            with suppress(FileNotFoundError):  # of a history that was cut off before this
                os.rename(folder, aside)
            os.rename(partial, folder)
            _name(folder, name)
            shutil.rmtree(aside, ignore_errors=True)


def remove_unfinished(run: RunFolder) -> None:
    """Remove what a killed process left half written, and put back what it had set aside."""
    for partial in run.checkpoints.glob(f".*{SUFFIX}.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for aside in run.checkpoints.glob(f".*{SUFFIX}.old"):
        folder = aside.with_name(aside.name[1:].removesuffix(".old"))
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:  # its successor had not got the name yet, and it may be the best
            os.rename(aside, folder)
    for folder in (run.checkpoints, *run.checkpoints.glob(f"iteration_*{SUFFIX}")):
        remove_temporaries(folder)


def _name(folder: Path, name: str) -> None:
    """Let a name stand for a folder, in place of the file or folder that it stood for."""
    temporary = folder.with_name(f".{name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(folder.name)
    os.replace(temporary, folder.with_name(name))
    folder.with_name(name).with_suffix(".pt").unlink(missing_ok=True)
