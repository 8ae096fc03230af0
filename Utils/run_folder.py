"""The folder of a run: its name, its files, and where to find the last one.

<save_dir>/<run>/settings.json  train.log  metrics.csv  curves.png  results.json
<save_dir>/<run>/classes.csv        the labels in the data, of classes that were renumbered
<save_dir>/<run>/events.out.tfevents.*  wandb/    for TensorBoard and W&B, where the settings say so
<save_dir>/<run>/.lock              held by the process that trains the run
<save_dir>/<run>/checkpoints/iteration_00000100.pt ... last.pt  best.pt
<save_dir>/.torchrun_<launch>     which run that launch of torchrun trains, until the run is over

A checkpoint may also be a folder: iteration_00000100.dcp ... last.dcp  best.dcp

torchrun starts the processes of a run again when one has died (`--max_restarts`). They know their
launch by its name, `TORCHELASTIC_RUN_ID`, and find their run in the file of that launch.
"""

import csv
import dataclasses
import fcntl
import itertools
import json
import os
import re
import shlex
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from Config import Config
from Utils.errors import CheckpointError, RunError
from Utils.files import atomic_path, not_by_link, reading, save_json

FORMAT = "face-training-checkpoint-1"
SUFFIX = ".dcp"
COMMON = "common.pt"
CHECKPOINTS = "checkpoints"
LAST = "last.pt"
BEST = "best.pt"
# What reading a JSON file of another form raises.
_DAMAGE = (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_CLOCKS_DIFFER = 600  # seconds, between machines
SWEEP = "FACE_TRAINING_SWEEP"  # environment variable: the name of the sweep that starts the run


def is_checkpoint_folder(path: Path) -> bool:
    """Whether a path is a checkpoint folder. CheckpointError: it can't be looked at."""
    with reading(path, "checkpoint", CheckpointError):
        return (path / COMMON).is_file()


class RunFolder:
    """Paths inside one run's folder. Making the object writes nothing."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.name = self.path.name
        self.checkpoints = self.path / CHECKPOINTS
        self.log = self.path / "train.log"
        self.metrics = self.path / "metrics.csv"
        self.curves = self.path / "curves.png"
        self.results = self.path / "results.json"
        self.settings = self.path / "settings.json"
        self.classes = self.path / "classes.csv"

    @property
    def last(self) -> Path:
        """The path of the newest checkpoint, a file or a folder; it may not exist yet."""
        return self._file_or_folder(LAST)

    @property
    def best(self) -> Path:
        """The path of the best checkpoint, a file or a folder; it may not exist yet."""
        return self._file_or_folder(BEST)

    def create(self, config: Config) -> None:
        """Make the folders and save the settings, of this start of the run and of those before it.

        Raises RunError if that can't be done.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(_not_writable(self.path, error)) from None
        save_json(self.settings, self._settings_with(config))

    def save_classes(self, names: Sequence[str]) -> None:
        """Write the name that each class has in the data. Raises RunError if that can't be done."""
        with (
            atomic_path(self.classes) as temporary,
            open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
        ):
            csv.writer(file).writerows([("class", "in_the_data"), *enumerate(names)])

    def starts(self) -> list[dict[str, Any]]:
        """The settings of each start of the run, oldest first; none if they can't be read.

        `sweep` among them is the name of the sweep that started it.
        """
        try:
            saved = json.loads(self.settings.read_text())
            return list(saved.get("starts", [saved]))  # once there was only the last one
        except _DAMAGE:
            return []

    def _settings_with(self, config: Config) -> dict[str, Any]:
        start = config.to_dict()
        sweep = {"sweep": os.environ[SWEEP]} if SWEEP in os.environ else {}
        return {**start, "starts": [*self.starts(), {**start, **sweep}]}

    def _file_or_folder(self, name: str) -> Path:
        folder = (self.checkpoints / name).with_suffix(SUFFIX)
        return folder if folder.exists() else self.checkpoints / name


class RunLock:
    """Held by the process that trains a run: a second one would write into the same files.

    The system releases it when the process ends, however it ends. File systems that have no locks
    go without.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def take(self, run: RunFolder) -> None:
        """Raises RunError if another process has it, or if the run's log is a link: the folder may
        be somebody else's, and the file that the link names the user's."""
        path = run.path / ".lock"
        for file in (path, run.log):
            if file.is_symlink():
                raise RunError(f"{file} is a link, not a file of this run; remove it.")
        try:
            self._file = open(path, "a", opener=not_by_link)  # noqa: SIM115
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another process is training the run {run.path}; wait for its end, or stop it. "
                f"If there is none, on no machine, remove {path}."
            ) from None
        except OSError:
            pass

    def release(self) -> None:
        """May be called without `take`."""
        if self._file:
            self._file.close()


def run_name(config: Config) -> str:
    """Backbone, head, data set and time, without blanks or colons."""
    words = (
        config.backbone,
        config.margin,
        config.train_dataset,
        f"{datetime.now():%Y%m%d-%H%M%S}",
    )
    return re.sub(r"[^\w.-]+", "-", "_".join(words))


def create_run(config: Config) -> RunFolder:
    """Make a new run's folder. Raises RunError if that can't be done."""
    name = run_name(config)
    for number in itertools.count(1):
        path = Path(config.save_dir) / (name if number == 1 else f"{name}_{number}")
        try:
            path.mkdir(parents=True)  # fails where another run of this second was first
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(_not_writable(path, error)) from None
        run = RunFolder(path)
        run.create(config)
        return run
    raise AssertionError("count never ends")


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run whose folder a checkpoint is in; None if it is elsewhere."""
    folder = Path(checkpoint).resolve().parent
    is_run = folder.name == CHECKPOINTS and (folder.parent / "settings.json").exists()
    return RunFolder(folder.parent) if is_run else None


def run_to_continue(checkpoint: Path) -> RunFolder | None:
    """The run that a checkpoint belongs to, where it is the newest checkpoint of that run.

    None for any other: resuming from an older one gives another history, in a new folder.
    """
    run = run_of(checkpoint)
    newest = run is not None and run.last.exists() and os.path.samefile(checkpoint, run.last)
    return run if newest else None


def find_checkpoint(resume: str, save_dir: str) -> Path:
    """The path that the `resume` setting means; `last` is the newest run's last.

    Raises RunError if there is none.
    """
    if resume != "last":
        path = Path(resume)
        if not (is_checkpoint_folder(path) or path.is_file()):
            raise RunError(f"resume names {path}, which is not a file nor a checkpoint folder.")
        return path
    last = Path(LAST).stem
    with reading(save_dir, "folder", RunError):
        found = [p for p in Path(save_dir).glob(f"*/{CHECKPOINTS}/{last}.*") if p.exists()]
    if not found:
        raise RunError(
            f"resume is 'last', but no run in {save_dir} has a checkpoint; "
            f"name a checkpoint or another save_dir."
        )
    newest = max(found, key=os.path.getmtime)
    if len(found) > 1 and os.path.getmtime(newest) > time.time() + _CLOCKS_DIFFER:
        raise RunError(
            f"resume is 'last', but {newest} is dated in the future, {_date(newest)}: the clock "
            f"was changed, so dates do not tell which run is the last. Name the checkpoint: "
            f"--resume PATH. `touch {shlex.quote(str(newest))}` gives it today's date."
        )
    return newest


def _date(path: Path) -> str:
    return f"{datetime.fromtimestamp(os.path.getmtime(path)):%Y-%m-%d %H:%M}"


def is_restarted() -> bool:
    """Whether torchrun has started the processes of this launch again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def run_of_launch(save_dir: str) -> RunFolder | None:
    """The run that this launch of torchrun was training; None if it has none yet.

    Any launch of the same name counts: restarted by torchrun, or begun again with its --rdzv_id.
    """
    note = _launch_note(save_dir)
    try:
        return RunFolder(note.parent / json.loads(note.read_text())["run"]) if note else None
    except _DAMAGE:  # there is none, or it is damaged
        return None


def restarted_run(config: Config) -> RunFolder | None:
    """`run_of_launch` where this launch is to continue that run.

    This is the case if torchrun has restarted the processes, or a user has started a launch of the
    same --rdzv_id again, with the settings of the run, and the run is not over.
    """
    run = run_of_launch(config.save_dir)
    if run is None or not (is_restarted() or os.environ["TORCHELASTIC_RUN_ID"] != _UNNAMED):
        return None
    try:
        saved = Config.from_dict(json.loads(run.settings.read_text()))
    except _DAMAGE:
        return None
    same = dataclasses.replace(saved, resume="") == dataclasses.replace(config, resume="")
    return run if same and run.last.exists() else None


def note_launch(save_dir: str, run: RunFolder) -> None:
    """Note that this launch of torchrun trains that run."""
    note = _launch_note(save_dir)
    if note is not None:
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps({"run": run.name}))


def forget_launch(save_dir: str) -> None:
    """Remove the note: a launch of the same name trains another run."""
    note = _launch_note(save_dir)
    if note is not None:
        with suppress(OSError):
            note.unlink(missing_ok=True)


_UNNAMED = "none"  # torchrun's name for every launch without --rdzv_id


def _launch_note(save_dir: str) -> Path | None:
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    if launch == _UNNAMED:  # then the address of the main process tells launches apart
        launch = f"{socket.gethostname()}_{os.environ.get('MASTER_PORT')}"
    return Path(save_dir) / f".torchrun_{re.sub(r'[^A-Za-z0-9.-]+', '-', launch)}"


def check_writable(folder: str | Path) -> None:
    """Raise RunError unless a folder could be made there; makes nothing itself."""
    path = Path(folder).absolute()
    with reading(path, "folder", RunError):
        existing = next(p for p in (path, *path.parents) if p.exists())
    if not existing.is_dir():
        raise RunError(f"{path} can't be a folder: {existing} is a file. Give another save_dir.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(f"{existing} is not writable, so {path} can't be made there.")


def _not_writable(path: Path, error: OSError) -> str:
    return f"the run's folder {path} can't be written ({error.strerror}); give another save_dir."
