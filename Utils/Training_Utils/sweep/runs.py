"""Running a sweep: one run after the other, each a process of Train.py.

A process of its own returns its memory when it ends, and a bug or a lack of memory ends it alone.
What is done is found in the runs' folders: a finished run with the same settings anywhere under
save_dir is not trained again, and an interrupted run of this sweep is resumed from its last
checkpoint. So the same command continues a sweep that was stopped.

<save_dir>/sweep_<settings>_<digest>/sweep.json  sweep.csv  curves.png
"""

import ctypes
import dataclasses
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from Config import Config, ConfigError, Sweep, validate
from Config.command_line import flags_of
from Config.sweep import settings_of_run
from Utils.errors import DataError, RunError, UserError
from Utils.files import make_folder
from Utils.processes import ALONE, Processes
from Utils.run_folder import SWEEP, RunFolder, check_writable
from Utils.Training_Utils.data import fingerprint, open_training_data
from Utils.Training_Utils.reports.results import read_results
from Utils.Training_Utils.stopping import Sigterm
from Utils.Training_Utils.sweep.results import FAILED, SweepRun, describe, sweep_table, write_files

TRAIN = Path(__file__).resolve().parents[3] / "Train.py"
INTERRUPTED = 130  # exit status after Ctrl-C
PATIENCE = 10.0  # seconds that an interrupted run has to end


def run_sweep(sweep: Sweep, processes: Processes = ALONE) -> list[SweepRun]:
    """Train each run that is not done yet; write and print the table, draw the curves.

    Raises ConfigError, before anything is trained, for settings that can't be used, and RunError,
    after everything is, where runs failed. SIGTERM ends it early: the run in progress is saved.
    """
    if processes.world_size > 1:
        text = ", ".join(sweep.axes)
        raise ConfigError("sweep", text, "its runs have one process each; leave torchrun out.")
    _check(sweep)
    folder = Path(sweep.runs[0][1].save_dir) / sweep_name(sweep)
    make_folder(folder)
    runs = [SweepRun(variation) for variation, _ in sweep.runs]
    with open(folder / ".lock", "w") as lock, Sigterm() as stop:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"another process is running this sweep ({folder}).") from None
        for number, (run, (_, config)) in enumerate(zip(runs, sweep.runs, strict=True), 1):
            print(f"\n[{number}/{len(runs)}] {describe(run.variation)}", flush=True)
            _run(run, config, folder.name, lock.fileno(), stop)
            write_files(sweep, runs, folder)
            if stop.asked:
                print("\nAsked to stop. The same command continues the sweep.")
                return runs
    print(f"\n{sweep_table(runs)}\n\nTable and curves: {folder}")
    if failed := sum(run.state == FAILED for run in runs):
        raise RunError(f"{failed} of {len(runs)} runs failed; the table says why.")
    return runs


def sweep_name(sweep: Sweep) -> str:
    """The name of a sweep's folder: the same for the same settings and values."""
    settings = [settings_of_run(config) for _, config in sweep.runs]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"sweep_{'_'.join(sweep.axes)}_{digest[:8]}"


def find_finished(config: Config) -> RunFolder | None:
    """The newest run under save_dir that was trained to its end with these settings, on the same
    images and labels; None where there is none, or where the data can't be read."""
    finished = [run for run in _runs_with(config) if _is_finished(run)]
    try:
        data = fingerprint(open_training_data(config)) if finished else {}
    except UserError:  # the run will report it
        return None
    same = [run for run in finished if read_results(run).get("data") == data]
    return same[-1] if same else None


def _check(sweep: Sweep) -> None:
    for variation, config in sweep.runs:
        if config.para_adj_mode:
            raise ConfigError("para_adj_mode", True, "it writes nothing, so there is no table.")
        try:
            validate(config, torch.cuda.device_count())
        except ConfigError as error:
            raise RunError(f"the run with {describe(variation)} can't be: {error}") from None
    check_writable(sweep.runs[0][1].save_dir)


def _run(run: SweepRun, config: Config, sweep: str, lock: int, stop: Sigterm) -> None:
    """Train one run until it is done or fails; it stays waiting where it was told to stop.

    sweep: the name of the sweep. lock: the file descriptor of its lock.
    """
    if finished := find_finished(config):
        print(f"done before: {finished.path}")
        run.finish(finished.path)
        return
    begun = [folder for folder in _runs_with(config, sweep) if not _is_finished(folder)]
    checkpoints = [folder.last for folder in begun if folder.last.exists()]
    resume = str(checkpoints[-1]) if checkpoints else ""
    status = _train(dataclasses.replace(config, resume=resume), sweep, lock, stop)
    folders = _runs_with(config, sweep)
    run.folder = str(folders[-1].path) if folders else ""
    reason = f"exit status {status}; its messages are above"
    if status == 0:
        stop.asked |= not folders[-1].results.exists()  # its process alone was told to stop
        try:
            run.finish(folders[-1].path)
            return
        except DataError as error:
            reason = str(error)
    stop.asked |= status == -signal.SIGTERM  # before the run listened
    if not stop.asked:
        run.state, run.reason = FAILED, reason
        print(f"failed: {reason}")


def _train(config: Config, sweep: str, lock: int, stop: Sigterm) -> int:
    """Train in a process of Train.py; returns its exit status, negative for a signal's number."""
    process = subprocess.Popen(
        [sys.executable, TRAIN, *flags_of(config)],
        env={**os.environ, SWEEP: sweep},
        pass_fds=[lock],  # if the sweep is killed, its lock is held until the run has ended too
        process_group=0,  # so that a terminal's Ctrl-C reaches it once, through the sweep
        preexec_fn=_stop_with_parent,
    )
    try:
        while not stop.asked and process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        if stop.asked:
            process.terminate()
        status = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
        raise
    if status == INTERRUPTED:
        raise KeyboardInterrupt
    return status


def _stop_with_parent() -> None:
    """Have this process, a run's, receive SIGTERM when the sweep's process dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def _runs_with(config: Config, sweep: str = "") -> list[RunFolder]:
    """The runs under save_dir that were trained with these settings from their first iteration on:
    not from another run's checkpoint, and never resumed with other settings. The newest is last.

    sweep: only those that the sweep of this name began.
    """
    ours, found = settings_of_run(config), []
    for path in Path(config.save_dir).glob("*/settings.json"):
        run = RunFolder(path.parent)
        starts = run.starts()
        if not starts or starts[0].get("resume") or (sweep and starts[0].get("sweep") != sweep):
            continue
        if all(settings_of_run(Config.from_dict(settings)) == ours for settings in starts):
            found.append(run)
    return sorted(found, key=lambda run: run.settings.stat().st_mtime_ns)


def _is_finished(run: RunFolder) -> bool:
    """Whether a run has results, which are removed when it is resumed."""
    try:
        read_results(run)
    except DataError:
        return False
    return True
