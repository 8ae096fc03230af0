"""Running a sweep: one run after the other, each in a process of its own.

A process of its own takes its memory with it when it ends, and can die, of a lack of memory or of a
bug, without taking the sweep along. What was done is found again: a finished run with the same
settings anywhere under save_dir is not trained again, and an interrupted one of this sweep goes on
from its last checkpoint, so a sweep that was stopped is started again by the same command.

<save_dir>/sweep_<settings>_<digest>/sweep.json  sweep.csv  curves.png
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from Config import Config, ConfigError, Sweep, validate
from Config.sweep import settings_of_run
from Utils.errors import DataError, RunError, UserError
from Utils.files import make_folder
from Utils.processes import ALONE, Processes
from Utils.run_folder import RunFolder, check_writable
from Utils.Training_Utils.finished_runs import checkpoint_to_go_on_from, find_finished
from Utils.Training_Utils.sweep.curves import draw_sweep
from Utils.Training_Utils.sweep.process import SweepStop, train_in_a_process
from Utils.Training_Utils.sweep.results import (
    DONE,
    FAILED,
    SweepRun,
    describe,
    read_json,
    sweep_table,
    write_csv,
    write_json,
)


def run_sweep(sweep: Sweep, processes: Processes = ALONE) -> list[SweepRun]:
    """Train each run that is not done yet; write and print the table, draw the curves.

    Raises ConfigError, before anything is trained, for settings that can't be used, and RunError,
    after everything is, where runs failed. SIGTERM ends it early: the run under way is saved.
    """
    if processes.world_size > 1:
        text = " ".join(sweep.axes)
        raise ConfigError("sweep", text, "its runs have one process each; leave torchrun out.")
    _check(sweep)
    save_dir = Path(sweep.runs[0][1].save_dir)
    folder = save_dir / sweep_name(sweep)
    make_folder(folder)
    with _alone(folder), SweepStop() as stop:
        runs = _open_record(sweep, folder)
        for number, (run, (_, config)) in enumerate(zip(runs, sweep.runs, strict=True), 1):
            print(f"\n[{number}/{len(runs)}] {describe(run.variation)}", flush=True)
            _run(run, config, lambda: write_json(sweep, runs, folder / "sweep.json"), stop)
            _write(sweep, runs, folder)
            if stop.asked:
                print("\nAsked to stop. The same command goes on with the sweep.")
                return runs
    print(f"\n{sweep_table(runs)}\n\nTable and curves: {folder}")
    failed = sum(run.state == FAILED for run in runs)
    if failed:
        raise RunError(f"{failed} of {len(runs)} runs failed; the table says why.")
    return runs


def sweep_name(sweep: Sweep) -> str:
    """The name of a sweep's folder: the same for the same settings and values."""
    settings = [settings_of_run(config) for _, config in sweep.runs]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"sweep_{'_'.join(sweep.axes)}_{digest[:8]}"


def _check(sweep: Sweep) -> None:
    for variation, config in sweep.runs:
        if config.para_adj_mode:
            raise ConfigError("para_adj_mode", True, "it writes nothing, so there is no table.")
        try:
            validate(config, torch.cuda.device_count())
        except ConfigError as error:
            raise RunError(f"the run with {describe(variation)} can't be: {error}") from None
    check_writable(sweep.runs[0][1].save_dir)


def _open_record(sweep: Sweep, folder: Path) -> list[SweepRun]:
    """The sweep's runs, with the folders in which an earlier start of it trained them."""
    earlier = {describe(run.variation): run.folder for run in read_json(folder / "sweep.json")}
    return [
        SweepRun(variation, folder=earlier.get(describe(variation), ""))
        for variation, _ in sweep.runs
    ]


def _run(run: SweepRun, config: Config, write_record: Callable[[], None], stop: SweepStop) -> None:
    """Bring one run to its end, or to its failure; it waits on where it was asked to stop."""
    try:
        finished = find_finished(config, Path(config.save_dir))
    except UserError:  # the training data can't be read: the run will say so
        finished = None
    if finished:
        print(f"done before: {finished.path}")
        run.finish(finished.path)
        return
    started = RunFolder(Path(run.folder)) if run.folder else None
    checkpoint = checkpoint_to_go_on_from(started, config) if started else None
    config = dataclasses.replace(config, resume=str(checkpoint or ""))

    def begun(folder: str) -> None:
        run.folder = folder
        write_record()

    reason = train_in_a_process(config, begun, stop)
    if not reason:
        try:
            run.finish(Path(run.folder))
        except DataError as error:
            reason = str(error)
    if reason and not stop.asked:
        run.state, run.reason = FAILED, reason
        print(f"failed: {reason}")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder. Raises RunError where another process has it."""
    import fcntl  # here, because Windows has none, and a single run needs none

    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(f"this sweep is under way in another process ({folder}).") from None
        yield


def _write(sweep: Sweep, runs: list[SweepRun], folder: Path) -> None:
    write_json(sweep, runs, folder / "sweep.json")
    write_csv(runs, folder / "sweep.csv")
    if any(run.state == DONE for run in runs):
        draw_sweep(runs, folder / "curves.png")
