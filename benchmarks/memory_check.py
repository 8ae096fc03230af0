"""Compares the memory plan with the memory of small runs, on the CPU in one process.

In these runs freed memory returns to the system at once (`MALLOC_MMAP_THRESHOLD_`), so the memory
of the process is that of its tensors, without what the allocator would keep for later.
"""

from __future__ import annotations

import multiprocessing
import os
from unittest.mock import patch

import torch

from Backbone import build_backbone
from benchmarks.memory import MemoryWatch
from benchmarks.memory_plan import AMP, Activations, Setup, plan
from Config import Config
from Head import build_head
from Utils.Training_Utils.optimization import build_optimizer

_SMALL = {"world": 1, "input_size": (64, 64), "dtype": "fp32"}
CASES = (
    Setup("MobileFaceNet", 100, batch=64, feature_dim=128, **_SMALL),
    Setup("ResNet18_IR", 1000, batch=16, **_SMALL),
    Setup("MobileFaceNet", 100_000, batch=64, **_SMALL),
    Setup("MobileFaceNet", 100_000, batch=64, optimizer="adamw", **_SMALL),
    Setup("MobileFaceNet", 200_000, batch=32, sample_rate=0.1, **_SMALL),
)


def steps(setup: Setup) -> None:
    """Build the networks and change their weights twice."""
    backbone = build_backbone(setup.backbone, setup.feature_dim, setup.input_size)
    backbone = backbone.to(memory_format=torch.channels_last)
    head = build_head(
        *("ArcFace", setup.feature_dim, setup.classes), scale=64.0, sample_rate=setup.sample_rate
    )
    optimizer = build_optimizer(
        backbone, head, Config(optimizer=setup.optimizer), torch.device("cpu")
    )
    pixels = torch.randn(setup.batch, 3, *setup.input_size)
    pixels = pixels.to(memory_format=torch.channels_last)
    labels = torch.randint(setup.classes, (setup.batch,))
    amp = AMP[setup.dtype]
    for step in range(2):
        head.sample(labels, step)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", amp, enabled=amp is not None):
            embeddings = backbone(pixels)
        head.loss(embeddings, labels).loss.backward()
        with head.weight_to_update(optimizer):
            optimizer.step()


def measure(setup: Setup) -> int:
    """The most bytes that `steps` needs in a new process, without what torch allocates once."""
    freed_at_once = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}
    with (
        patch.dict(os.environ, freed_at_once),
        multiprocessing.get_context("spawn").Pool(1) as pool,
    ):
        return pool.apply(_measure, (setup,))


def _measure(setup: Setup) -> int:
    torch.set_num_threads(1)
    tiny = {"classes": 10, "batch": 2, "sample_rate": 1.0}
    steps(Setup(setup.backbone, **tiny, feature_dim=16, optimizer=setup.optimizer, **_SMALL))
    with MemoryWatch() as memory:
        steps(setup)
    return memory.used


def print_check() -> None:
    print(f"{'network':<16}{'classes':>9} {'batch':>6} {'rate':>5}{'plan MB':>10}{'took MB':>10}")
    for setup in CASES:
        planned = plan(setup, Activations.measure(setup), on_gpu=False).peak
        took = measure(setup)
        print(
            f"{setup.backbone:<16}{setup.classes:>9,} {setup.batch:>6} {setup.sample_rate:>5g}"
            f"{planned / 1e6:>10.0f}{took / 1e6:>10.0f}{took / planned:>7.2f} {setup.optimizer}"
        )
