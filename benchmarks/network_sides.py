"""The sides of the jobs of networks and heads: ours, the plain one, and the machine's limit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from Backbone import build_backbone
from benchmarks import measuring
from benchmarks.baselines.embedding import embed_pairs
from benchmarks.baselines.head import PlainArcFace
from benchmarks.baselines.network import PlainTraining, plain_backbone
from benchmarks.measuring import Measured, repeat
from benchmarks.scale import LFW_PAIRS, LFW_PHOTOS, Scale
from Config import Config
from Head import build_head
from Utils.cpu import keep_freed_memory
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.Evaluation_Utils.embedding import EVAL_DTYPES, embed
from Utils.Evaluation_Utils.verification import combine_flip
from Utils.processes import ALONE
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.start import build_state
from Utils.Training_Utils.step import TrainingStep

CPU = torch.device("cpu")
PEAK_OF = {"fp32": torch.float32, "bf16": torch.bfloat16}
FEATURE_DIMS = {"MobileFaceNet": 128, "ResNet50_IR": 512}
STEP_BATCH, STEP_CLASSES = 32, 10_575


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


def head_bound(scale: Scale) -> tuple[float, str]:
    operations = 3 * 2 * scale.batch * 512 * scale.classes  # logits and two gradients
    return measuring.matmul_rate() / operations, "matrix multiplication"


def our_step(scale: Scale) -> Measured:
    keep_freed_memory()
    config = Config(batch_size=STEP_BATCH, feature_dim=128, scale_size=32.0, margin_size=0.5)
    state = build_state(config, STEP_CLASSES, 1000, CPU, None)
    state.backbone.train()
    networks = Networks(state.backbone, state.head, config, CPU, ALONE)
    step = TrainingStep(config, state, networks)
    images = torch.randint(256, (STEP_BATCH, 112, 112, 3), dtype=torch.uint8)
    batch = Batch(images, torch.randint(STEP_CLASSES, (STEP_BATCH,)), [])
    return repeat(lambda: step(batch), STEP_BATCH, scale.seconds)


def plain_step(scale: Scale) -> Measured:
    head = PlainArcFace(128, STEP_CLASSES, 32.0, 0.5)
    training = PlainTraining(plain_backbone("MobileFaceNet", 128).train(), head)
    pixels = torch.randn(STEP_BATCH, 3, 112, 112)
    labels = torch.randint(STEP_CLASSES, (STEP_BATCH,))
    return repeat(lambda: training.step(pixels, labels), STEP_BATCH, scale.seconds)


def step_bound(scale: Scale) -> tuple[float, str]:
    operations = 3 * (network_operations("MobileFaceNet", 128) + 2 * 128 * STEP_CLASSES)
    return measuring.convolution_rate() / operations, "convolution"


def network_operations(name: str, feature_dim: int) -> int:
    """Floating-point operations of a forward pass of one image."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        build_backbone(name, feature_dim).eval()(torch.zeros(1, 3, 112, 112))
    return counter.get_total_flops()


def lfw_like(count: int, files: list[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(photos, left, right) of `count` pairs, with as many photos for each pair as LFW has."""
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


def embedding_bound(name: str, dtype: str, scale: Scale) -> tuple[float, str]:
    each = 2 * network_operations(name, FEATURE_DIMS[name]) * LFW_PHOTOS / LFW_PAIRS
    return measuring.convolution_rate(PEAK_OF[dtype]) / each, f"convolution, {dtype}"
