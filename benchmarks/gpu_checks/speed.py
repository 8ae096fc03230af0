"""Speed and memory of training and evaluation on the device, beside plain ways in the same run."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from Backbone import build_backbone
from benchmarks.baselines.arcface_torch import PartialFC, PlainLoop
from benchmarks.gpu_checks.check import OK, SLOW, Check, Place, Row, Rows, attempt
from benchmarks.gpu_checks.steps import Training
from benchmarks.megaface_scoring import make_probes
from Head import build_head
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.devices import training_precision
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.identification import evaluate
from Utils.Evaluation_Utils.identification.scoring import ScoringSettings
from Utils.Training_Utils.data import EpochSampler, TrainingLoader

D = 512
BF16, FP16 = torch.bfloat16, torch.float16


class Case(NamedTuple):
    """A training step. plain: the plain loop's network. least: ratio of images/s to aim at."""

    network: str
    plain: str
    batch: int
    amp: torch.dtype
    least: float
    classes: int = 85_742
    rate: float = 1.0

    def name(self, compiled: bool) -> str:
        rate = f", rate {self.rate:g}" if self.rate < 1 else ""
        kind = str(self.amp).removeprefix("torch.")
        compiled_or_not = ", compiled" if compiled else ""
        about = f"{self.network} batch {self.batch} {kind}, {self.classes:,} classes"
        return about + rate + compiled_or_not


_R50_256 = Case("ResNet50_IR", "R50", 256, BF16, 1.3)
_R50_128 = _R50_256._replace(batch=128)
_R100_256 = Case("ResNet100_IR", "R100", 256, BF16, 1.15)
COMPILED = (_R50_256,)  # more would take too long to compile
EAGER = (
    _R50_128,
    _R50_128._replace(classes=1_000_000),
    _R50_128._replace(classes=1_000_000, rate=0.1),
    _R100_256,
    _R50_256,
    _R50_256._replace(amp=FP16),
    _R50_128._replace(classes=10_575),
    _R100_256._replace(batch=128),
)
_TINY = Case("ResNet18_IR", "R18", 4, BF16, 1.0, classes=50)
HEADS = ((85_742, 1.0), (1_000_000, 1.0), (10_575, 1.0), (85_742, 0.1), (1_000_000, 0.1))
# Multiplications and additions of a forward pass of 112×112 pixels, in units of 10^9.
_GIGA_MACS = {"ResNet18_IR": 2.63, "ResNet50_IR": 6.33, "ResNet100_IR": 12.12}
_HEAD_TIME, _HEAD_MEMORY = 0.7, 0.5  # at most, of the plain way's, from 85,742 classes on
_MEGAFACE_SECONDS = 2.0
_WAITING = 0.02  # of training's time


def median_ms(place: Place, work: Callable[[], object], calls: int, rounds: int = 3) -> float:
    """Milliseconds of a call, the median over rounds of several calls, after two to warm up."""
    calls, found = place.size(calls, 1), []
    for _ in range(place.size(2, 1)):
        work()
    for _ in range(rounds):
        place.finish()
        begin = time.perf_counter()
        for _ in range(calls):
            work()
        place.finish()
        found.append((time.perf_counter() - begin) / calls * 1e3)
    return statistics.median(found)


def device_ms(place: Place, work: Callable[[], object]) -> float:
    """Milliseconds for which a call keeps a GPU busy, whatever it takes to launch its kernels;
    without a GPU, those of the call."""
    if not place.on_gpu:
        return median_ms(place, work, 1)
    calls = 5
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(calls):
            work()
        place.finish()
    return sum(event.self_device_time_total for event in profiled.key_averages()) / calls / 1e3


def peak_mib(place: Place, work: Callable[[], object]) -> float:
    """MiB of the device that a call needs beyond what is there before it; 0 without a GPU."""
    if not place.on_gpu:
        return 0.0
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    place.finish()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def heads(place: Place) -> Rows:
    """The head's loss and gradients beside Partial FC's in half precision: for how long each keeps
    the GPU busy, with the time until it has finished, and memory."""
    with _one_process(place), training_precision(place.config(), place.device):
        for classes, rate in HEADS[: place.size(len(HEADS), 2)]:
            classes = place.size(classes, 300)
            name = f"head of {classes:,} classes, rate {rate:g}"
            yield attempt(name, partial(_head, place, name, classes, rate))


