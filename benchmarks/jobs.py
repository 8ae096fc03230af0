"""The jobs that `run.py` measures: for each, how we do it, how the lineage does it, and the bound.

Each side runs in a process of its own, so that what one has allocated does not help the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import default_collate
from torch.utils.flop_counter import FlopCounterMode

from Backbone import build_backbone
from benchmarks import measuring
from benchmarks.baselines.embedding import embed_pairs
from benchmarks.baselines.head import PlainArcFace
from benchmarks.baselines.loading import PlainImages, read_list
from benchmarks.baselines.network import PlainTraining, plain_backbone
from benchmarks.baselines.verification import fold_accuracies
from benchmarks.measuring import Measured, repeat
from benchmarks.start_up import big_list, start_training
from Config import Config
from Head import build_head
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.verification import PROTOCOLS, combine_flip, evaluate
from Utils.memory import keep_freed_memory
from Utils.processes import ALONE
from Utils.Training_Utils.augmentation import Augmentation
from Utils.Training_Utils.loader import Batch, FittedImages, collate
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.state import build_state
from Utils.Training_Utils.step import TrainingStep

CPU = torch.device("cpu")
LFW_PAIRS, LFW_PHOTOS = 6000, 7701


@dataclass(frozen=True)
class Scale:
    """How much of a job is done: photos to read from, seconds of a measurement, and sizes."""

    files: list[str]
    seconds: float = 3.0
    classes: int = 85_742
    batch: int = 256
    pairs: dict[str, int] = field(default_factory=lambda: {"MobileFaceNet": 240, "ResNet50_IR": 32})
    distractors: int = 100_000
    listed: int = 4_000_000
    judged: int = LFW_PAIRS


Side = Callable[[Scale], Measured]
PEAK_OF = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """title, for the table. unit: of the figure, "s" for the seconds of a whole job, or work a
    second. ours, plain: its sides; plain may be missing. aim: for the ratio, or where it says so
    for ours. bound: work a second that the machine allows, and what sets it."""

    title: str
    unit: str
    ours: Side
    plain: Side | None
    aim: str
    bound: Callable[[Scale], tuple[float, str]] | None = None


def our_head(scale: Scale) -> Measured:
    keep_freed_memory()
    head = build_head("ArcFace", 512, scale.classes, 32.0, 0.5)
    return _head(scale, lambda x, y: head.loss(x, y).loss, head)


def plain_head(scale: Scale) -> Measured:
    head, criterion = PlainArcFace(512, scale.classes, 32.0, 0.5), nn.CrossEntropyLoss()
    return _head(scale, lambda x, y: criterion(head(x, y), y), head)


def _head(scale: Scale, loss: Callable, head: nn.Module) -> Measured:
    embeddings = torch.randn(scale.batch, 512, requires_grad=True)
    labels = torch.randint(scale.classes, (scale.batch,))

    def work() -> None:
        head.weight.grad = embeddings.grad = None
        loss(embeddings, labels).backward()

    return repeat(work, 1, scale.seconds)


def _head_bound(scale: Scale) -> tuple[float, str]:
    operations = 3 * 2 * scale.batch * 512 * scale.classes  # logits and two gradients
    return measuring.matmul_rate() / operations, "matrix multiplication"


STEP_BATCH, STEP_CLASSES = 32, 10_575


def our_step(scale: Scale) -> Measured:
    keep_freed_memory()
    config = Config(batch_size=STEP_BATCH, feature_dim=128, scale_size=32.0, margin_size=0.5)
    state = build_state(config, STEP_CLASSES, 1000, CPU, None)
    state.backbone.train()
    networks = Networks(state.backbone, state.head, config, CPU, ALONE)
    step = TrainingStep(state, networks, CPU, None, ALONE, Augmentation(), config.seed)
    images = torch.randint(256, (STEP_BATCH, 112, 112, 3), dtype=torch.uint8)
    batch = Batch(images, torch.randint(STEP_CLASSES, (STEP_BATCH,)), [])
    return repeat(lambda: step(batch), STEP_BATCH, scale.seconds)


def plain_step(scale: Scale) -> Measured:
    head = PlainArcFace(128, STEP_CLASSES, 32.0, 0.5)
    training = PlainTraining(plain_backbone("MobileFaceNet", 128).train(), head)
    pixels = torch.randn(STEP_BATCH, 3, 112, 112)
    labels = torch.randint(STEP_CLASSES, (STEP_BATCH,))
    return repeat(lambda: training.step(pixels, labels), STEP_BATCH, scale.seconds)


def _step_bound(scale: Scale) -> tuple[float, str]:
    operations = 3 * (network_operations("MobileFaceNet", 128) + 2 * 128 * STEP_CLASSES)
    return measuring.convolution_rate() / operations, "convolution"


def network_operations(name: str, feature_dim: int) -> int:
    """Floating-point operations of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build_backbone(name, feature_dim).eval()(torch.zeros(1, 3, 112, 112))
    return counter.get_total_flops()


