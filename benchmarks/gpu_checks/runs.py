"""Whole runs, started as a user starts them: Train.py, resuming, SIGTERM."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_checks.check import OK, ROOT, SKIPPED, WRONG, Check, Place, Row, Rows, row
from Utils.run_folder import RunFolder
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.networks import lacks_compiler

_NEEDED = ("numpy", "cv2", "scipy", "matplotlib", "safetensors", "tqdm", "PIL")
_LEAST = 0.8  # mean accuracy of the demo, which is usually 0.89
_SMALL = ("--input_size", "32,32", "--milestones", "")


def environment(place: Place) -> Rows:
    """The machine, and whether it has what the repository needs."""
    about = f"torch {torch.__version__}, Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    if place.on_gpu:
        card = torch.cuda.get_device_properties(place.device)
        about += f", cuDNN {torch.backends.cudnn.version()}"
        yield Row("machine", OK, f"{card.name}, {card.total_memory / 2**30:.0f} GiB", about)
    else:
        yield Row("machine", OK, "no GPU", about)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    yield row("packages", not missing, note=f"missing: {', '.join(missing)}" if missing else "")


def faces(place: Place) -> Rows:
    """The demo faces, which many checks read."""
    begin = time.monotonic()
    root = place.faces.root
    yield row("demo faces", root.is_dir(), f"{time.monotonic() - begin:.0f} s")


def train(place: Place, name: str, flags: tuple[str, ...], least: float) -> Rows:
    """One run of Train.py. least: the smallest mean accuracy, 0..1, that is right."""
    if "fp16" in flags and not place.on_gpu:
        yield Row(f"Train.py {name}", SKIPPED, note="Train.py refuses fp16 on a CPU")
        return
    if "--compile" in flags and (lack := lacks_compiler(place.device)):
        yield Row(f"Train.py {name}", SKIPPED, note=lack)
        return
    short = ("--total_epoch", "1", *_SMALL) if place.quick else ()
    run, text = _start(place, f"run_{name}", *flags, *short)
    if run is None:
        last = text.strip().splitlines()
        yield Row(f"Train.py {name}", WRONG, "no results", last[-1][:150] if last else "")
        return
    found = json.loads(run.results.read_text())
    last = found["last"]
    mean = sum(last.values()) / max(len(last), 1)
    where = re.search(r"\w+ with \w+, (.*)", text)
    yield row(
        f"Train.py {name}",
        math.isfinite(found["loss"]) and (place.quick or mean >= least) and len(last) == 3,
        f"loss {found['loss']:.3f}, mean accuracy {mean:.1%}",
        where[1] if where else "",
    )


def resume(place: Place) -> Rows:
    """Two epochs with and without an interruption give the same weights, bit for bit."""
    name = "resume with --deterministic"
    flags = (
        *("--backbone", "ResNet18_IR", "--feature_dim", "64", *_SMALL, "--erasing_prob", "0.2"),
        *("--use_amp", "--amp_dtype", "bf16", "--test_freq", "1000000", "--deterministic"),
        *("--batch_size", str(place.size(100, 20))),
    )
    straight, text = _start(place, "straight", *flags, "--total_epoch", "2")
    half, _ = _start(place, "half", *flags, "--total_epoch", "1")
    if straight is None or half is None:
        yield Row(name, WRONG, "no results", text.strip()[-150:])
        return
    _start(place, "half", "--resume", str(half.last), "--total_epoch", "2")
    one, other = read_run(straight.last), read_run(half.last)
    ended = other["position"]["iteration"] == one["position"]["iteration"]
    apart = max(
        (a.double() - b.double()).abs().max().item()
        for part in ("backbone", "head")
        for a, b in zip(one[part].values(), other[part].values(), strict=True)
        if isinstance(a, torch.Tensor)
    )
    found = f"largest difference {apart:.1e}" if ended else "did not end"
    yield row(name, ended and apart == 0, found, "ResNet18_IR with dropout and erasing, bf16")


def sigterm(place: Place, workers: int) -> Rows:
    """SIGTERM to torchrun, which sends it to the process group of each process it has started,
    the workers that load the images among them, lets the run save and end."""
    name = f"SIGTERM under torchrun, {workers} workers"
    saved = place.folder / f"sigterm_{workers}"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"),
        *_command(place, saved.name, "--total_epoch", "400", *_SMALL),
        *("--test_freq", "1000000", "--save_freq", "1000000", "--log_freq", "2"),
        *("--num_workers", str(workers)),
    ]
    path = place.folder / f"sigterm_{workers}.txt"
    with open(path, "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end and process.poll() is None:
                if re.search(r"iteration +\d+/", path.read_text()):
                    break
                time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            process.wait(40)
        finally:
            process.terminate()
    text = path.read_text()
    print(text)
    right = "asked to stop after iteration" in text and any(saved.glob("*/checkpoints/last.*"))
    errors = [line for line in text.splitlines() if "killed" in line or "Error" in line]
    note = "" if right else (errors or text.splitlines() or [""])[-1][:150]
    yield row(name, right, "saved and ended" if right else "did not save", note)


def _command(place: Place, folder: str, *flags: str) -> list[str]:
    """Train.py with flags, saving into `folder` of the place's."""
    data = [word for name, value in place.data.items() for word in (f"--{name}", str(value))]
    return [
        *("Train.py", *data, "--device", str(place.device), "--no-use_visdom"),
        *("--save_dir", str(place.folder / folder), *flags),
    ]


def _start(place: Place, folder: str, *flags: str) -> tuple[RunFolder | None, str]:
    """Run Train.py: the folder of the run, None without results, and what it printed."""
    resumed = "--resume" in flags
    command = ["Train.py", *flags] if resumed else _command(place, folder, *flags)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    runs = sorted((place.folder / folder).glob("*/results.json"))
    if done.returncode or not runs:
        return None, done.stdout
    return RunFolder(runs[-1].parent), done.stdout


def trained_weights(place: Place) -> Path | None:
    """The checkpoint that the check `train_fp32` has left."""
    return next((place.folder / "run_fp32").glob("*/checkpoints/last.pt"), None)


def _training(name: str, seconds: float, *flags: str, least: float = _LEAST) -> Check:
    function = partial(train, name=name, flags=flags, least=least)
    return Check(f"train_{name}", seconds, function, after=("faces",))


_ONE_EPOCH = ("--total_epoch", "1", *_SMALL)
CHECKS = (
    Check("environment", 60, environment),
    Check("faces", 100, faces),
    Check("resume", 150, resume, after=("faces",)),
    _training("fp32", 110),
    _training("compile", 150, *("--compile", "--use_amp", "--amp_dtype", "bf16"), least=0.7),
    _training("fp16", 110, "--use_amp", "--amp_dtype", "fp16"),
    _training("bf16", 110, "--use_amp", "--amp_dtype", "bf16"),
    _training("use_multi_gpus", 110, "--use_multi_gpus", *_ONE_EPOCH, least=0),
    Check("sigterm_0", 110, partial(sigterm, workers=0), after=("faces",)),
    Check("sigterm_2", 110, partial(sigterm, workers=2), after=("faces",)),
)
