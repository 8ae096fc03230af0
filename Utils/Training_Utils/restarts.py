"""Going on after torchrun has started the processes of a run again (`--max_restarts`).

Processes that were started again know their launch by its number, `TORCHELASTIC_RUN_ID`. A note in
save_dir, .torchrun_<number>, says which run is that launch's, until the run is over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
from contextlib import suppress
from pathlib import Path

from Config import Config
from Utils.files import atomic_path
from Utils.run_folder import RunFolder

_UNNAMED = "none"  # what torchrun calls each launch that was given no --rdzv_id


def restarted_from(config: Config) -> Path | None:
    """The last checkpoint of the run that this launch was training; None where it had none.

    A launch is one that torchrun has restarted, or that somebody has begun again under the same
    --rdzv_id, with the same settings, for a run that is not over.
    """
    note = _note(config.save_dir)
    if note is None:
        return None
    try:
        run = _noted_run(note)
        saved = Config.from_dict(json.loads(run.settings.read_text()))
    except (OSError, ValueError, LookupError):
        return None
    again = os.environ["TORCHELASTIC_RUN_ID"] != _UNNAMED and not config.resume
    same = dataclasses.replace(saved, resume="") == dataclasses.replace(config, resume="")
    return run.last if (_restarted() or again) and same and run.last.exists() else None


def resumed_before(save_dir: str) -> Path | None:
    """The last checkpoint of the run that a launch with `resume` was training before torchrun
    restarted it; None where it had none, or only begins.

    Its settings are those to go on with, so none are asked for. By now `last` may mean another run,
    of another job.
    """
    note = _note(save_dir)
    if note is None:
        return None
    if not _restarted():  # what is noted is of an earlier launch under the same number
        _remove(note)
        return None
    try:
        run = _noted_run(note)
    except (OSError, ValueError, LookupError):
        return None
    return run.last if run.last.exists() else None


def note_run(config: Config, run: RunFolder) -> None:
    """Note that this launch trains that run."""
    note = _note(config.save_dir)
    if note is not None:
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps({"run": run.name}))


def forget_run(config: Config) -> None:
    """The run is over: what is launched under the same number is another one."""
    note = _note(config.save_dir)
    if note is not None:
        _remove(note)


def _restarted() -> bool:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _noted_run(note: Path) -> RunFolder:
    return RunFolder(note.parent / json.loads(note.read_text())["run"])


def _remove(note: Path) -> None:
    with suppress(OSError):
        note.unlink(missing_ok=True)


def _note(save_dir: str) -> Path | None:
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    if launch == _UNNAMED:  # then the first process's place tells launches apart
        launch = f"{socket.gethostname()}_{os.environ.get('MASTER_PORT')}"
    return Path(save_dir) / f".torchrun_{re.sub(r'[^A-Za-z0-9.-]+', '-', launch)}"
