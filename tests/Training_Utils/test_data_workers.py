"""The loader's worker processes: which signals they survive, and which ends them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from Utils.Training_Utils.data import EpochSampler, TrainingLoader


def children():
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    if not path.exists():
        pytest.skip("this system does not list a process's children")
    return {int(pid) for pid in path.read_text().split()}


def runs(pid):
    """Whether a process is there and has not ended (Z: ended, but not yet waited for)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_workers_survive_the_signals_of_others_and_end_by_the_runs_own():
    data = [(np.full((4, 4, 3), i, np.uint8), i) for i in range(120)]
    before = children()
    loader = TrainingLoader(data, EpochSampler(data, 4, seed=1), (4, 4), num_workers=1)
    batches = loader.epoch(0)
    seen = next(batches).labels.tolist()
    workers = [pid for pid in children() - before if b"resource_tracker" not in _command(pid)]
    (worker,) = workers
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    time.sleep(0.2)
    assert runs(worker)
    seen += [label for batch in batches for label in batch.labels.tolist()]
    assert sorted(seen) == list(range(120))
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(worker)


def _command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()
