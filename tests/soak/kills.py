"""Runs that are killed, or asked to stop, at moments drawn from the seed, and continued.

A run survives if, continued with `--resume last`, it ends bit for bit as the same run left alone:
all of its last and best checkpoint, the rows of metrics.csv (but images per second) and
results.json; if no process of it stays behind; and if no half-written file does.
"""

from __future__ import annotations

import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from tests.conftest import TinyFaces, make_tiny_faces
from tests.processes import Script, start_script, torchrun
from tests.soak.campaign import Allowance, Row
from tests.soak.comparing import difference, rows_of
from tests.soak.points import Hit, hooked
from Utils.run_folder import RunFolder
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run

PATIENCE = 120.0  # seconds that a run of a second has to end, on a machine full of others
ORPHANS_END = 20.0  # seconds after which no process of a killed run may be left

# Two epochs of three iterations: figures at 4 and 6, tests at 3 and 6, checkpoints at 3, 5 and 6.
_FLAGS = ["--log_freq=4", "--test_freq=3", "--save_freq=5", "--total_epoch=2", "--milestones=1"]

_NONE = Hit()

Test = Callable[[random.Random], str | None]


@dataclass(frozen=True)
class Form:
    """How a run is trained. folders: whether its checkpoints are folders."""

    processes: int
    folders: bool
    workers: int

    @property
    def flags(self) -> list[str]:
        form = "sharded" if self.folders else "file"
        head = ["--head_parallel=sharded"] if self.folders and self.processes > 1 else []
        return [*_FLAGS, f"--checkpoint_format={form}", f"--num_workers={self.workers}", *head]

    def __str__(self) -> str:
        kind = "folders" if self.folders else "files"
        return f"{self.processes} processes, {kind}, {self.workers} workers"


@dataclass(frozen=True)
class Alone:
    """A run left alone. points: their names, in each process. seconds: from start to end."""

    run: RunFolder
    points: list[list[str]]
    seconds: float

    def index(self, name: str, last: bool = False) -> int:
        """The first or last point of this name in the first process."""
        found = [index for index, point in enumerate(self.points[0]) if point == name]
        return found[-1 if last else 0]


