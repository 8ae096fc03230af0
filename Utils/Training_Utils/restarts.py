"""Going on after torchrun has started the processes of a run again (`--max_restarts`).

Processes that were started again know their launch by its number, `TORCHELASTIC_RUN_ID`. A note in
save_dir, .torchrun_<number>, says which run is that launch's, until the run is over.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from contextlib import suppress
from pathlib import Path

from Config import Config
from Utils.files import atomic_path
from Utils.Training_Utils.run_folder import RunFolder

_UNNAMED = "none"  # what torchrun calls each launch that was given no --rdzv_id


def restarted_from(config: Config) -> Path | None:
    """The last checkpoint of the run that this launch was training; None where it had none.

    A launch is one that torchrun has restarted, or that somebody has begun again under the same
    --rdzv_id, with the same settings, for a run that is not over.
    """
    note = _note(config)
    if note is None:
        return None
    try:
        run = RunFolder(Path(config.save_dir) / json.loads(note.read_text())["run"])
        saved = Config.from_dict(json.loads(run.settings.read_text()))
    except (OSError, ValueError, LookupError):
        return None
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    again = os.environ["TORCHELASTIC_RUN_ID"] != _UNNAMED and not config.resume
    same = dataclasses.replace(saved, resume="") == dataclasses.replace(config, resume="")
    return run.last if (restarted or again) and same and run.last.exists() else None


def note_run(config: Config, run: RunFolder) -> None:
    """Note that this launch trains that run."""
    note = _note(config)
    if note is not None:
        with atomic_path(note) as temporary:
            temporary.write_text(json.dumps({"run": run.name}))


def forget_run(config: Config) -> None:
    """The run is over: what is launched under the same number is another one."""
    note = _note(config)
    if note is not None:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def _note(config: Config) -> Path | None:
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    if launch is None:
        return None
    if launch == _UNNAMED:  # then the address tells launches apart
        launch = f"{os.environ.get('MASTER_ADDR')}_{os.environ.get('MASTER_PORT')}"
    return Path(config.save_dir) / f".torchrun_{re.sub(r'[^A-Za-z0-9.-]+', '-', launch)}"
