"""Single training steps: every precision with every option, heads, optimisers, memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_checks.check import SKIPPED, Check, Place, Row, Rows, attempt, row
from Head import HEADS, build_head
from Utils.processes import ALONE
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.optimization import build_optimizer, build_scaler
from Utils.Training_Utils.start import build_state
from Utils.Training_Utils.state import TrainingState, set_frozen
from Utils.Training_Utils.step import TrainingStep

AMP = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
_PUBLISHED = {"margin_size": None, "scale_size": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "ema_decay": {"ema_decay": 0.999},
    "clip_norm": {"clip_norm": 5.0},
    "sample_rate": {"sample_rate": 0.2},
    "accumulate_steps": {"accumulate_steps": 2},
    "adamw": {"optimizer": "adamw", "initial_lr": 1e-3},
    "head_lr": {"head_lr": 0.01},
    "head adamw": {"head_optimizer": "adamw", "head_lr": 1e-3},
    "all of these": {
        **{"ema_decay": 0.9, "clip_norm": 5.0, "sample_rate": 0.2},
        **{"accumulate_steps": 2, "head_lr": 0.01},
    },
    "crop, low resolution, jitter, erasing": {
        **{"crop_prob": 0.5, "low_res_prob": 0.5, "jitter_prob": 0.5, "erasing_prob": 0.5},
    },
    "blank crop": {"crop_prob": 0.5, "crop_kind": "blank"},
    "jpeg_prob": {"jpeg_prob": 0.5},
    "label_smoothing": {"label_smoothing": 0.1},
    "focal_gamma": {"focal_gamma": 2.0},
    "ResNet50_IR": {"backbone": "ResNet50_IR"},
    "SEResNet50_IR": {"backbone": "SEResNet50_IR"},
    **{f"head {name}": {"margin": name, **_PUBLISHED} for name in HEADS},
}


class Training:
    """The step of a run with fresh weights, and batches of random images in pinned memory."""

    def __init__(
        self,
        place: Place,
        amp: torch.dtype | None,
        classes: int = 500,
        count: int | None = None,
        **settings: Any,
    ) -> None:
        count, side = count or place.size(32, 8), place.size(48, 32)
        config = place.config(
            **{"batch_size": count, "input_size": (side, side), "clip_norm": 5.0, **settings}
        )
        torch.manual_seed(0)
        device = place.device
        self.place = place
        self.state: TrainingState = build_state(config, classes, 1000, device, amp)
        self.state.backbone.train()
        if amp == torch.float16 and not place.on_gpu:  # too slow to wait for the scale to fall
            self.state.scaler.scale(torch.zeros(()))
            self.state.scaler.update(2.0**8)
        networks = Networks(self.state.backbone, self.state.head, config, device, ALONE, amp)
        self._step = TrainingStep(config, self.state, networks)
        images = torch.randint(256, (count, *config.input_size, 3), dtype=torch.uint8)
        batch = Batch(images, torch.randint(classes, (count,)), [])
        self._batch = batch.pin_memory() if place.on_gpu else batch

    def step(self, batch: Batch | None = None) -> Tensor:
        """Train on a batch, or on always the same one; its loss, on the device."""
        loss = self._step(batch or self._batch).loss
        self.state.advance(1000)
        return loss


@contextlib.contextmanager
def no_waits(place: Place) -> Iterator[None]:
    """Any operation inside that waits for the device raises an error, on a GPU."""
    if not place.on_gpu:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def steps(place: Place, precision: str) -> Rows:
    """Each option: a finite loss and finite weights, and nothing that waits for the device."""
    for option, settings in OPTIONS.items():
        name = f"step {precision}, {option}"
        yield attempt(name, partial(_step, place, name, AMP[precision], settings))


def _step(place: Place, name: str, amp: torch.dtype | None, settings: dict[str, Any]) -> Row:
    # Without a limit the first steps of a network of 50 layers may diverge.
    training = Training(place, amp, **({"clip_norm": 0.0} if name.endswith("plain") else settings))
    before = [p.detach().clone() for p in training.state.head.parameters()]
    for _ in range(place.size(12, 1)):  # warm; with fp16, the scale has fallen far enough
        training.step()
    with no_waits(place):
        loss = training.step()
        training.step()
    finite = math.isfinite(loss.item()) and training.state.is_finite()
    moved = any(
        not torch.equal(a, b) for a, b in zip(before, training.state.head.parameters(), strict=True)
    )
    found = f"loss {loss.item():.3f}" + ("" if finite else ", not finite")
    waits = "no host waits" if place.on_gpu else "host waits: not checked without a GPU"
    return row(name, finite and moved, found, waits if moved else "the weights have not changed")


def heads(place: Place) -> Rows:
    """Every head's loss and gradients on the device against the CPU's and float64's."""
    torch.backends.cuda.matmul.allow_tf32 = False
    for name in HEADS:
        yield attempt(f"head {name}", partial(_head, place, name))


