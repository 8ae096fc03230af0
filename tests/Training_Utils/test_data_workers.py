"""The loader's worker processes: which signals they survive, which ends them, and what is said."""

import dataclasses
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import get_worker_info

from Backbone import build_backbone
from tests.plain_training import plain_config
from Utils import workers
from Utils.errors import RunError
from Utils.Evaluation_Utils.embedding import embed
from Utils.Training_Utils import data
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.trainer import Trainer
from Utils.workers import SteadyLoader, WorkerError


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
    for name in ("TERM", "INT", "HUP"):
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
    backbone = build_backbone("SmallNet", 8, (16, 16)).eval()
    straight, _ = embed(backbone, Terminated(), torch.device("cpu"), 2, num_workers=2)
    assert straight.shape == (6, 8)
    assert len(np.unique(straight, axis=0)) == 6


def killed(number: int = signal.SIGKILL):
    """A function that ends the worker which calls it, by a signal."""

    def kill(*arguments):
        assert get_worker_info() is not None
        os.kill(os.getpid(), number)

    return kill


class Deadly(Sequence):
    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 2

    def __getitem__(self, index):
        killed(self.number)()


def test_the_end_of_a_worker_is_told_with_its_cause_and_not_in_the_middle_of_a_step(monkeypatch):
    says = {
        signal.SIGKILL: "SIGKILL. The system does that where memory runs out",
        signal.SIGBUS: "SIGBUS. /dev/shm, through which workers pass images, is full",
        signal.SIGSEGV: "SIGSEGV. It crashed, perhaps on a damaged image",
    }
    before = signal.getsignal(signal.SIGCHLD)
    loaders = [iter(SteadyLoader(Deadly(number), num_workers=1)) for number in says]
    loaders += [dead_before_all_are_started(monkeypatch), dead_after_an_epoch()]
    assert signal.getsignal(signal.SIGCHLD) == before
    with ThreadPoolExecutor() as threads:  # each waits for seconds
        failures = list(threads.map(failure_of, loaders))
    for failure, text in zip(failures, [*says.values(), *["by SIGKILL"] * 2], strict=True):
        assert text in failure


def dead_before_all_are_started(monkeypatch):
    """The batches of a loader whose worker is killed at once."""
    begin = SteadyLoader._begin

    def slow(loader):
        batches = begin(loader)
        for process in batches._workers:
            process.join()
        return batches

    with monkeypatch.context() as patch:
        patch.setattr(SteadyLoader, "_begin", slow)
        patch.setattr(workers, "_leave_signals_to_parent", killed())
        return iter(SteadyLoader(range(8), 4, num_workers=1))


def dead_after_an_epoch():
    """The batches of the second epoch of a loader whose worker has been killed."""
    loader = SteadyLoader(range(8), 4, num_workers=1, persistent_workers=True)
    list(loader)
    os.kill(loader._iterator._workers[0].pid, signal.SIGKILL)
    return (batch for epoch in [loader] for batch in epoch)  # begins with the first `next`


def failure_of(batches):
    try:
        next(batches)
    except WorkerError as error:
        return str(error)


def test_a_bug_in_a_dataset_is_not_taken_for_a_killed_worker():
    with pytest.raises(TypeError, match="DataLoader worker process 0"):
        list(SteadyLoader([1, None], num_workers=1, collate_fn=lambda batch: batch[0] + 1))


def test_a_full_dev_shm_ends_an_evaluation_that_would_wait_for_ever(monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    images = np.zeros((4, 16, 16, 3), np.uint8)
    backbone = build_backbone("SmallNet", 8, (16, 16)).eval()
    with pytest.raises(WorkerError, match=r"/dev/shm.*num_workers .1 now"):
        embed(backbone, images, torch.device("cpu"), 2, num_workers=1)


def test_a_run_whose_worker_is_killed_has_saved_every_iteration(tiny_faces, tmp_path, monkeypatch):
    fit, calls = data.fit_image, []

    def fit_sixteen(image, size):
        calls.append(image)
        if len(calls) > 16:  # two batches
            killed()()
        return fit(image, size)

    config = plain_config(tiny_faces.train, tiny_faces.train_list, tmp_path)
    config = dataclasses.replace(
        config, backbone="MobileFaceNet", batch_size=8, num_workers=1, total_epoch=3, milestones=()
    )
    monkeypatch.setattr(data, "fit_image", fit_sixteen)
    trainer = Trainer(config)
    with pytest.raises(RunError, match=r"SIGKILL.*The last checkpoint is .*--resume last"):
        trainer.run()
    assert read_run(trainer.run_folder.last)["position"]["iteration"] == trainer.state.iteration > 0