def _head(place: Place, name: str, classes: int, rate: float) -> Row:
    device, count = place.device, place.size(256, 8)
    x, labels = torch.randn(count, D, device=device), torch.randint(classes, (count,)).to(device)
    ours = build_head("ArcFace", D, classes, 64.0, 0.5, sample_rate=rate).to(device)

    def our_step() -> None:
        ours.sample(labels, 1)
        ours.loss(x.clone().requires_grad_(), labels).loss.backward()
        ours.weight.grad = None

    our_ms, our_gpu = median_ms(place, our_step, 10), device_ms(place, our_step)
    our_mib = peak_mib(place, our_step)
    plain = PartialFC(classes, rate, FP16).to(device)
    torch.nn.init.normal_(plain.weight, std=0.01)

    def plain_step() -> None:
        plain(x.clone().requires_grad_(), labels).backward()
        plain.weight.grad = None

    plain_ms, plain_gpu = median_ms(place, plain_step, 10), device_ms(place, plain_step)
    plain_mib = peak_mib(place, plain_step)
    ratio, memory = our_gpu / plain_gpu, our_mib / max(plain_mib, 1.0)
    slow = ratio > _HEAD_TIME or (memory > _HEAD_MEMORY and classes > 80_000)
    text = f"{our_gpu:.2f} ms busy of {our_ms:.2f} ms, {our_mib:,.0f} MiB; memory {memory:.2f}"
    note = f"Partial FC, fp16: {plain_gpu:.2f} of {plain_ms:.2f} ms, {plain_mib:,.0f} MiB"
    return Row(name, SLOW if slow else OK, text, note, ratio)


def steps(place: Place, compiled: bool) -> Rows:
    """Whole training steps of random images that are on the device, beside the plain loop."""
    peak = _peak_flops(place)
    with _one_process(place), training_precision(place.config(), place.device):
        for case in (_TINY,) if place.quick else COMPILED if compiled else EAGER:
            yield attempt(case.name(compiled), partial(_step, place, case, compiled, peak))


def _step(place: Place, case: Case, compiled: bool, peak: float) -> Row:
    side, batch = place.size(112, 32), case.batch
    begin = time.perf_counter()
    ours = Training(
        place,
        case.amp,
        case.classes,
        batch,
        **{"backbone": case.network, "feature_dim": D, "input_size": (side, side)},
        **{"margin_size": 0.5, "scale_size": 64.0, "sample_rate": case.rate},
        compile=compiled and place.on_gpu,
    )
    for _ in range(place.size(3, 1)):
        ours.step()
    place.finish()
    started = time.perf_counter() - begin
    our_rate = batch / median_ms(place, ours.step, 6) * 1e3
    our_gib = peak_mib(place, ours.step) / 1024
    del ours
    gc.collect()
    plain = PlainLoop(case.plain, case.classes, case.rate, case.amp, place.device, side)
    images = torch.randn(batch, 3, side, side, device=place.device)
    labels = torch.randint(case.classes, (batch,), device=place.device)
    plain_rate = batch / median_ms(place, partial(plain, images, labels), 6) * 1e3
    plain_gib = peak_mib(place, partial(plain, images, labels)) / 1024
    share = 6e9 * _GIGA_MACS[case.network] * our_rate / peak if peak else 0.0
    text = f"{our_rate:,.0f} images/s, {our_gib:.1f} GiB, {share:.0%} of the card's bf16"
    note = f"plain loop {plain_rate:,.0f} images/s, {plain_gib:.1f} GiB; ready in {started:.0f} s"
    ratio = our_rate / plain_rate
    return Row(case.name(compiled), OK if ratio >= case.least else SLOW, text, note, ratio)


def reading(place: Place) -> Rows:
    """Training from files beside the same steps without reading."""
    lines = place.faces.train_list.read_text().splitlines(keepends=True)
    listed = place.folder / "many.txt"
    listed.write_text("".join(lines * place.size(12, 1)))
    data = open_training_set(place.faces.train_images, listed)
    with training_precision(place.config(), place.device):
        for network in ("ResNet50_IR", "MobileFaceNet"):
            name = f"training from files, {network} bfloat16"
            yield attempt(name, partial(_reading, place, name, data, network))


