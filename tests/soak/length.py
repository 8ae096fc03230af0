"""Long runs in one process: memory, open files, threads must not grow; files only as they should.

A process of its own, with a worker of the loader, is measured while it trains 20,000 iterations,
and another one while it evaluates 200 times, MegaFace each tenth time. Both end earlier, at a
moment of their own, where the time is over.
"""

from __future__ import annotations

import csv
import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.conftest import TinyFaces, make_tiny_faces
from tests.processes import ROOT, run_script
from tests.soak.campaign import Allowance, Row
from tests.tiny_megaface import make_tiny
from Utils.run_folder import RunFolder

ITERATIONS, EVALUATIONS, EVERY_MEGAFACE = 20_000, 200, 10
EPOCH = 300  # iterations
LOG, SAVE, TEST = 20, 1000, 1000
MEMORY_SLOPE = 1.0  # MB for 1,000 iterations, or 10 evaluations
FEWEST, LEAST_UNITS = 12, 5  # samples; thousands of iterations, or tens of evaluations
LEAST_GROWTH = 8.0  # MB: short measurements have this much noise
LONGEST_ROW, LONGEST_LINE = 80, 180  # bytes of metrics.csv, and of train.log for an iteration

# (iteration or evaluation, MB of memory, open files, threads), with the workers'.
Sample = tuple[int, float, int, int]


def campaign(allowance: Allowance) -> Iterator[Row]:
    """The long run and the evaluations, each in half of the time."""
    faces = make_tiny_faces(allowance.folder / "faces")
    middle = (time.monotonic() + allowance.until) / 2
    yield _long_run(allowance.folder, faces, middle)
    yield _evaluations(allowance.folder, faces, allowance.until)


