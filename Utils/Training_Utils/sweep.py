"""Sweeps: one run after the other for each combination of some settings, and a table of them all.

Each run is a process of Train.py: it returns its memory when it ends, and a bug or a lack of memory
ends it alone. What is done is found in the runs' folders: a finished run with the same settings
anywhere under save_dir is not trained again, and an interrupted run of this sweep is resumed from
its last checkpoint. So the same command continues a sweep that was stopped.

    <save_dir>/sweep_<settings>_<digest>/sweep.json  sweep.csv  curves.png

The spread over the seeds is the sample standard deviation, with n - 1: it estimates that of all
seeds from the n seeds that were trained.
"""

import csv
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from Config import Config, ConfigError, Sweep, validate
from Config.command_line import flags_of
from Config.fields import written
from Config.sweep import Variation, settings_of_run
from Utils.errors import DataError, RunError, UserError
from Utils.Evaluation_Utils.plots import save_figure
from Utils.files import atomic_path, make_folder, save_json
from Utils.processes import ALONE, Processes, stop_with_parent
from Utils.run_folder import SWEEP, RunFolder, check_writable
from Utils.tables import format_table
from Utils.Training_Utils.data import fingerprint, open_training_data
from Utils.Training_Utils.reports.figures import (
    MEAN,
    has_results,
    mean_accuracy,
    read_results,
    read_rows,
    series,
)
from Utils.Training_Utils.stopping import StopSignals

TRAIN = Path(__file__).resolve().parents[2] / "Train.py"
INTERRUPTED = 130  # exit status after Ctrl-C
STD = "sample standard deviation (n - 1) over the seeds"
DONE, FAILED = "done", "failed"


@dataclass
class SweepRun:
    """One run. state: waiting, done or failed. folder: "" before it has one. reason: why it failed.
    loss: mean since the last line of its log. last, best: accuracies 0..1 by test set, and their
    mean."""

    variation: Variation
    state: str = "waiting"
    folder: str = ""
    reason: str = ""
    loss: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def finish(self, folder: Path) -> None:
        """Take the figures of a run that was trained to its end. Raises DataError as
        `read_results` does."""
        results = read_results(RunFolder(folder))
        self.loss, self.last = results["loss"], dict(results["last"])
        self.best = {name: best["accuracy"] for name, best in results["best"].items()}
        if self.last:
            self.last[MEAN] = mean_accuracy(self.last)
        self.state, self.folder, self.reason = DONE, str(folder), ""


def run_sweep(sweep: Sweep, processes: Processes = ALONE) -> list[SweepRun]:
    """Train each run that is not done yet; write and print the table, draw the curves.

    Raises ConfigError, before anything is trained, for settings that can't be used, and RunError,
    after everything is, if runs failed. SIGTERM, SIGHUP and Ctrl-C end it early: the run in
    progress is saved. Ctrl-C raises KeyboardInterrupt then.
    """
    if processes.world_size > 1:
        text = ", ".join(sweep.axes)
        raise ConfigError("sweep", text, "its runs have one process each; leave torchrun out.")
    for variation, config in sweep.runs:
        if config.para_adj_mode:
            raise ConfigError("para_adj_mode", True, "it writes nothing, so there is no table.")
        try:
            validate(config, torch.cuda.device_count())
        except ConfigError as error:
            raise RunError(f"the run with {describe(variation)} can't be: {error}") from None
    save_dir = sweep.runs[0][1].save_dir
    check_writable(save_dir)
    folder = Path(save_dir) / sweep_name(sweep)
    make_folder(folder)
    runs = [SweepRun(variation) for variation, _ in sweep.runs]
    with open(folder / ".lock", "w") as lock, StopSignals() as stop:
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
                if stop.interrupted:
                    raise KeyboardInterrupt
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
    images and labels; None if there is none, or where the data can't be read."""
    finished = [run for run in _runs_with(config) if has_results(run)]
    try:
        data = fingerprint(open_training_data(config)) if finished else {}
    except UserError:  # the run will report it
        return None
    same = [run for run in finished if read_results(run).get("data") == data]
    return same[-1] if same else None


def _run(run: SweepRun, config: Config, sweep: str, lock: int, stop: StopSignals) -> None:
    """Train one run until it is done or fails; it stays waiting where it was told to stop.

    sweep: the name of the sweep. lock: the file descriptor of its lock.
    """
    if finished := find_finished(config):
        print(f"done before: {finished.path}")
        run.finish(finished.path)
        return
    begun = [folder for folder in _runs_with(config, sweep) if not has_results(folder)]
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


def _train(config: Config, sweep: str, lock: int, stop: StopSignals) -> int:
    """Train in a process of Train.py; returns its exit status, negative for a signal's number."""
    process = subprocess.Popen(
        [sys.executable, TRAIN, *flags_of(config)],
        env={**os.environ, SWEEP: sweep},
        pass_fds=[lock],  # if the sweep is killed, its lock is held until the run has ended too
        process_group=0,  # so that a terminal's Ctrl-C reaches it once, through the sweep
        preexec_fn=stop_with_parent,
    )
    try:
        while not stop.asked and process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
        if stop.asked:
            process.terminate()
        status = process.wait()
    except KeyboardInterrupt:  # a second Ctrl-C
        process.kill()
        raise
    if status == INTERRUPTED:
        stop.asked = stop.interrupted = True
    return status


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


