"""Train.py as torchrun starts it: what is written, who talks, and what happens when one dies."""

import csv
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import ROOT, Script, run_script, start_script, torchrun
from Utils.devices import find_device
from Utils.Pretrained_Utils import load_backbone
from Utils.processes import ALONE, is_lost_connection, lost_connection
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.evaluation import TestSets
from Utils.Training_Utils.merge_checkpoint import merge_folder

ITERATIONS = 9  # 24 images in batches of 8, 3 epochs
PLAIN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
TWO = torchrun(2, "Train.py")


def only_run(save_dir: Path) -> Path:
    (run,) = (path for path in save_dir.iterdir() if path.is_dir())
    return run


def wait_for(save_dir: Path, pattern: str, process: Script) -> None:
    deadline = time.monotonic() + 120
    while not list(save_dir.glob(f"*/checkpoints/{pattern}")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(process: Script) -> list[int]:
    """The processes that torchrun started, in the order of their ranks."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    return [int(child) for child in children]


def said_by_workers(err: str) -> str:
    """The first paragraphs; the only traceback after them is torchrun's own."""
    said, torchrun_says = err.split("Traceback", 1)
    assert "Traceback" not in torchrun_says
    assert "ChildFailedError" in torchrun_says
    return " ".join(said.split())


def losses(run: Path) -> dict[int, float]:
    with open(run / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == len({row["iteration"] for row in rows}), "an iteration is there twice"
    return {int(row["iteration"]): float(row["loss"]) for row in rows}


@pytest.fixture
def mobile_faces(tiny_faces):
    """For new interpreters, as torchrun starts them by default; they know no network of tests."""
    return replace(tiny_faces, backbone="MobileFaceNet")


@pytest.fixture(scope="module")
def whole_run(tiny_faces, tmp_path_factory):
    """A run of two processes with the classes split, left alone."""
    save_dir = tmp_path_factory.mktemp("whole")
    flags = ["--save_dir", save_dir, "--head_parallel", "sharded", "--log_freq", 1]
    process = start_script(*TWO, *tiny_faces.flags, *flags)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return only_run(save_dir), out


def test_one_process_writes_and_talks(whole_run):
    run, out = whole_run
    log = (run / "train.log").read_text()
    assert log.count(f"iteration {ITERATIONS}/{ITERATIONS}") == 1
    assert out.count(f"iteration {ITERATIONS}/{ITERATIONS}") == 1
    assert out.count(f"Trained {ITERATIONS} iterations") == 1
    assert list(losses(run)) == list(range(1, ITERATIONS + 1))
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {f"iteration_{i:08d}.dcp" for i in (2, 3, 4, 6, 8, 9)} | {
        "last.dcp",
        "best.dcp",
    }
    assert not list(run.parent.glob(".torchrun_*"))


def test_the_accuracy_is_that_of_one_process_to_the_last_digit(whole_run, tiny_faces, tmp_path):
    from Config import Config

    run, _ = whole_run
    saved = read_run(run / "checkpoints" / "best.dcp")
    sets = TestSets(Config.from_dict(saved["settings"]), find_device("cpu"), ALONE)
    backbone = load_backbone(run / "checkpoints" / "best.dcp")
    assert sets.evaluate(backbone)["LFW"] == saved["best"]["LFW"]["accuracy"]
    merged = tmp_path / "whole.pt"
    command = ("-m", "Utils.Training_Utils.merge_checkpoint", run / "checkpoints" / "best.dcp")
    run_script(*command, merged, check=True)
    for name, weights in load_backbone(merged).state_dict().items():
        assert torch.equal(weights, backbone.state_dict()[name])


def test_a_killed_worker_ends_the_job_with_one_message_and_whole_checkpoints(
    mobile_faces, tmp_path
):
    flags = ["--total_epoch", "500", "--milestones=", "--head_parallel", "sharded"]
    process = start_script(*PLAIN, "Train.py", *mobile_faces.flags, *flags, "--save_dir", tmp_path)
    wait_for(tmp_path, "last.dcp", process)
    os.kill(workers(process)[1], signal.SIGKILL)
    start = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    said = said_by_workers(err)
    assert said.count("Error:") == 1
    assert "another process of this job has ended" in said
    assert "The last checkpoint is" in said
    assert re.search(r"The cause, as this process saw it: .*(Connection|connection)", said)
    merged, _ = merge_folder(only_run(tmp_path) / "checkpoints" / "last.dcp")
    assert merged["head"]["weight"].shape == (6, 16)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] "
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:3690, {}, NCCL version 2.27.5\n{}\nLast error:\n{}"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:29908."), True),
        (RuntimeError(GLOO + "Timed out waiting 1800000ms for recv operation"), True),
        (RuntimeError(GLOO + "op.preamble.length <= op.nbytes. 4000 vs 40"), False),
        (RuntimeError("the gloo of my code: request timed out"), False),
        (RuntimeError("CUDA error: the launch timed out and was terminated"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Connection closed"), False),
        (dist.DistNetworkError("The client socket has timed out after 600000ms"), True),
        (dist.DistStoreError("wait timeout after 300000ms, keys: /0"), True),
        (
            dist.DistBackendError(
                NCCL.format("remote process exited or there was a network error",
                            "ncclRemoteError: A call failed possibly due to a network error",
                            "socketProgress: Connection closed by remote peer node2<40606>")
            ),
            True,
        ),
        (
            dist.DistBackendError(
                "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7)"
            ),
            True,
        ),
        (
            dist.DistBackendError(
                NCCL.format("unhandled cuda error", "ncclUnhandledCudaError: Call failed.",
                            "Cuda failure 2 'out of memory'")
            ),
            False,
        ),
        (dist.DistBackendError(NCCL.format("invalid usage", "ncclInvalidUsage", "Duplicate GPU")),
         False),
    ],
)  # fmt: skip
def test_only_a_lost_connection_is_told_as_one_and_its_cause_is_told_whole(error, lost):
    assert is_lost_connection(error) == lost
    frames = "\nException raised from run at store.cpp:9 (most recent call first):\nframe #0: x.so"
    text = str(lost_connection(type(error)(f"{error}{frames}")))
    assert " ".join(str(error).split()) in text
    assert "frame" not in text


