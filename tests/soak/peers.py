"""What a run depends on besides itself: its workers, the other processes of its job, the network.

A try survives if the run ends by itself as the run left alone does, with the same weights, bit for
bit; or if it ends with one message, and ends so when it is continued with `--resume last`.
"""

import ctypes
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.conftest import make_tiny_faces
from tests.processes import ROOT, Script, start_script, torchrun
from tests.soak.campaign import Allowance, Row, Try, tried
from tests.soak.endings import alive, difference, end_of, told, workers_of
from tests.soak.places import PLACES, Watched

PATIENCE = 600.0  # seconds that a run of some seconds has to end, on a machine full of others
SILENCE = 8  # seconds, in place of the ten minutes after which a silent process is given up

_FLAGS = ["--total_epoch=20", "--milestones=", "--save_freq=4", "--test_freq=6", "--log_freq=1"]

# Shortens how long a silent process is waited for, then trains as Train.py does.
_TRAIN = f"""
import datetime, os, runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from Utils import heartbeat
heartbeat.SILENCE, heartbeat.INTERVAL = datetime.timedelta(seconds={SILENCE}), 0.5
runpy.run_path(os.path.join({str(ROOT)!r}, "Train.py"), run_name="__main__")
"""

# A /dev/shm that is too small for a batch, for this process and its workers alone.
_FULL = """
import ctypes, os, runpy, subprocess, sys
assert ctypes.CDLL(None).unshare(0x20000) == 0  # CLONE_NEWNS
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
size = f"size={sys.argv[1]}"
subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", "/dev/shm"], check=True)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

# torchrun in a network namespace of the name that comes first.
_IN_NAMESPACE = """
import ctypes, os, runpy, sys
name = sys.argv.pop(1)
assert ctypes.CDLL(None).setns(os.open(f"/run/netns/{name}", os.O_RDONLY), 0x40000000) == 0
os.environ["GLOO_SOCKET_IFNAME"] = name
runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
"""


class Peers:
    """The tries; each takes the generator of its draws and an empty folder, and returns what was
    lost."""

    def __init__(self, folder: Path) -> None:
        self.faces = make_tiny_faces(folder / "tiny faces")
        self.folder = folder
        self.train = folder / "train.py"
        self.train.write_text(_TRAIN)

    @property
    def flags(self) -> list[str]:
        return [*self.faces.flags, *_FLAGS, "--num_workers=1"]

    @cached_property
    def alone(self) -> dict[str, Any]:
        """The end of a run of one process that was left alone."""
        return self._left_alone("Train.py", "alone")

    @cached_property
    def pair(self) -> dict[str, Any]:
        """The same of two processes, with the classes split over them."""
        return self._left_alone(*torchrun(2, "Train.py"), "pair")

    def _left_alone(self, *words: str) -> dict[str, Any]:
        *words, name = words
        start = time.monotonic()
        done = self._start(words, self.folder / name)
        out, err = done.communicate(PATIENCE)
        assert done.returncode == 0, out + err
        self.seconds = time.monotonic() - start
        return end_of(self.folder / name)

    def _start(self, words: list[str] | str, save_dir: Path, *flags: str) -> Script:
        words = [words] if isinstance(words, str) else words
        split = ["--head_parallel=sharded"] if "torch.distributed.run" in words else []
        return start_script(*words, *self.flags, *split, *flags, "--save_dir", save_dir)

    def _moment(self, draw: random.Random, save_dir: Path, run: Script) -> None:
        """Wait for a moment after the first checkpoint."""
        deadline = time.monotonic() + PATIENCE
        while not list(save_dir.glob("*/checkpoints/last.*")) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5 * self.seconds))

    def _continued(self, save_dir: Path, expected: dict[str, Any], words: list[str]) -> str | None:
        """Continue a run that ended too early; None if it ends as the one left alone."""
        script = start_script(*words, "--resume", "last", "--save_dir", save_dir)
        _, err = script.communicate(PATIENCE)
        if script.returncode:
            return f"could not be resumed: {err[-300:]}"
        return difference(end_of(save_dir), expected)

    def worker_killed(self, draw: random.Random, folder: Path) -> str | None:
        """A worker of training or of its tests is killed, as where memory runs out."""
        expected = self.alone
        run = self._start("Train.py", folder)
        self._moment(draw, folder, run)
        for worker in workers_of(run.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
        _, err = run.communicate(PATIENCE)
        if run.returncode == 0:  # it was of a test, or of no more use
            return difference(end_of(folder), expected)
        if "Traceback" in err or "SIGKILL" not in err or "--resume last" not in err:
            return f"said: {err[-300:]}"
        return self._continued(folder, expected, ["Train.py"])

    def evaluation_worker_killed(self, draw: random.Random, folder: Path) -> str | None:
        """The same in an evaluation script."""
        if self.alone is None:
            return None
        (checkpoint,) = (self.folder / "alone").glob("*/checkpoints/best.pt")
        faces = self.faces
        data = ["--lfw_dataset_path", faces.lfw, "--lfw_file_list", faces.lfw_pairs]
        words = ["--checkpoint", checkpoint, "--output", folder / "out", "--num_workers=1"]
        run = start_script("LFW_Evaluation.py", *data, *words, "--eval_batch_size=1")
        workers: list[int] = []
        while not workers and run.poll() is None:
            workers = workers_of(run.pid)
        time.sleep(draw.uniform(0, 0.05))
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        _, err = run.communicate(PATIENCE)
        whole = (folder / "out" / "lfw.json").exists()
        if run.returncode == 0:
            return None if whole else "no results, and no error"
        said = " ".join(err.split())
        if "Traceback" in said or "SIGKILL" not in said or "num_workers" not in said or whole:
            return f"said: {err[-300:]}"
        return None

    def full_shared_memory(self, draw: random.Random, folder: Path) -> str | None:
        """/dev/shm has no room for a batch, or even for the locks that workers share."""
        size = draw.choice(["16k", "40k", "56k", "64k"])
        run = self._start(["-c", _FULL, size, "Train.py"], folder)
        _, err = run.communicate(PATIENCE)
        said = re.split("^Exception ignored", err, maxsplit=1, flags=re.M)[0]  # at exit, by PyTorch
        if run.returncode != 1 or "/dev/shm" not in said or "Traceback" in said:
            return f"status {run.returncode}, said: {err[-300:]}"
        return None

    def frozen_for(self, seconds: float) -> Try:
        """One of two processes is stopped, and goes on after a while."""

        def attempt(draw: random.Random, folder: Path) -> str | None:
            expected = self.pair
            run = self._start(torchrun(2, "Train.py"), folder)
            self._moment(draw, folder, run)
            ranks = workers_of(run.pid)
            if len(ranks) == 2:
                frozen = draw.choice(ranks)
                os.kill(frozen, signal.SIGSTOP)
                time.sleep(seconds)
                with suppress(ProcessLookupError):
                    os.kill(frozen, signal.SIGCONT)
            _, err = run.communicate(PATIENCE)
            if run.returncode:
                return f"ended: {err[-300:]}"
            return difference(end_of(folder), expected)

        return attempt

    def frozen_for_good(self, draw: random.Random, folder: Path) -> str | None:
        """One of two processes is stopped, and does not go on."""
        return self._one_of_two(draw, folder, signal.SIGSTOP, PATIENCE)

    def killed(self, draw: random.Random, folder: Path) -> str | None:
        """One of two processes is killed."""
        return self._one_of_two(draw, folder, signal.SIGKILL, PATIENCE)

    def _one_of_two(
        self, draw: random.Random, folder: Path, number: int, limit: float
    ) -> str | None:
        expected = self.pair
        run = self._start(torchrun(2, self.train), folder)
        self._moment(draw, folder, run)
        ranks = workers_of(run.pid)
        if len(ranks) == 2:
            lost, other = draw.sample(ranks, 2)
            os.kill(lost, number)
            deadline = time.monotonic() + PATIENCE
            while alive(other) and time.monotonic() < deadline:
                time.sleep(0.1)
            if alive(other):
                run.send_signal(signal.SIGKILL)
                return f"the other process did not end in {PATIENCE:g} s"
            with suppress(ProcessLookupError):
                os.kill(lost, signal.SIGCONT)  # else torchrun waits half a minute for it
        _, err = run.communicate(PATIENCE)
        if run.returncode == 0:
            return difference(end_of(folder), expected)
        if (failure := told(err)) is not None:
            return failure
        return self._continued(folder, expected, torchrun(2, "Train.py"))

    def network_cut(self, draw: random.Random, folder: Path) -> str | None:
        """The network between two machines is cut: two network namespaces, and their cable."""
        expected = self.pair
        with two_namespaces() as (names, address):
            meeting = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=static"]
            meeting += [f"--master_addr={address}", "--master_port=29400"]
            fork = ["--run-path", "--start-method=fork", str(self.train)]
            runs = [
                self._start(
                    ["-c", _IN_NAMESPACE, name, *meeting, f"--node_rank={rank}", *fork],
                    folder,
                    "--head_parallel=sharded",
                )
                for rank, name in enumerate(names)
            ]
            self._moment(draw, folder, runs[0])
            cut = draw.randrange(2)
            subprocess.run(["ip", "-n", names[cut], "link", "set", names[cut], "down"], check=True)
            ends = []
            for run in runs:
                try:
                    ends.append((run.communicate(PATIENCE)[1], run.returncode))
                except AssertionError:
                    run.send_signal(signal.SIGKILL)
                    return f"a process did not end in {PATIENCE:g} s"
        if all(status == 0 for _, status in ends):
            return difference(end_of(folder), expected)
        failures = [told(err) for err, status in ends if status]
        if all(failures):  # each of the two may be the first to fail
            return failures[0]
        return self._continued(folder, expected, torchrun(2, "Train.py"))


@contextmanager
def two_namespaces() -> Iterator[tuple[list[str], str]]:
    """Two network namespaces with a cable between them: their names, which are also those of the
    cable's ends, and the first one's address."""
    names = [f"soak{os.getpid() % 10000}{end}" for end in "ab"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        ends = ["type", "veth", "peer", "name", names[1], "netns", names[1]]
        subprocess.run(["ip", "-n", names[0], "link", "add", names[0], *ends], check=True)
        for number, name in enumerate(names, 1):
            address = f"10.77.0.{number}/24"
            subprocess.run(["ip", "-n", name, "addr", "add", address, "dev", name], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", name, "up"], check=True)
        yield names, "10.77.0.1"
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def may_unshare() -> bool:
    """Whether this process may make namespaces; only root may."""
    flags = 0x40000000 | 0x20000  # CLONE_NEWNET, CLONE_NEWNS
    child = os.fork()
    if child == 0:
        os._exit(ctypes.CDLL(None).unshare(flags) != 0)
    return os.waitpid(child, 0)[1] == 0


def campaign(allowance: Allowance) -> Iterator[Row]:
    """Each kind gets its weight's share of the time; those of weight 0 are tried once."""
    peers = Peers(allowance.folder)
    root = may_unshare()
    frozen = 60 if allowance.until - time.monotonic() > 300 else 5
    kinds: list[tuple[str, Try | None, float]] = [
        ("a worker of training killed", peers.worker_killed, 3),
        ("a worker of an evaluation script killed", peers.evaluation_worker_killed, 1),
        ("/dev/shm full", peers.full_shared_memory if root else None, 0),
        (f"one of two processes frozen for {frozen} s", peers.frozen_for(frozen), 0),
        ("one of two processes frozen for good", peers.frozen_for_good, 2),
        ("one of two processes killed", peers.killed, 3),
        ("the network between two machines cut", peers.network_cut if root else None, 2),
    ]
    for name, (place, advice) in PLACES.items():
        kinds.append((name, Watched(place, advice, peers.faces), 1))
    yield from tried(allowance, kinds)