def _head(place: Place, name: str) -> Row:
    dim, classes, count = 64, 300, 40
    x, y = torch.randn(count, dim), torch.randint(classes, (count,))

    def work(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(3)
        head = build_head(name, dim, classes).to(device, dtype)
        embeddings = x.to(device, dtype, copy=True).requires_grad_()
        loss = head.loss(embeddings, y.to(device)).loss
        loss.backward()
        return [t.detach().double().cpu() for t in (loss, embeddings.grad, head.weight.grad)]

    ours = work(place.device, torch.float32)
    cpu = _apart(ours, work(torch.device("cpu"), torch.float32))
    exact = _apart(ours, work(torch.device("cpu"), torch.float64))
    found = f"{cpu:.1e} from the CPU's, {exact:.1e} from float64's"
    return row(f"head {name}", cpu < 1e-5 and exact < 1e-5, found, "loss and both gradients")


def _apart(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest relative difference of two lists of tensors."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)


def optimizers(place: Place) -> Rows:
    """Skipped steps of fp16, and weights that are frozen at first."""
    for optimizer in ("sgd", "adamw"):
        for split in (False, True):
            name = f"fp16, skipped steps, {optimizer}{' and head_lr' if split else ''}"
            yield attempt(name, partial(_skipped, place, name, optimizer, split))
    for optimizer in ("sgd", "adamw"):
        name = f"frozen, then trained, {optimizer}"
        yield attempt(name, partial(_thawed, place, name, optimizer))


def _skipped(place: Place, name: str, optimizer: str, split: bool) -> Row:
    """Updates of which the gradient scaler skips the first and the fourth, against PyTorch's own
    optimiser that sees the others only: fused bit for bit, and unfused within rounding."""
    device = place.device
    config = place.config(optimizer=optimizer, head_lr=0.05 if split else None)
    gradients = torch.randn(6, 2, 4096, generator=torch.Generator().manual_seed(0)).to(device)
    used = [1, 2, 4, 5]
    gradients[0, 0, 7] = gradients[3, 1, 9] = math.inf  # the backbone's, then the head's
    # Memory that is handed out again holds rubbish, not zeros as it does at first.
    junk = [torch.full((4096,), 1e30, device=device) for _ in range(64)]
    del junk

    def networks() -> list[nn.ParameterList]:
        return [nn.ParameterList([torch.ones(4096, device=device)]) for _ in range(2)]

    backbone, head = networks()
    ours = build_optimizer(backbone, head, config, device)
    scaler = build_scaler(device, torch.float16)
    for own in gradients:
        scaler.scale(torch.zeros((), device=device))  # makes the scale
        for weights, gradient in zip((backbone, head), own, strict=True):
            weights[0].grad = gradient * scaler.get_scale()
        scaler.unscale_(ours)
        scaler.step(ours)
        scaler.update()
    found = torch.cat([backbone[0].detach(), head[0].detach()])

    def plain(fused: bool) -> Tensor:
        pair = networks()
        shared = {"weight_decay": config.weight_decay, "fused": fused}
        groups = [
            {"params": weights.parameters(), "lr": rate}
            for weights, rate in zip(pair, (0.1, config.head_lr or 0.1), strict=True)
        ]
        if optimizer == "adamw":
            theirs = torch.optim.AdamW(groups, **shared)
        else:
            theirs = torch.optim.SGD(groups, momentum=0.9, nesterov=True, **shared)
        for step in used:
            for weights, gradient in zip(pair, gradients[step], strict=True):
                weights[0].grad = gradient.clone()
            theirs.step()
        return torch.cat([weights[0].detach() for weights in pair])

    same = torch.equal(found, plain(fused=place.on_gpu))
    apart = (found - plain(fused=False)).abs().max().item()
    text = "bit for bit as without them" if same else "OTHER weights than without them"
    return row(name, same and apart < 1e-5, text, f"{apart:.1e} from PyTorch's unfused optimiser")


def _thawed(place: Place, name: str, optimizer: str) -> Row:
    training = Training(place, None, optimizer=optimizer, initial_lr=1e-3)
    backbone = training.state.backbone
    weights = [p.detach().clone() for p in backbone.parameters()]

    def changed() -> bool:
        return any(
            not torch.equal(a, b) for a, b in zip(weights, backbone.parameters(), strict=True)
        )

    set_frozen(backbone, True)
    training.step()
    training.step()
    kept = not changed()
    set_frozen(backbone, False)
    training.step()
    right = kept and changed() and training.state.is_finite()
    return row(name, right, "" if kept else "weights changed while frozen")


def memory(place: Place) -> Rows:
    """Peaks of memory with many classes."""
    classes, dim = place.size(1_000_000, 2000), place.size(512, 32)
    table = classes * dim * 4
    size = f"{classes:,} classes × {dim}"
    name = "memory of a step with sample_rate 0.1"
    training = Training(place, None, classes, feature_dim=dim, sample_rate=0.1)
    training.step()
    training.step()
    if place.on_gpu:
        yield _peak(place, name, training.step, 3 * table, f"weights, momenta, the sample; {size}")
    name = "memory of the check for finite weights"
    if place.on_gpu:
        before = torch.cuda.memory_allocated(place.device)
        most = before + table // 8
        yield _peak(place, name, training.state.is_finite, most, f"{before >> 20:,} before; {size}")
    else:
        yield row("the check for finite weights", training.state.is_finite())
        yield Row("memory of a step and of that check", SKIPPED, note="only CUDA counts it")
    with torch.no_grad():
        training.state.head.weight[-1, -1] = math.nan
    yield row("one NaN among the class weights is found", not training.state.is_finite(), note=size)


def _peak(place: Place, name: str, work: Callable[[], object], most: int, note: str) -> Row:
    """Memory while `work` runs, of all tensors; it may be `most` bytes."""
    place.finish()
    torch.cuda.reset_peak_memory_stats(place.device)
    work()
    place.finish()
    peak = torch.cuda.max_memory_allocated(place.device)
    return row(name, peak <= most, f"{peak >> 20:,} MiB, at most {most >> 20:,}", note)


CHECKS = (
    *(Check(f"steps_{name}", 120, partial(steps, precision=name)) for name in AMP),
    Check("heads", 60, heads),
    Check("optimizers", 60, optimizers),
    Check("memory", 90, memory),
)