def lfw_like(count: int, files: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(photos, left, right): so many pairs, over as many different photos as LFW's would be."""
    photos = round(count * LFW_PHOTOS / LFW_PAIRS)
    rng = np.random.default_rng(0)
    rest = rng.integers(0, photos, 2 * count - photos)
    left, right = rng.permutation(np.concatenate((np.arange(photos), rest))).reshape(2, count)
    return [files[i % len(files)] for i in range(photos)], left, right


def our_embedding(name: str, dtype: str, scale: Scale) -> Measured:
    keep_freed_memory()
    photos, left, right = lfw_like(scale.pairs[name], scale.files)
    backbone = build_backbone(name, FEATURE_DIMS[name])

    def work() -> None:
        features = embed(backbone, ImageFiles(photos), CPU, dtype=EVAL_DTYPES[dtype])
        rows = combine_flip(*features)
        _ = rows[left], rows[right]

    return repeat(work, len(left), scale.seconds)


def plain_embedding(name: str, scale: Scale) -> Measured:
    photos, left, right = lfw_like(scale.pairs[name], scale.files)
    backbone = plain_backbone(name, FEATURE_DIMS[name])
    files = [photos[i] for i in left], [photos[i] for i in right]
    return repeat(lambda: embed_pairs(backbone, *files), len(left), scale.seconds)


def _embedding_bound(name: str, dtype: str, scale: Scale) -> tuple[float, str]:
    each = 2 * network_operations(name, FEATURE_DIMS[name]) * LFW_PHOTOS / LFW_PAIRS
    return measuring.convolution_rate(PEAK_OF[dtype]) / each, f"convolution, {dtype}"


FEATURE_DIMS = {"MobileFaceNet": 128, "ResNet50_IR": 512}


def verification_problem(count: int) -> tuple[np.ndarray, ...]:
    """Pairs in 10 folds like LFW's, with features of 256 numbers and some errors."""
    rng = np.random.default_rng(0)
    fold = count // 10
    same = np.arange(count) % fold < fold // 2
    left, right, noise = rng.normal(size=(3, count, 256)).astype(np.float32)
    right[same] = left[same] + 4 * noise[same]
    return left, right, same, np.arange(count) // fold


def our_verification(scale: Scale) -> Measured:
    problem = verification_problem(scale.judged)
    work = [partial(evaluate, *problem, protocol=protocol) for protocol in PROTOCOLS]
    return repeat(lambda: [judge() for judge in work], 1, scale.seconds / 3)


def plain_verification(scale: Scale) -> Measured:
    left, right, *rest = verification_problem(scale.judged)
    pairs = left.astype(np.float64), right.astype(np.float64), *rest
    return repeat(lambda: fold_accuracies(*pairs), 1, scale.seconds / 3)


LOADED = 512


def our_loading(scale: Scale) -> Measured:
    keep_freed_memory()
    _one_core()
    images = FittedImages(_Labelled(scale.files[:LOADED]), (112, 112))
    batches = np.array_split(np.arange(len(images.dataset)), max(1, len(images.dataset) // 64))
    work = partial(_each, lambda rows: collate([images[i] for i in rows]), batches)
    return repeat(work, len(images.dataset), scale.seconds / 2)


class _Labelled(ImageFiles):
    """Image files as a training set of one identity."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return super().__getitem__(index), 0


def plain_loading(scale: Scale) -> Measured:
    _one_core()
    images = PlainImages([(path, 0) for path in scale.files[:LOADED]])
    batches = np.array_split(np.arange(len(images)), max(1, len(images) // 64))
    work = partial(_each, lambda rows: default_collate([images[i] for i in rows]), batches)
    return repeat(work, len(images), scale.seconds / 2)


def _one_core() -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _each(work: Callable, parts: list) -> None:
    for part in parts:
        work(part)


def _decode_bound(scale: Scale) -> tuple[float, str]:
    return measuring.decode_rate(scale.files[:LOADED]), "decoding alone"


def our_scoring(scale: Scale) -> Measured:
    from benchmarks import megaface_scoring as scoring
    from Utils.Evaluation_Utils.identification import evaluate as identify

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        probes, ids = scoring.make_probes(256)
        path = Path(folder) / "distractors.npy"
        distractors = scoring.make_distractors(path, scale.distractors, 256)
        return repeat(lambda: identify(probes, ids, distractors), scale.distractors, 0)


def bare_scoring(scale: Scale) -> Measured:
    """The products alone: not a baseline but the bound, as no peer's way fits in memory."""
    from benchmarks import megaface_scoring as scoring

    with tempfile.TemporaryDirectory() as folder:
        probes, _ = scoring.make_probes(256)
        path = Path(folder) / "distractors.npy"
        distractors = scoring.make_distractors(path, scale.distractors, 256)
        block = scoring.BLOCK_SIZES["cpu"]
        return repeat(lambda: scoring.multiply(probes, distractors, block), scale.distractors, 0)


def our_listing(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        return repeat(lambda: open_training_set(faces, file_list), scale.listed, 0)


def plain_listing(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        return repeat(lambda: read_list(str(faces), str(file_list)), scale.listed, 0)


def our_start(scale: Scale) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        faces, file_list = big_list(Path(folder), scale.listed, scale.files)
        seconds, peak = start_training(faces, file_list)
        return Measured(seconds, 1, peak)


def _embedding(name: str, dtype: str, aim: str) -> Job:
    return Job(
        f"embedding, {name}, {dtype}",
        "pairs/s",
        partial(our_embedding, name, dtype),
        partial(plain_embedding, name),
        aim,
        partial(_embedding_bound, name, dtype),
    )


JOBS: dict[str, Job] = {
    "head": Job("margin head, N 256, D 512", "s", our_head, plain_head, "≥ 3.33", _head_bound),
    "step": Job(
        "training step, MobileFaceNet", "images/s", our_step, plain_step, "≥ 1.4", _step_bound
    ),
    "embed": _embedding("MobileFaceNet", "fp32", "≥ 7"),
    "embed_bf16": _embedding("MobileFaceNet", "bf16", "≥ 12"),
    "embed_r50": _embedding("ResNet50_IR", "fp32", "≥ 3"),
    "embed_r50_bf16": _embedding("ResNet50_IR", "bf16", "≥ 6"),
    "verify": Job(
        "10-fold evaluation, everything", "s", our_verification, plain_verification, "≤ 0.05 s"
    ),
    "load": Job(
        "decoded, batched, one core", "images/s", our_loading, plain_loading, "≥ 2.8", _decode_bound
    ),
    "megaface": Job(
        "MegaFace scoring, 256-d", "distractors/s", our_scoring, bare_scoring, "≥ 0.67"
    ),
    "list": Job("opening a list", "images/s", our_listing, plain_listing, ""),
    "start": Job("Train.py to the first step", "s", our_start, None, "≤ 10 s, ≤ 1 GiB"),
}
