"""Two trainings side by side, each in its own process, to the first tensor that differs.

Both stop after each step until the digests of their tensors are compared; only tensors whose
digests differ are sent. So the memory is that of two trainings, whatever the number of steps.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.errors import RunError
from Utils.Training_Utils.compare_losses import sides
from Utils.Training_Utils.compare_losses.sides import Side

RECORDER = Path(__file__).with_name("recorder.py")


@dataclass(frozen=True)
class Difference:
    """step: from 1; 0 is before the first one. tensor: its name. text: how much it differs."""

    step: int
    tensor: str
    text: str


@dataclass(frozen=True)
class Comparison:
    """difference: the first one; None for none. steps, tensors: that were compared."""

    difference: Difference | None
    steps: int
    tensors: int


def start(words: list[str]) -> Any:
    """Start Python with these words; the result has `poll` and `wait`."""
    return subprocess.Popen([sys.executable, *words])


class Training:
    """One side's process. folder: for its files, an empty one."""

    def __init__(self, side: Side, steps: int, double: bool, folder: Path) -> None:
        self.side, self._file, self._log = side, folder / "tensor.npy", folder / "log.txt"
        job = {
            **{"tree": str(side.tree), "flags": side.flags, "steps": steps, "double": double},
            **{"socket": str(folder / "socket"), "file": str(self._file), "log": str(self._log)},
            **{"folder": str(Path.cwd()), "not_from": ["", str(sides.ROOT), str(RECORDER.parent)]},
        }
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(job["socket"])
            server.listen()
            server.settimeout(0.2)
            self._process = start([str(RECORDER), json.dumps(job)])
            self._connection = self._accept(server)
        self._connection.settimeout(None)
        self._channel = self._connection.makefile("rw")

    def read(self) -> dict[str, Any] | None:
        """What the process tells next; None at the end of its run. Raises RunError where it failed,
        with its own words."""
        line = self._channel.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        if self._process.poll():
            raise self._failed()
        return None

    def tensor(self, number: int) -> tuple[np.ndarray, str]:
        """(a tensor of the step, float64; its dtype)."""
        self.answer(number)
        about = self.read()
        return np.load(self._file), about["dtype"]

    def answer(self, value: int | str) -> None:
        """Ask for a tensor by its number, or for the "next" step."""
        print(json.dumps(value), file=self._channel, flush=True)

    def close(self) -> None:
        """End the process, which writes nothing that could be left unfinished."""
        self._channel.close()
        self._connection.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _accept(self, server: socket.socket) -> socket.socket:
        while True:
            try:
                return server.accept()[0]
            except TimeoutError:
                if self._process.poll() is not None:
                    raise self._failed() from None

    def _failed(self) -> RunError:
        said = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        last = said.splitlines()[-1] if said else "it ended before it began"
        last = re.sub(r"^(Utils|Config)\.[\w.]+Error: ", "", last)  # a user's mistake
        return RunError(f"{self.side.name} can't be trained: {last}")


def compare(
    a: Side, b: Side, steps: int, double: bool, tolerance: float, folder: Path
) -> Comparison:
    """Train both sides for some steps, or to the first difference.

    double: in float64; else as their settings say. tolerance: the largest difference of a tensor
    that counts as equal, as a share of its largest value; 0: bit for bit, but -0 is 0.
    folder: an empty one. Raises RunError where a side can't be trained.
    """
    with ExitStack() as stack:
        pair = []
        for name, side in (("a", a), ("b", b)):
            (folder / name).mkdir()
            pair.append(Training(side, steps, double, folder / name))
            stack.callback(pair[-1].close)
            if name == "a":  # which may have to draw the demo's faces, where both look for them
                first = pair[0].read()
        told = [first, pair[1].read()]
        done, count = 0, 0
        while all(told):
            done, count = told[0]["step"], len(told[0]["tensors"])
            if found := _difference(pair, told, tolerance):
                return Comparison(found, done, count)
            for training in pair:
                training.answer("next")
            told = [training.read() for training in pair]
        if any(told):
            longer = pair[0 if told[0] else 1].side.name
            found = Difference(done + 1, "step", f"only {longer} has one; the other's run is over")
            return Comparison(found, done, count)
        return Comparison(None, done, count)


def _difference(
    pair: list[Training], told: list[dict[str, Any]], tolerance: float
) -> Difference | None:
    """The first tensor of a step that differs."""
    step = told[0]["step"]
    digests = [dict(each["tensors"]) for each in told]
    for names, other, training in ((0, 1, pair[1]), (1, 0, pair[0])):
        for name in digests[names]:
            if name not in digests[other]:
                return Difference(step, name, f"{training.side.name} has none")
    numbers = [{name: i for i, name in enumerate(each)} for each in digests]
    for name, digest in digests[0].items():
        if digest == digests[1][name]:
            continue
        sent = [
            training.tensor(number[name]) for training, number in zip(pair, numbers, strict=True)
        ]
        if text := _how_much(*sent, tolerance):
            return Difference(step, name, text)
    return None


def _how_much(a: tuple[np.ndarray, str], b: tuple[np.ndarray, str], tolerance: float) -> str:
    """How much two tensors differ, in words; "" where they are equal up to the tolerance."""
    (left, left_dtype), (right, right_dtype) = a, b
    if left.shape != right.shape:
        return f"shapes {left.shape} and {right.shape}"
    if left_dtype != right_dtype:
        return f"{left_dtype} and {right_dtype}"
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    gaps = np.where(same, 0.0, np.abs(left - right))
    finite = np.concatenate([values[np.isfinite(values)].ravel() for values in (left, right)])
    largest = np.abs(finite).max(initial=0)
    if (gaps <= tolerance * largest).all():  # false for NaN
        return ""
    if left.ndim == 0:
        return f"{left:.17g} and {right:.17g}"
    place = np.unravel_index(np.argmax(np.nan_to_num(gaps, nan=np.inf)), gaps.shape)
    share = gaps[place] / largest
    where = ", ".join(map(str, place))
    return (
        f"{np.count_nonzero(gaps):,} of {gaps.size:,} values, most at [{where}]: "
        f"{left[place]:.9g} and {right[place]:.9g}, by {share:.1e} of the largest"
    )
