"""Runs that need not be trained again: what a run's folder says of its settings and its end."""

import json
from pathlib import Path
from typing import Any

from Config import Config
from Config.sweep import settings_of_run
from Utils.errors import CheckpointError, DataError
from Utils.run_folder import RunFolder
from Utils.Training_Utils.checkpoint import read_run
from Utils.Training_Utils.data import fingerprint, open_training_data
from Utils.Training_Utils.reports.results import read_results

SETTINGS_LINE = "  settings {"  # in train.log, at each start of the run


def find_finished(config: Config, save_dir: Path) -> RunFolder | None:
    """The newest run under save_dir that was trained to its end with these settings, and with the
    images and labels that they stand for today; or None.

    Raises what `open_training_data` does, where there is a run with these settings.
    """
    finished = [
        run
        for run in (RunFolder(path.parent) for path in Path(save_dir).glob("*/results.json"))
        if is_finished(run) and trained_with(run, config)
    ]
    if finished:
        data = fingerprint(open_training_data(config))
        finished = [run for run in finished if read_results(run).get("data") == data]
    return max(finished, key=lambda run: run.results.stat().st_mtime_ns, default=None)


def is_finished(run: RunFolder) -> bool:
    """Whether a run came to its end: it has results, which going on with it removes."""
    try:
        read_results(run)
    except DataError:
        return False
    return True


def trained_with(run: RunFolder, config: Config) -> bool:
    """Whether all of a run, from its first iteration on, was trained with these settings.

    A run that began with the checkpoint of another one, or was trained on with other settings, was
    not.
    """
    starts = _starts(run.log)
    if not starts or starts[0].get("resume"):
        return False
    ours = settings_of_run(config)
    return all(settings_of_run(Config.from_dict(settings)) == ours for settings in starts)


def checkpoint_to_go_on_from(run: RunFolder, config: Config) -> Path | None:
    """The last checkpoint of a run with these settings that has no results; or None. It may be of
    the run's end, where only the tests are to be done again."""
    if not run.last.exists() or is_finished(run) or not trained_with(run, config):
        return None
    try:
        read_run(run.last, lazily=True)
    except CheckpointError:
        return None
    return run.last


def _starts(log: Path) -> list[dict[str, Any]]:
    """The settings with which a run was started, each time."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [
        json.loads("{" + line.partition(SETTINGS_LINE)[2])
        for line in text.splitlines()
        if SETTINGS_LINE in line and line.endswith("}")
    ]
