"""The loader's worker processes: which signals they survive, and which ends them."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from Backbone import build_backbone
from Utils.Evaluation_Utils.embedding import embed
from Utils.processes import SteadyLoader


def children():
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    if not path.exists():
        pytest.skip("this system does not list a process's children")
    return {int(pid) for pid in path.read_text().split()}


def runs(pid):
    """Whether a process is there and has not ended (Z: ended, but not yet waited for)."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("method", ["fork", "spawn"])  # a spawned one has threads of its imports
def test_workers_survive_the_signals_of_others_and_end_by_the_runs_own(method):
    before = children()
    loader = SteadyLoader(
        range(120), 4, num_workers=1, persistent_workers=True, multiprocessing_context=method
    )
    batches = iter(loader)
    seen = next(batches).tolist()
    workers = [pid for pid in children() - before if b"resource_tracker" not in _command(pid)]
    (worker,) = workers
    for name in ("TERM", "INT"):
        subprocess.run(["kill", f"-{name}", str(worker)], check=True)
    time.sleep(0.2)
    assert runs(worker)
    seen += [number for batch in batches for number in batch.tolist()]
    assert sorted(seen) == list(range(120))
    os.kill(worker, signal.SIGTERM)
    deadline = time.monotonic() + 10
    while runs(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not runs(worker)


def _command(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


class Terminated(Sequence):
    """Images, of which each sends the worker that loads it a SIGTERM of another process."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        assert get_worker_info() is not None
        subprocess.run(["kill", "-TERM", str(os.getpid())], check=True)
        return np.full((16, 16, 3), 40 * index, np.uint8)


def test_a_test_set_is_embedded_though_its_workers_get_sigterm():
    backbone = build_backbone("MobileFaceNet", 8, (16, 16)).eval()
    straight, _ = embed(backbone, Terminated(), torch.device("cpu"), 2, num_workers=2)
    assert straight.shape == (6, 8)
    assert len(np.unique(straight, axis=0)) == 6
