"""Places where a run is watched, that fail: Visdom servers, TensorBoard's files, W&B."""

import csv
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from tests.conftest import TinyFaces
from tests.processes import Script, start_script

END = 20.0  # seconds by which a place may delay a run's end, on a machine that may be busy
SLOWER = 1.5  # ratio of the two runs' steps there

_FLAGS = ["--total_epoch=60", "--milestones=", "--log_freq=1", "--test_freq=1000"]
_FLAGS += ["--save_freq=1000"]

# The event files are on a disk that is full.
_NO_SPACE = """
import errno, runpy, sys
from tensorboard.compat.tensorflow_stub.io import gfile

def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")

gfile.LocalFileSystem.write = gfile.LocalFileSystem.append = full
from tensorboard.summary.writer import record_writer
record_writer.RecordWriter.write = full
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# A machine without network, and W&B with an account.
_NO_NETWORK = """
import ctypes, os, runpy, sys
ctypes.CDLL(None).unshare(0x40000000)  # CLONE_NEWNET
os.environ |= {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "false"}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Watched:
    """Two runs at once, one of them watched; it must be as fast as the other, end as soon, and tell
    its user once what is wrong.

    place: gives the words that start the watched one. advice: the beginning of what it has to say.
    """

    def __init__(self, place: Callable, advice: str, faces: TinyFaces) -> None:
        self._place, self._advice, self._faces = place, advice, faces
        self._ratios: list[float] = []
        self._delays: list[float] = []

    @property
    def note(self) -> str:
        if not self._ratios:
            return ""
        return (
            f"step time {statistics.median(self._ratios):.2f} of one not watched (median), end "
            f"{max(self._delays):.1f} s later (worst)"
        )

    def __call__(self, draw: random.Random, folder: Path) -> str | None:
        with self._place() as words:
            runs = {
                "watched": self._start(words, folder / "watched"),
                "other": self._start(["Train.py", "--no-use_visdom"], folder / "other"),
            }
            ends: dict[str, float] = {}
            while len(ends) < len(runs):
                time.sleep(0.02)
                for name, run in runs.items():
                    if run.poll() is not None:
                        ends.setdefault(name, time.time())
        (out, err), _ = [run.communicate() for run in runs.values()]
        if any(run.returncode for run in runs.values()):
            return f"ended: {err[-300:]}"
        late = out.count(_LATE)  # if the package was still imported when the run ended
        if out.count(self._advice) != 1 and (self._advice in out or late != 1):
            return f"{out.count(self._advice)} times in the log: {self._advice}"
        after = {name: end - _written(folder / name) for name, end in ends.items()}
        self._delays.append(after["watched"] - after["other"])
        self._ratios.append(_step_time(folder / "watched") / _step_time(folder / "other"))
        if self._delays[-1] > END:
            return f"the run's end came {self._delays[-1]:.1f} s late"
        if self._ratios[-1] > SLOWER:
            return f"steps took {self._ratios[-1]:.2f} times as long"
        return None

    def _start(self, words: list[str], save_dir: Path) -> Script:
        flags = [*self._faces.flags, *_FLAGS]
        place = words.index("Train.py") + 1
        return start_script(*words[:place], *flags, *words[place:], "--save_dir", save_dir)


def _written(save_dir: Path) -> float:
    """When a run had done everything but close."""
    (results,) = save_dir.glob("*/results.json")
    return results.stat().st_mtime


def _step_time(save_dir: Path) -> float:
    """The median of the seconds for an image."""
    (metrics,) = save_dir.glob("*/metrics.csv")
    with open(metrics) as file:
        speeds = [row["images_per_second"] for row in csv.DictReader(file)]
    return 1 / statistics.median(float(speed) for speed in speeds[3:] if speed)


class Server:
    """A Visdom server of one fault, on a port of its own. Answers as Visdom does where it answers.

    fault: hangs, errors, garbage, closes, slow, or vanishes: away most of the time.
    """

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self._socket = socket.create_server(("localhost", 0))
        self.port = self._socket.getsockname()[1]
        self._end = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        self._end.set()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as file:
            while request := _request(file):
                away = self.fault == "vanishes" and time.time() % 1 < 0.7
                if away:  # with a reset, as of a machine that has restarted
                    return
                self._answer(connection, request)

    def _answer(self, connection: socket.socket, body: bytes) -> None:
        window = json.loads(body).get("win") or "a window"
        match self.fault:
            case "hangs":
                self._end.wait()
            case "errors":
                send(connection, "500 Internal Server Error", "it is broken")
            case "garbage":
                connection.sendall(random.randbytes(200))
                connection.close()
            case "closes":
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
                connection.close()
            case "slow":
                self._end.wait(2)
                send(connection, "200 OK", window)
            case _:
                send(connection, "200 OK", window)


def _request(file: BinaryIO) -> bytes:
    """The body of a request; empty at the end of the connection."""
    length = 0
    while (line := file.readline()).strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return file.read(length)


def send(connection: socket.socket, status: str, text: str) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n"
    connection.sendall((head + text).encode())


@contextmanager
def visdom(fault: str) -> Iterator[list[str]]:
    server = Server(fault)
    try:
        yield ["Train.py", "--use_visdom", f"--visdom_port={server.port}"]
    finally:
        server.close()


@contextmanager
def record(program: str, switch: str) -> Iterator[list[str]]:
    yield ["-c", program, "Train.py", switch]


# The place, and the beginning of what the log has to say of it, once.
_AWAY, _LATE = "can't be reached", "did not take the last figures"
PLACES: dict[str, tuple[Callable, str]] = {
    "Visdom's server hangs": (partial(visdom, "hangs"), _LATE),
    "Visdom's server answers with errors": (partial(visdom, "errors"), _AWAY),
    "Visdom's server answers with garbage": (partial(visdom, "garbage"), _AWAY),
    "Visdom's server closes in the middle of an answer": (partial(visdom, "closes"), _AWAY),
    "Visdom's server takes 2 s for an answer": (partial(visdom, "slow"), _LATE),
    "Visdom's server is away again and again": (partial(visdom, "vanishes"), _AWAY),
    "TensorBoard's files on a full disk": (
        partial(record, _NO_SPACE, "--use_tensorboard"),
        "TensorBoard's event files can't be written",
    ),
    "W&B without a network": (partial(record, _NO_NETWORK, "--use_wandb"), "W&B"),
}
