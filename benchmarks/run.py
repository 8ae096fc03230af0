"""A table of each job's speed: this project, a plain implementation, and the machine's limit.

    python -m benchmarks.run [--jobs head step ...] [--quick] [--data FOLDER] [--rounds N]

The two sides of a job run alternately, each time in a new process. The table shows medians over the
rounds: of the seconds or the work per second, and of the ratio, which says how many times faster
ours is. `--quick` does a little of each job to test that all of them run; its figures mean nothing.
FOLDER has class folders of JPEGs; without it, the demo's faces are read. The memory is the largest
growth of a side's memory during its work; for Train.py it is all memory of its main process.

MegaFace's plain side is the bare matrix product. `python -m benchmarks.megaface_scoring` and
`python -m benchmarks.read_formats` measure more of scoring and of reading images.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import measuring
from benchmarks.jobs import JOBS, Job
from benchmarks.measuring import Measured
from benchmarks.scale import Scale
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.errors import DataError, run_script

QUICK = {
    "seconds": 0.1,
    "classes": 2000,
    "batch": 32,
    "pairs": {"MobileFaceNet": 12, "ResNet50_IR": 4},
    "distractors": 2000,
    "listed": 20_000,
    "evaluated": 600,
}


def main() -> None:
    """Read the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--quick", action="store_true", help="do a little of each job")
    parser.add_argument("--data", help="class folders of JPEGs; default: the demo's faces")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs")
    parser.add_argument("--side", choices=("ours", "plain", "bound"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    scale = make_scale(arguments.data, arguments.quick)
    if arguments.side:
        print(json.dumps(_side(JOBS[arguments.jobs[0]], arguments.side, scale)))
        return
    flags = ["--data", str(Path(scale.files[0]).parents[1])] + ["--quick"] * arguments.quick
    print(machine())
    print(f"{'job':<32}{'ours':>10}{'plain':>10}  {'':<14}{'ratio':>6}  {'aim':<16}", end="")
    print(f"{'MiB':>6}{'plain':>7}  share of the machine's limit")
    for name in arguments.jobs:
        print(measure(name, flags, 1 if arguments.quick else arguments.rounds), flush=True)


def make_scale(data: str | None, quick: bool) -> Scale:
    """The images to measure with, of a folder or the demo, and the sizes of the jobs."""
    faces = Path(data) if data else ensure_demo_sets(Path("Datasets/Demo")).train_images
    files = sorted(str(path) for path in faces.glob("*/*") if path.suffix in (".jpg", ".png"))
    if not files:
        raise DataError(f"{faces} holds no images in class folders.")
    return replace(Scale(files), **QUICK) if quick else Scale(files)


def machine() -> str:
    """The processor, the versions and the limits of this machine, for the head of the table."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(": ")[2] if models else name
    rates = [measuring.matmul_rate(d) / 1e9 for d in (torch.float32, torch.bfloat16)]
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, "
        f"OpenCV {cv2.__version__}\n"
        f"matrix multiplication {rates[0]:.0f} GFLOP/s in fp32, {rates[1]:.0f} in bf16; "
        f"convolution {measuring.convolution_rate() / 1e9:.0f}, "
        f"{measuring.convolution_rate(torch.bfloat16) / 1e9:.0f}; "
        f"memory {measuring.memory_bandwidth() / 1e9:.0f} GB/s\n"
    )


def measure(name: str, flags: list[str], rounds: int) -> str:
    """A row of the table."""
    job = JOBS[name]
    sides = ["ours", "plain"] if job.plain else ["ours"]
    if job.bound:
        sides.append("bound")
    found = [{side: _run(name, side, flags) for side in sides} for _ in range(rounds)]
    ours = [Measured(**turn["ours"]) for turn in found]
    row, peaks = f"{job.title:<32}{_figure(job, ours):>10}", f"{_mebibytes(ours):>6}"
    shown, ratio, peak = "", "", ""
    if job.plain:
        plain = [Measured(**turn["plain"]) for turn in found]
        faster = statistics.median(a.rate / b.rate for a, b in zip(ours, plain, strict=True))
        shown, ratio, peak = _figure(job, plain), f"{faster:.2f}", _mebibytes(plain)
    row += f"{shown:>10}  {job.unit:<14}{ratio:>6}"
    peaks += f"{peak:>7}"
    row += f"  {job.aim:<16}{peaks}"
    if job.bound:
        share = statistics.median(
            Measured(**turn["ours"]).rate / turn["bound"]["rate"] for turn in found
        )
        row += f"  {100 * share:.0f} % of {found[0]['bound']['what']}"
    return row


def _figure(job: Job, measured: list[Measured]) -> str:
    """Seconds, or units a second."""
    rate = statistics.median(m.rate for m in measured)
    return f"{1 / rate:,.3f}" if job.unit == "s" else f"{rate:,.{0 if rate >= 100 else 1}f}"


def _mebibytes(measured: list[Measured]) -> str:
    return f"{statistics.median(m.peak for m in measured) / 2**20:,.0f}"


def _side(job: Job, side: str, scale: Scale) -> dict:
    torch.manual_seed(0)
    if side == "bound":
        rate, what = job.bound(scale)
        return {"rate": rate, "what": what}
    return asdict((job.ours if side == "ours" else job.plain)(scale))


def _run(name: str, side: str, flags: list[str]) -> dict:
    command = [sys.executable, "-m", "benchmarks.run", "--jobs", name, "--side", side, *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stderr}")
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    run_script(main, keep_memory=False)  # which the plain sides do not do