def describe(variation: Variation) -> str:
    """A variation as text, such as `margin ArcFace, scale_size 32`."""
    return ", ".join(f"{name} {shown}" for name, shown in _shown(variation).items())


def _shown(variation: Variation) -> dict[str, str]:
    return {name: written(value) or "none" for name, value in variation.items()}


def grouped(runs: list[SweepRun]) -> list[tuple[Variation, list[SweepRun]]]:
    """The runs in groups that differ in their seed alone, each with its other settings."""
    groups: dict[str, tuple[Variation, list[SweepRun]]] = {}
    for run in runs:
        rest = {name: value for name, value in run.variation.items() if name != "seed"}
        groups.setdefault(describe(rest), (rest, []))[1].append(run)
    return list(groups.values())


def figures_of(runs: list[SweepRun]) -> list[tuple[Variation, dict[str, Any]]]:
    """The settings of each group, with the number of its runs and of those that are done, mean and
    standard deviation of their loss and accuracies; None for those that too few runs have."""
    found = []
    for settings, group in grouped(runs):
        done = [run for run in group if run.state == DONE]
        columns = {"loss": [run.loss for run in done]}
        for kind in ("last", "best"):
            for test in _test_names(runs):
                columns[f"{kind} {test}"] = [getattr(run, kind).get(test) for run in done]
        figures: dict[str, Any] = {"runs": len(group), "done": len(done)}
        for name, values in columns.items():
            known = [value for value in values if value is not None]
            figures[f"{name} mean"] = statistics.fmean(known) if known else None
            figures[f"{name} std"] = statistics.stdev(known) if len(known) > 1 else None
        found.append((settings, figures))
    return found


def _test_names(runs: list[SweepRun]) -> list[str]:
    """The test sets of all runs, the mean over them last."""
    names = dict.fromkeys(name for run in runs for name in run.last)
    return [name for name in names if name != MEAN] + ([MEAN] if len(names) > 2 else [])


def sweep_table(runs: list[SweepRun]) -> str:
    """Lines with the figures of each group, and why runs failed, for printing."""

    def spread(name: str, factor: int, digits: int) -> str:
        known = [v for v in (figures[f"{name} mean"], figures[f"{name} std"]) if v is not None]
        return " ± ".join(f"{factor * value:.{digits}f}" for value in known) or "-"

    groups, tests = figures_of(runs), _test_names(runs)
    names = list(groups[0][0])
    rows = [[*names, "runs", "loss", *tests]]
    for settings, figures in groups:
        count, done = figures["runs"], figures["done"]
        trained = str(count) if done == count else f"{done} of {count}"
        accuracies = [spread(f"last {test}", 100, 2) for test in tests]
        rows.append([*_shown(settings).values(), trained, spread("loss", 1, 4), *accuracies])
    notes = "Accuracies in percent, at the end of training."
    if any(figures["runs"] > 1 for _, figures in groups):
        notes += f" ±: {STD}."
    failed = [run for run in runs if run.state == FAILED]
    failures = [f"failed: {describe(run.variation)}: {run.reason}" for run in failed]
    table = format_table(rows, "<" * len(names) + ">" * (2 + len(tests)))
    return "\n".join([table, "", notes, *failures])


def write_files(sweep: Sweep, runs: list[SweepRun], folder: Path) -> None:
    """Write sweep.json, sweep.csv (a line for each group) and, if a run is done, curves.png."""
    groups = figures_of(runs)
    record = {
        "axes": sweep.axes,
        "std": STD,
        "groups": [{"settings": settings, **figures} for settings, figures in groups],
        "runs": [dataclasses.asdict(run) for run in runs],
    }
    save_json(folder / "sweep.json", record)
    rows = [{**_shown(settings), **figures} for settings, figures in groups]
    with atomic_path(folder / "sweep.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if any(run.state == DONE for run in runs):
        _draw(runs, folder / "curves.png")


def _draw(runs: list[SweepRun], path: Path) -> None:
    """Draw training loss and each test set's accuracy over the iterations, as PNG: a line for each
    run, in the same colour where runs differ in their seed alone."""
    # Imported here: a script starts sooner without it.
    from matplotlib.figure import Figure

    columns = ["loss", *(name for name in _test_names(runs) if name != MEAN)]
    height, groups = math.ceil(len(columns) / 2), grouped(runs)
    size = (12, 3.8 * height + 0.3 * len(groups))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = [figure.add_subplot(height, 2, number) for number in range(1, len(columns) + 1)]
    for number, (settings, group) in enumerate(groups):
        dashes = ("-", "--", ":", "-.")[number // 10 % 4]  # there are ten colours
        style = {"color": f"C{number}", "linestyle": dashes, "marker": ".", "markersize": 4}
        style["label"] = describe(settings) or "all seeds"
        for run in group:
            metrics = RunFolder(Path(run.folder)).metrics
            rows = read_rows(metrics) if run.state == DONE and metrics.exists() else []
            for panel, column in zip(panels, columns, strict=True):
                panel.plot(*series(rows, column), **style)
            style["label"] = None
    for panel, column in zip(panels, columns, strict=True):
        panel.set_title("training loss" if column == "loss" else f"{column} accuracy", fontsize=10)
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    save_figure(figure, path)
