"""Scripts, and several processes that work together, for tests.

All of them are forked by one server, which has imported what scripts import: importing PyTorch,
its optimisers and matplotlib takes a process four seconds, and most tests less than one.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
PAINTED = True  # whether scripts paint pictures if nothing else is said: not in pytest's tests

_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(
    [
        "tests",
        "Utils.Training_Utils.trainer",
        "Utils.Training_Utils.sweep",
        "Utils.Evaluation_Utils.megaface.evaluation",
        "matplotlib.backends.backend_agg",
        "matplotlib.figure",
        "torch.distributed.run",
        "torch._dynamo",  # which each optimiser imports
    ]
)


class Script:
    """A script that runs, with what tests use of `subprocess.Popen`."""

    def __init__(self, words: list[str], own_group: bool, painted: bool) -> None:
        self.args = words
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("out", "err")]
        for path in self._outputs:
            path.touch()
        arguments = (words, *map(str, self._outputs), own_group, painted)
        self._process = _FORKSERVER.Process(target=_run_script, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> None:
        self._process.join(timeout)
        if self.poll() is None:
            self.send_signal(signal.SIGUSR1)  # prints where its threads are
            self._process.join(1)
            said = self._outputs[1].read_text()[-5000:]
            raise AssertionError(f"{self.args} took more than {timeout} s:\n{said}")

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        with self._folder:
            return tuple(path.read_text() for path in self._outputs)


def start_script(
    *arguments: object, own_group: bool = False, painted: bool | None = None
) -> Script:
    """Start a script of the repository, "-m" and a module, or "-c" and a program.

    own_group: not in the process group of the tests. painted: with pictures that can be looked at;
    otherwise they are empty files (`leave_unpainted`). None: as `PAINTED` says.
    """
    words = [str(argument) for argument in arguments]
    return Script(words, own_group, PAINTED if painted is None else painted)


def run_script(
    *arguments: object, check: bool = False, painted: bool | None = None
) -> subprocess.CompletedProcess:
    """As `start_script`; waits for its end."""
    script = start_script(*arguments, painted=painted)
    out, err = script.communicate()
    assert not (check and script.returncode), out + err
    return subprocess.CompletedProcess(script.args, script.returncode, out, err)


def torchrun(processes: int, script: object, *options: str) -> list[str]:
    """The words that run a script in so many processes under torchrun, which forks them, so that
    they need not import PyTorch again; by default it starts each with a new interpreter."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, *options, "--run-path", "--start-method=fork", str(ROOT / str(script))]


def run_printed(command: str) -> None:
    """Run a command that a message prints, as a user would in the project's folder."""
    words = shlex.split(command)
    if words[0] == "python":
        run_script(*words[1:], check=True)
    else:
        subprocess.run(command, shell=True, check=True, cwd=ROOT)


def leave_unpainted(patch: Callable[[type, str, Callable], None] = setattr) -> None:
    """From now on matplotlib's pictures are made, and saved as empty files: it takes longer to lay
    them out and to paint them than a small run takes for the rest."""
    patch(FigureCanvasAgg, "print_figure", lambda canvas, path, **options: Path(path).touch())
    patch(Figure, "findobj", lambda figure, *kinds: [])  # which makes all of them for every axis


def _run_script(words: list[str], out: str, err: str, own_group: bool, painted: bool) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    if own_group:
        os.setpgid(0, 0)
    if not painted:
        leave_unpainted()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # under nohup they would be ignored
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    faulthandler.register(signal.SIGUSR1)
    # The system's usual way to start processes, not the server's.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def in_processes(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What function(group, *args) returns in each of `count` processes that talk through gloo.

    folder: an empty one. function: of a module, so that it can be found by its name.
    """
    arguments = (count, str(folder), function, args)
    multiprocessing.start_processes(_work, arguments, count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _work(rank: int, count: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    torch.save(function(dist.group.WORLD, *args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