class Killing:
    """Starts runs, sends them signals, continues them, and compares them with runs left alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._alone: dict[tuple[int, bool], Alone] = {}

    @cached_property
    def faces(self) -> TinyFaces:
        return replace(make_tiny_faces(self.folder / "faces"), backbone="SmallNet")

    def alone(self, form: Form) -> Alone:
        """The run left alone of that number of processes and kind of checkpoint."""
        key = form.processes, form.folders
        if key not in self._alone:
            points, seconds = [], 0.0
            for rank in range(form.processes):
                save_dir, names = self._new_folder(), self._new_folder() / "points.txt"
                begin = time.monotonic()
                self.end(self.start(form, save_dir, Hit(rank=rank), names=names))
                seconds = time.monotonic() - begin
                points.append(names.read_text().splitlines())
            self._alone[key] = Alone(finished(save_dir), points, seconds)
        return self._alone[key]

    def start(
        self,
        form: Form,
        save_dir: Path,
        hit: Hit = _NONE,
        resume: bool = False,
        names: Path | None = None,
    ) -> Script:
        """Start a run, or continue the last one of `save_dir`."""
        script = hooked(save_dir.with_suffix(".py"), hit, names)
        words = torchrun(form.processes, script) if form.processes > 1 else [script]
        flags = ["--resume=last"] if resume else [*self.faces.flags, *form.flags]
        return start_script(*words, *flags, "--save_dir", save_dir, own_group=True)

    def end(self, script: Script) -> str:
        """Wait for the end of a run that nothing happens to; returns what it said."""
        said = "".join(script.communicate(PATIENCE))
        if script.returncode:
            raise RuntimeError(said)
        return said

    def killed(self, form: Form, hit: Hit, resumed_hit: Hit | None = None) -> str | None:
        """Kill a run at a point, perhaps also the continued one; returns what was lost."""
        save_dir = self._new_folder()
        self._wait(self.start(form, save_dir, hit))
        if resumed_hit is not None:
            self._wait(self.start(form, save_dir, resumed_hit, resume=True))
        return self.lost(form, save_dir)

    def killed_at(self, form: Form, seconds: float, victim: str) -> str | None:
        """Kill a process of a run so many seconds after its start; returns what was lost.

        victim: first or second process, torchrun, or all of them.
        """
        save_dir = self._new_folder()
        script = self.start(form, save_dir)
        time.sleep(seconds)
        if victim == "all":
            send(os.killpg, script.pid)
        elif form.processes == 1 or victim == "torchrun":
            send(os.kill, script.pid)
        else:
            ranks = children(script.pid)
            if len(ranks) == form.processes:
                send(os.kill, ranks[victim == "second"])
        self._wait(script)
        return self.lost(form, save_dir)

    def stopped(self, form: Form, hit: Hit) -> str | None:
        """Send a run a signal that asks it to stop, at a point; returns what was lost."""
        save_dir = self._new_folder()
        script = self.start(form, save_dir, hit)
        said = self._wait(script)
        if lost := not_stopped_well(script.returncode, said, save_dir, form, hit):
            return lost
        return self.lost(form, save_dir)

    def lost(self, form: Form, save_dir: Path) -> str | None:
        """Continue a run until it is finished; returns how it differs from the one left alone."""
        for _ in range(3):
            if run := finished(save_dir):
                return difference(run, self.alone(form).run)
            script = self.start(form, save_dir, resume=True)
            said = self._wait(script)
            if script.returncode and "has a checkpoint" in " ".join(said.split()):
                said = self._wait(self.start(form, save_dir))  # there was none to continue from
        return f"the continued run did not finish: {said[-2000:]}"

    def _wait(self, script: Script) -> str:
        """Wait until a run and all its processes have ended; returns what it said."""
        said = "".join(script.communicate(PATIENCE))
        until = time.monotonic() + ORPHANS_END
        while left := members(script.pid):
            if time.monotonic() > until:
                send(os.killpg, script.pid)
                raise OrphansError(
                    f"processes {left} were left behind; it had said: {said[-2000:]}"
                )
            time.sleep(0.02)
        return said

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder, prefix="runs_"))


class OrphansError(Exception):
    """Processes of a run that has ended."""


def finished(save_dir: Path) -> RunFolder | None:
    """The run that has results."""
    found = [RunFolder(path.parent) for path in save_dir.glob("*/results.json")]
    return found[0] if found else None


def not_stopped_well(
    status: int | None, said: str, save_dir: Path, form: Form, hit: Hit
) -> str | None:
    """What is wrong with the end of a run that was asked to stop."""
    said_briefly = f"status {status}: {said[-2000:]}"
    if "DataLoader worker" in said:
        return f"it lost a worker; {said_briefly}"
    if found := re.search(r"(?:asked to stop after|stopped at) iteration (\d+)", said):
        runs = [RunFolder(path.parent) for path in save_dir.glob("*/settings.json")]
        saved = read_run(runs[0].last)["position"]["iteration"] if runs[0].last.exists() else 0
        if saved != int(found[1]):
            return f"saved iteration {saved}; {said_briefly}"
    elif not finished(save_dir) and any(len(rows_of(p)) for p in save_dir.glob("*/metrics.csv")):
        return f"it had begun and did not save; {said_briefly}"
    if form.processes == 1 and "Traceback" in said:
        return f"it ended with a traceback; {said_briefly}"
    return None


def send(how: Callable[[int, int], None], to: int) -> None:
    """SIGKILL to a process or a group that may have ended."""
    with suppress(ProcessLookupError):
        how(to, signal.SIGKILL)


def children(pid: int) -> list[int]:
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def members(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found


def campaign(allowance: Allowance) -> Iterator[Row]:
    """Try the kinds of fault again and again, in other orders, until the time is over."""
    killing, rng = Killing(allowance.folder), random.Random(allowance.seed)
    tests = _tests(killing)
    rows = {name: Row(name) for name in tests}
    while allowance.left():
        for name in rng.sample(list(tests), len(tests)):
            if not allowance.left():
                break
            number = rng.randrange(10**9)
            try:
                failure = tests[name](random.Random(number))
            except (OrphansError, AssertionError) as error:
                failure = str(error)
            rows[name].count(failure and f"draw {number}: {failure}")
    yield from rows.values()


def _tests(killing: Killing) -> dict[str, Test]:
    """Each kind of fault."""
    tests: dict[str, Test] = {}
    for processes in (1, 2):
        words = "one process" if processes == 1 else "two processes"
        form = partial(_form, processes)
        tests[f"SIGKILL at any time, {words}"] = partial(_at_any_time, killing, form)
        for where in PLACES:
            tests[f"SIGKILL {where}, {words}"] = partial(_at_point, killing, form, where)
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            receivers = ("itself", "group") if processes == 1 else ("itself", "parent")
            for to in receivers:
                shown = {"itself": "a process", "group": "its group", "parent": "torchrun"}[to]
                tests[f"{name} to {shown}, {words}"] = partial(_stopped, killing, form, name, to)
    return tests


def _form(processes: int, rng: random.Random) -> Form:
    return Form(processes, rng.random() < 0.5, rng.choice((0, 2)))


def _at_any_time(killing: Killing, form: Callable, rng: random.Random) -> str | None:
    drawn = form(rng)
    victim = rng.choice(("first", "second", "torchrun", "all"))
    seconds = rng.uniform(0, killing.alone(drawn).seconds)
    failure = killing.killed_at(drawn, seconds, victim)
    return failure and f"{drawn}, {victim} after {seconds:.2f} s: {failure}"


PLACES = (
    "before the first save",
    "inside a save",
    "in a test",
    "in the last epoch",
    "after training",
    "while resuming",
)


def _at_point(killing: Killing, form: Callable, where: str, rng: random.Random) -> str | None:
    drawn = form(rng)
    alone = killing.alone(drawn)
    rank = rng.randrange(drawn.processes)
    points = alone.points[rank]
    first_save, steps = _first(points, "save"), _steps(points)
    last_epoch = steps[-3]
    candidates = {
        "before the first save": range(first_save),
        "inside a save": [i for i, p in enumerate(points) if p.startswith("save")],
        "in a test": [i for i, p in enumerate(points) if p.startswith("test")],
        "in the last epoch": range(last_epoch, steps[-1] + 1),
        "after training": range(steps[-1] + 1, len(points)),
        "while resuming": range(first_save + 1, len(points)),
    }[where]
    at = rng.choice(list(candidates))
    again = None
    if where == "while resuming":
        again = Hit(rng.randrange(first_save), rank=rank)
    elif rng.random() < 0.2:
        again = Hit(rng.randrange(len(points)), rank=rank)
    failure = killing.killed(drawn, Hit(at, rank=rank), again)
    then = f", then point {again.at}" if again else ""
    return failure and f"{drawn}, rank {rank} at point {at} ({points[at]}){then}: {failure}"


def _stopped(
    killing: Killing, form: Callable, name: str, to: str, rng: random.Random
) -> str | None:
    drawn = form(rng)
    alone = killing.alone(drawn)
    rank = rng.randrange(drawn.processes)
    points = alone.points[rank]
    at = rng.randrange(len(points))
    failure = killing.stopped(drawn, Hit(at, int(signal.Signals[name]), rank, to))
    return failure and f"{drawn}, rank {rank} at point {at} ({points[at]}): {failure}"


def _first(points: list[str], place: str) -> int:
    return next(index for index, point in enumerate(points) if point.startswith(place))


def _steps(points: list[str]) -> list[int]:
    return [index for index, point in enumerate(points) if point.endswith("after a step")]