def _long_run(folder: Path, faces: TinyFaces, until: float) -> Row:
    longer = folder / "longer.txt"
    longer.write_text(faces.train_list.read_text() * (EPOCH * 8 // 24))
    faces = replace(faces, train_list=longer, backbone="SmallNet")
    epochs = -(-ITERATIONS // EPOCH)
    flags = [*faces.flags, "--save_dir", str(folder / "runs"), "--num_workers=1"]
    flags += [f"--log_freq={LOG}", f"--save_freq={SAVE}", f"--test_freq={TEST}"]
    flags += [f"--total_epoch={epochs}", "--milestones=", "--initial_lr=0.001"]
    samples = _measured("train", folder, flags, until)
    row = Row("iterations in one process")
    row.tries = samples[-1][0]
    row.note, row.lost = _judge(samples, 1000, "iterations")
    (run,) = (RunFolder(path) for path in (folder / "runs").iterdir())
    row.lost += _unexpected_files(run, row.tries)
    sizes = (_bytes_a_line(path) for path in (run.metrics, run.log))
    row.note += "; metrics.csv {:.0f}, train.log {:.0f} bytes a line".format(*sizes)
    return row


def _evaluations(folder: Path, faces: TinyFaces, until: float) -> Row:
    mega = make_tiny(folder / "mega")
    flags = ["--checkpoint", str(mega.checkpoint()), "--device=cpu", "--num_workers=1"]
    set_flags = [*flags, "--data", str(faces.lfw), "--pairs", str(faces.lfw_pairs)]
    samples = _measured("evaluate", folder, [set_flags, mega.flags()], until)
    row = Row("evaluations in one process")
    row.tries = samples[-1][0]
    row.note, row.lost = _judge(samples, 10, "evaluations")
    return row


def _measured(function: str, folder: Path, flags: list, until: float) -> list[Sample]:
    """Have `train` or `evaluate` called in a new process; returns the samples that it took."""
    task, samples = folder / f"{function}.json", folder / f"{function}_samples.csv"
    seconds = max(until - time.monotonic(), 5.0)
    task.write_text(json.dumps({"flags": flags, "seconds": seconds, "samples": str(samples)}))
    code = f"from tests.soak import length; length.{function}({str(task)!r})"
    run_script("-c", code, check=True)
    rows = (line.split(",") for line in samples.read_text().splitlines())
    return [(int(n), float(mb), int(files), int(threads)) for n, mb, files, threads in rows]


class Meter:
    """Writes samples of this process, with its children, to a file."""

    def __init__(self, task: dict) -> None:
        self._file = open(task["samples"], "w", buffering=1)  # noqa: SIM115
        self._until = time.monotonic() + task["seconds"]

    def take(self, count: int) -> bool:
        """Whether there is time for more."""
        path = Path(f"/proc/self/task/{os.getpid()}/children")
        pids = [str(os.getpid()), *path.read_text().split()]
        memory = files = threads = 0
        for pid in pids:
            try:
                pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
                memory += int(pages) * os.sysconf("SC_PAGESIZE")
                files += len(os.listdir(f"/proc/{pid}/fd"))
                threads += len(os.listdir(f"/proc/{pid}/task"))
            except OSError:  # a child that has just ended
                continue
        self._file.write(f"{count},{memory / 2**20:.3f},{files},{threads}\n")
        return time.monotonic() < self._until


def train(task: str) -> None:
    """Train with a small network, measured with each line of the log; stop when time is over."""
    from Utils.Training_Utils.reports.progress import Progress

    given = json.loads(Path(task).read_text())
    meter, report = Meter(given), Progress.report

    def measured(progress: Progress) -> None:
        report(progress)
        iteration = progress.metrics.rows[-1]["iteration"]
        if not meter.take(iteration):
            signal.raise_signal(signal.SIGTERM)

    Progress.report = measured
    sys.argv = [str(ROOT / "Train.py"), *given["flags"]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def evaluate(task: str) -> None:
    """Evaluate again and again, each time into the same folder."""
    from Config import read_config, settings_for
    from Utils.cpu import keep_freed_memory
    from Utils.Evaluation_Utils.megaface.evaluation import evaluate_megaface
    from Utils.Evaluation_Utils.report import evaluate_set

    given = json.loads(Path(task).read_text())
    keep_freed_memory()
    meter = Meter(given)
    for number in range(1, EVALUATIONS + 1):
        output = Path(task).with_name(f"figures_{number}")
        words = ["--output", str(output)]
        if number % EVERY_MEGAFACE:
            evaluate_set(read_config("", settings_for("any_set"), argv=given["flags"][0] + words))
        else:
            config = read_config("", settings_for("megaface"), argv=given["flags"][1] + words)
            evaluate_megaface(config)
        if not meter.take(number):
            break


def _judge(samples: list[Sample], unit: int, name: str) -> tuple[str, list[str]]:
    """A note with the slopes after the warm-up, the first quarter, and what grows."""
    if len(samples) < FEWEST or samples[-1][0] < LEAST_UNITS * unit:
        return f"{samples[-1][1]:.0f} MB; too few to see whether it grows", []
    table = np.array(samples[len(samples) // 4 :], float)
    counts, memory = table[:, 0], table[:, 1]
    slope = unit * np.polyfit(counts, memory, 1)[0]
    growth = slope * (counts[-1] - counts[0]) / unit
    lost = []
    if slope > MEMORY_SLOPE and growth > LEAST_GROWTH:
        lost.append(f"memory grows by {slope:.2f} MB for {unit:,} {name}")
    ends = []
    for column, what in ((2, "open files"), (3, "threads")):
        values = np.array(samples, float)[:, column]
        early, late = (part.max() for part in np.array_split(values[len(values) // 4 :], 2))
        ends.append(f"{late:.0f} {what}")
        if late > early + 1:
            lost.append(f"{what} grow from {early:.0f} to {late:.0f}")
    note = f"{memory[-1]:.0f} MB, {slope:+.2f} MB for {unit:,} {name}; {', '.join(ends)}"
    return note, lost


def _unexpected_files(run: RunFolder, iterations: int) -> Iterator[str]:
    """What is wrong with the sizes and numbers of a long run's files."""
    saved = {n for n in range(1, iterations + 1) if n % SAVE == 0 or n % EPOCH == 0}
    expected = {f"iteration_{n:08d}.pt" for n in saved | {iterations}}
    names = {path.name for path in run.checkpoints.glob("iteration_*")}
    if unexpected := names - expected - {f"iteration_{iterations + 1:08d}.pt"}:
        yield f"checkpoints {sorted(unexpected)[:3]} are there"
    if missing := {f"iteration_{n:08d}.pt" for n in saved} - names:
        yield f"checkpoints {sorted(missing)[:3]} are missing"
    sizes = [path.stat().st_size for path in run.checkpoints.glob("*.pt")]
    if max(sizes) > 1.1 * min(sizes):
        yield f"checkpoints grow from {min(sizes):,} to {max(sizes):,} bytes"
    with open(run.metrics, newline="") as file:
        rows = sum(bool(row["loss"]) for row in csv.DictReader(file))
    if rows != len({n for n in range(1, iterations + 1) if n % LOG == 0} | {iterations}):
        yield f"metrics.csv has {rows} rows of training"
    for path, most in ((run.metrics, LONGEST_ROW), (run.log, LONGEST_LINE)):
        if _bytes_a_line(path) > most:
            yield f"{path.name} has {_bytes_a_line(path):.0f} bytes a line"


def _bytes_a_line(path: Path) -> float:
    """The mean size of the lines about an iteration; others are only at the start and the end."""
    lines = path.read_bytes().splitlines(keepends=True)
    sizes = [len(line) for line in lines if path.suffix == ".csv" or b"  iteration " in line]
    return sum(sizes) / len(sizes)
