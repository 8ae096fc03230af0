"""What several families share: attention gates on a residual branch, PReLU, and `run_units`.

Hu, Shen, Sun: "Squeeze-and-Excitation Networks", https://arxiv.org/abs/1709.01507 (SE). Woo, Park,
Lee, Kweon: "CBAM: Convolutional Block Attention Module", https://arxiv.org/abs/1807.06521 (CAM
weighs channels, SAM positions, CBAM first channels and then positions). As face recognition uses
them: reduction 16, 1×1 convolutions without biases, and a 3×3 kernel in SAM where that paper has
7×7. He, Zhang, Ren, Sun: "Delving Deep into Rectifiers", https://arxiv.org/abs/1502.01852, eq. 1
and 8 (PReLU), here with a gradient that is faster on CPUs. Chen, Xu, Zhang, Guestrin: "Training
Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174 (activation checkpointing).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Bias = Callable[[], Tensor]
ATTENTIONS = ("none", "se", "cam", "sam", "cbam")
REDUCTION = 16


class ArchitectureError(ValueError):
    """A network can't be built with these settings; the text names the setting and its value."""


def run_units(
    units: Iterable[nn.Module], x: Tensor, recompute: bool, biases: Sequence[Bias] | None = None
) -> Tensor:
    """The output of units, each called with the output of the one before.

    biases: a second argument for each unit; None: they have none.
    recompute: keep only the units' inputs, and compute what is in a unit again in the backward
    pass, with the same random numbers: the same gradients in more time and less memory.
    """
    for number, unit in enumerate(units):
        inputs = (x,) if biases is None else (x, biases[number])
        if recompute:
            contexts = partial(_contexts, unit)
            x = checkpoint(unit, *inputs, use_reentrant=False, context_fn=contexts)
        else:
            x = unit(*inputs)
    return x


def _contexts(unit: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Of a unit's forward pass, and of its repetition."""
    return nullcontext(), _statistics_kept(unit)


@contextmanager
def _statistics_kept(unit: nn.Module) -> Iterator[None]:
    """In here BatchNorm leaves its running statistics, which each batch should change once."""
    norms = [module for module in unit.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, channels // REDUCTION, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(channels // REDUCTION, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.relu(self.fc1(self.pool(x))))  # N×C×1×1
        return x * gate.sigmoid()


class ChannelAttention(nn.Module):
    """Scales each channel by a gate computed from the channels' means and maxima."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, channels // REDUCTION, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // REDUCTION, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        # As AdaptiveMaxPool2d(1), whose gradient has no deterministic form on CUDA.
        gate = self.mlp(self.mean(x)) + self.mlp(F.max_pool2d(x, x.shape[2:]))  # N×C×1×1
        return x * gate.sigmoid()


class SpatialAttention(nn.Module):
    """Scales each position by a gate computed from the mean and the maximum over its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # N×2×H×W
        return x * self.conv(summary).sigmoid()


def channel_gate(attention: str, channels: int) -> nn.Module:
    """The gate on channels of an attention of `ATTENTIONS`; Identity where it has none.

    Raises ArchitectureError for another name.
    """
    if attention not in ATTENTIONS:
        raise ArchitectureError(
            f"attention is {attention!r}; it must be one of {', '.join(ATTENTIONS)}"
        )
    if attention == "se":
        return SqueezeExcitation(channels)
    return ChannelAttention(channels) if attention in ("cam", "cbam") else nn.Identity()


def spatial_gate(attention: str) -> nn.Module:
    """The gate on positions of an attention of `ATTENTIONS`; Identity where it has none."""
    return SpatialAttention() if attention in ("sam", "cbam") else nn.Identity()


class PReLU(nn.PReLU):
    """`torch.nn.PReLU` with one slope for each channel; same parameters, values and gradients.

    PyTorch's own gradient is not vectorised on CPUs when slopes are broadcast over channels, and
    took a third of MobileFaceNet's training step there. On other devices, and in evaluation mode,
    this is PyTorch's module.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map N×C×H×W to max(0, x) + slope_c·min(0, x)."""
        if self.training and x.device.type == "cpu":
            return _PReLU.apply(x, self.weight.to(x.dtype))
        return super().forward(x)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        below = gradient * (x <= 0)
        slope_gradient = (below * x).sum((0, 2, 3))
        # gradient above 0, gradient·slope below: gradient + below·(slope - 1)
        return torch.addcmul(gradient, below, slope.view(1, -1, 1, 1) - 1), slope_gradient