def _reading(place: Place, name: str, data: TrainingSet, network: str) -> Row:
    batch, side = place.size(256, 8), place.size(112, 32)
    workers = place.size(min(14, os.cpu_count() or 1), 1)
    training = Training(
        *(place, BF16, data.num_classes, batch),
        **{"backbone": network, "feature_dim": D, "input_size": (side, side)},
    )
    limit = batch / median_ms(place, training.step, 10) * 1e3
    sampler = EpochSampler(data, batch, seed=0)
    batches = TrainingLoader(data, sampler, (side, side), workers, place.on_gpu).epoch(0)
    for _ in range(place.size(20, 1)):
        training.step(next(batches))
    place.finish()
    begin, waited, count = time.perf_counter(), 0.0, 0
    while time.perf_counter() - begin < place.size(6, 1):
        asked = time.perf_counter()
        found = next(batches, None)
        if found is None:
            break
        waited += time.perf_counter() - asked
        count += len(found.labels)
        training.step(found)
    place.finish()
    took = time.perf_counter() - begin
    ratio = count / took / limit
    text = f"{count / took:,.0f} images/s, {waited / took:.1%} of the time waiting"
    note = f"without reading {limit:,.0f} images/s; batch {batch}, {workers} workers, JPEG files"
    return Row(name, OK if ratio >= 1 - _WAITING else SLOW, text, note, ratio)


def judging(place: Place) -> Rows:
    """How fast a set is embedded, beside the bare network; and MegaFace's scores at full size."""
    yield attempt("embedding", partial(_embedding, place))
    yield attempt("MegaFace's scores", partial(_megaface, place))


def _embedding(place: Place) -> Row:
    side, batch = place.size(112, 32), place.size(256, 8)
    network = build_backbone("ResNet50_IR", D, (side, side)).eval()
    network = network.to(place.device, memory_format=torch.channels_last)
    pictures = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
    workers, dtype = place.size(min(14, os.cpu_count() or 1), 0), EVAL_DTYPES["bf16"]

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        images = _Images(pictures, count)
        embed(network, images, place.device, batch, workers, dtype=dtype)
        return time.perf_counter() - begin

    count = place.size(12_000, 16)
    rate = 2 * count / (seconds(3 * count) - seconds(count))  # without starting the workers
    pixels = torch.randn(2 * batch, 3, side, side, device=place.device).to(dtype)
    bare = network.to(dtype=dtype, memory_format=torch.channels_last)
    with torch.inference_mode():
        pixels = pixels.to(memory_format=torch.channels_last)
        limit = batch / median_ms(place, partial(bare, pixels), 5) * 1e3
    text = f"{rate:,.0f} images/s, each with its mirror image"
    note = f"ResNet50_IR bf16; the bare network {limit:,.0f} images/s"
    return Row("embedding", OK if rate > 0.5 * limit else SLOW, text, note, rate / limit)


class _Images:
    """`count` images, from a few that are in memory."""

    def __init__(self, images: np.ndarray, count: int) -> None:
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:
        return self._images[index % len(self._images)]


def _megaface(place: Place) -> Row:
    count, dim = place.size(1_000_000, 2000), place.size(D, 32)
    probes, ids = make_probes(dim)
    if place.quick:
        probes, ids = probes[::40], ids[::40]
    table = torch.randn(count, dim, device=place.device).cpu().numpy()
    settings = ScoringSettings(device=place.device, score_dtype="fp32")
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        evaluate(probes, ids, table, settings=settings)
        seconds.append(time.perf_counter() - begin)
    text = f"{seconds[1]:.2f} s, the first time {seconds[0]:.2f} s"
    note = f"{len(probes):,} × {count:,} × {dim}, scores in fp32, features in main memory"
    return Row("MegaFace's scores", OK if seconds[1] <= _MEGAFACE_SECONDS else SLOW, text, note)


def _peak_flops(place: Place) -> float:
    """bf16 operations a second of large matrix products; 0 without a GPU."""
    if not place.on_gpu:
        return 0.0
    a: Tensor = torch.randn(8192, 8192, device=place.device, dtype=BF16)
    return 2 * 8192**3 / median_ms(place, lambda: a @ a, 10) * 1e3


@contextmanager
def _one_process(place: Place) -> Iterator[None]:
    """The process group that the plain loop needs."""
    backend = "nccl" if place.on_gpu else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


CHECKS = (
    Check("speed_heads", 60, heads, alone=True),
    Check("speed_compiled", 150, partial(steps, compiled=True), alone=True),
    Check("speed_judging", 90, judging, alone=True),
    Check("speed_reading", 60, reading, after=("faces",), alone=True),
    Check("speed_steps", 150, partial(steps, compiled=False), alone=True),
)
