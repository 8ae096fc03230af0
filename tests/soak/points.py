"""Train.py, which gets a signal at a chosen point: the n-th time that it does something to a file,
or enters or leaves one of the places of a run. `hooked` writes a script that does this.

Each point has a name: the place that the run is in, and what it does there, such as
"save after os.replace". The places are start, step, save, test and finish.
"""

from __future__ import annotations

import functools
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import ROOT

_SYSTEM_CALLS = ("replace", "rename", "link", "symlink", "unlink", "fsync", "mkdir")


@dataclass(frozen=True)
class Hit:
    """Which signal a process gets, and when.

    at: the point, from 0; -1: none. rank: the process that is to reach it. to: who gets the
    signal: the process itself, its parent (torchrun), or its process group.
    """

    at: int = -1
    number: int = int(signal.SIGKILL)
    rank: int = 0
    to: str = "itself"

    def send(self) -> None:
        if self.to == "group":  # by another process: workers end if their parent asks them to
            subprocess.run(["sh", "-c", f"kill -{self.number} 0"], check=False)
        else:
            os.kill(os.getpid() if self.to == "itself" else os.getppid(), self.number)


def hooked(script: Path, hit: Hit, names: Path | None = None) -> Path:
    """Write a script that runs Train.py with that signal. names: gets the names of the points."""
    script.write_text(
        f"from tests.soak.points import Hit, run\nrun({hit!r}, {str(names) if names else None!r})\n"
    )
    return script


class Points:
    """Counts the points of this process, and sends the signal at the chosen one."""

    def __init__(self, hit: Hit, names: str | None) -> None:
        self._hit = hit
        self._names = open(names, "w", buffering=1) if names else None  # noqa: SIM115
        self._count = 0
        self._owner = os.getpid()  # not the loader's workers, which are forks of this process
        self.places = ["start"]

    def pass_one(self, name: str, half_written: Path | None = None) -> None:
        """Pass a point. half_written: a file that is cut in half if this is the last point."""
        if os.getpid() != self._owner:
            return
        if self._names:
            self._names.write(f"{self.places[-1]} {name}\n")
        self._count += 1
        if self._count - 1 == self._hit.at:
            if half_written and self._hit.number == signal.SIGKILL:
                os.truncate(half_written, half_written.stat().st_size // 2)
            self._hit.send()

    def watch(self, owner: Any, name: str, shown: str, place: str | None = None) -> None:
        """Make a point before and one after each call of owner.name. place: what it is called
        inside."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self.pass_one(f"before {shown}")
            if place:
                self.places.append(place)
            try:
                result = function(*args, **kwargs)
            finally:
                if place:
                    self.places.pop()
            if shown == "torch.save" and isinstance(args[1], Path):  # not into memory
                self.pass_one("within torch.save", half_written=args[1])
            self.pass_one(f"after {shown}")
            return result

        setattr(owner, name, watched)


def run(hit: Hit, names: str | None) -> None:
    """Run Train.py, with points if this is the process that the signal waits for.

    Pictures are not painted, and the network is small: they are most of the work of such a run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg.print_figure = lambda canvas, path, **options: Path(path).touch()
    if int(os.environ.get("RANK", "0")) == hit.rank:
        _set_points(Points(hit, names))
    sys.argv[0], parent = str(ROOT / "Train.py"), os.getppid()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if os.getppid() != parent:
            os._exit(0)  # forks of torchrun, unlike those that it starts, would wait for it


def _set_points(points: Points) -> None:
    import torch

    from Utils.Training_Utils import evaluation, trainer
    from Utils.Training_Utils.reports.figures import Metrics
    from Utils.Training_Utils.reports.progress import Progress

    for name in _SYSTEM_CALLS:
        points.watch(os, name, f"os.{name}")
    points.watch(shutil, "rmtree", "shutil.rmtree")
    points.watch(torch, "save", "torch.save")
    points.watch(Metrics, "add", "a row of metrics.csv")
    points.watch(trainer.TrainingStep, "__call__", "a step", "step")
    points.watch(trainer.CheckpointWriter, "save", "a save", "save")
    points.watch(evaluation.TestSets, "evaluate", "a test", "test")
    points.watch(evaluation, "embed", "embedding")
    points.watch(Progress, "report_tests", "a test's row", "test")
    points.watch(trainer, "write_results", "the results", "finish")
    points.watch(Progress, "finish", "the curves", "finish")