STUDENTS_OWN = """
import sys
sys.path.insert(0, {root!r})
from Utils.errors import run_script
from Utils.processes import started_by_torchrun

def main():
    with started_by_torchrun() as processes:
        if processes.rank == 1:
            raise RuntimeError("nccl, gloo: my own request timed out")
        processes.barrier()

run_script(main)
"""


def test_an_error_that_speaks_of_a_timeout_keeps_its_traceback(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(STUDENTS_OWN.format(root=str(ROOT)))
    ended = run_script(*PLAIN, script)
    assert ended.returncode != 0
    assert 'raise RuntimeError("nccl, gloo: my own request timed out")' in ended.stderr
    assert "another process of this job has ended" not in ended.stderr


FROZEN = """
import datetime, os, signal, subprocess, sys, time
sys.path.insert(0, {root!r})
from Utils import heartbeat
from Utils.errors import run_script
from Utils.processes import started_by_torchrun

heartbeat.SILENCE, heartbeat.INTERVAL = datetime.timedelta(seconds=3), 0.2

def main():
    with started_by_torchrun() as processes:
        if processes.rank == 1:
            time.sleep(4)  # as long work, which is no silence
        processes.barrier()
        print("the long work was waited for", flush=True)
        if processes.rank == 1:
            # So that torchrun need not wait long to end it.
            subprocess.Popen(["sh", "-c", f"sleep 8; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        processes.barrier()
        print("the frozen process was waited for", flush=True)

run_script(main)
"""


def test_a_frozen_process_ends_the_job_and_one_that_is_long_at_work_does_not(tmp_path):
    script = tmp_path / "own.py"
    script.write_text(FROZEN.format(root=str(ROOT)))
    ended = run_script(*torchrun(2, script))
    assert ended.returncode != 0
    assert ended.stdout.count("the long work was waited for") == 2
    assert "the frozen process" not in ended.stdout
    said = " ".join(ended.stderr.partition("Traceback")[0].split())  # then torchrun's own
    assert said.count("Error:") == 1
    assert "can't be reached any more" in said
    assert "Timed out waiting 3000ms" in said
    assert "--resume last" in said


# Train.py, of which torchrun's first start loses a process when iteration 4 is saved.
KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import Train
from Utils.errors import run_script
from Utils.Training_Utils.checkpoints.run_checkpoints import CheckpointWriter

save = CheckpointWriter.save

def killed(self, state, *more):
    save(self, state, *more)
    start, rank = (os.environ[name] for name in ("TORCHELASTIC_RESTART_COUNT", "RANK"))
    if (state.iteration, start, rank) == (4, "0", "0"):
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointWriter.save = killed
run_script(Train.main)
"""


def test_restarted_by_torchrun_the_run_goes_on_as_if_nothing_had_been(
    whole_run, tiny_faces, tmp_path
):
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=str(ROOT)))
    flags = ["--save_dir", tmp_path / "runs", "--head_parallel", "sharded", "--log_freq", 1]
    process = start_script(*torchrun(2, script, "--max_restarts=1"), *tiny_faces.flags, *flags)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "continuing after iteration 4" in out
    assert losses(only_run(tmp_path / "runs")) == losses(whole_run[0])


def test_sigterm_saves_and_the_run_can_go_on_in_one_process(tiny_faces, tmp_path):
    flags = ["--total_epoch", "500", "--milestones=", "--save_freq", "1000", "--test_freq", "1000"]
    process = start_script(*TWO, *tiny_faces.flags, *flags, "--save_dir", tmp_path)
    wait_for(tmp_path, "last.pt", process)  # the end of the first epoch
    os.kill(workers(process)[1], signal.SIGTERM)  # one of them is enough
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "asked to stop after iteration" in out
    assert out.count("Stopped after") == 1
    done = read_run(only_run(tmp_path) / "checkpoints" / "last.pt")["position"]
    assert f"Stopped after {done['iteration']} iterations" in out
    flags = ["--total_epoch", str(done["epoch"] + 1)]
    resumed = run_script("Train.py", "--resume", "last", "--save_dir", tmp_path, *flags)
    assert resumed.returncode == 0, resumed.stderr
    assert f"continuing after iteration {done['iteration']}" in resumed.stdout


@pytest.mark.parametrize(("launch", "number"), [((), signal.SIGHUP), (PLAIN, signal.SIGTERM)])
def test_a_signal_to_the_whole_process_group_saves_though_loaders_have_workers(
    launch, number, mobile_faces, tmp_path
):
    # As Kubernetes and SLURM send it; torchrun sends it on to the group of each process.
    flags = ["--total_epoch", "500", "--milestones=", "--save_freq", "1000", "--test_freq", "1000"]
    flags += ["--num_workers", "2", "--save_dir", tmp_path]
    process = start_script(*launch, "Train.py", *mobile_faces.flags, *flags, own_group=True)
    wait_for(tmp_path, "last.pt", process)
    os.killpg(process.pid, number)
    said = "".join(process.communicate(timeout=60))
    done = read_run(only_run(tmp_path) / "checkpoints" / "last.pt")["position"]["iteration"]
    assert f"asked to stop after iteration {done}. The last checkpoint is" in said
    assert "DataLoader worker" not in said
    if not launch:  # torchrun ends with its own status and traceback
        assert process.returncode == 0
        assert "Traceback" not in said


def test_if_torchrun_is_killed_its_processes_save_and_end(tiny_faces, tmp_path):
    flags = ["--total_epoch", "4000", "--milestones=", "--save_freq", "1000", "--test_freq", "1000"]
    process = start_script(*TWO, *tiny_faces.flags, *flags, "--save_dir", tmp_path)
    wait_for(tmp_path, "last.pt", process)
    left = workers(process)
    process.send_signal(signal.SIGKILL)
    log, deadline = only_run(tmp_path) / "train.log", time.monotonic() + 60
    while "asked to stop after iteration" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = read_run(only_run(tmp_path) / "checkpoints" / "last.pt")["position"]["iteration"]
    assert f"asked to stop after iteration {done}" in log.read_text()
    for pid in left:  # forks of torchrun, which wait for it at their end; others do not
        os.kill(pid, signal.SIGKILL)


def test_sigterm_stops_a_single_process_too(tiny_faces, tmp_path):
    flags = [*tiny_faces.flags, "--total_epoch", "500", "--milestones=", "--save_dir", tmp_path]
    process = start_script("Train.py", *flags)
    wait_for(tmp_path, "last.pt", process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    done = read_run(only_run(tmp_path) / "checkpoints" / "last.pt")["position"]["iteration"]
    assert f"asked to stop after iteration {done}" in out


def test_a_mistake_is_said_once(mobile_faces, tmp_path):
    flags = ["--batch_size", 9, "--save_dir", tmp_path]
    process = start_script(*PLAIN, "Train.py", *mobile_faces.flags, *flags)
    _, err = process.communicate(timeout=100)
    said = said_by_workers(err)
    assert said.count("Error:") == 1
    assert "setting batch_size is 9: it is split over 2 processes" in said
