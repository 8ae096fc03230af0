"""The classification head: it owns the class weights, and applies a margin and the scale s."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Margin = Callable[[Tensor], Tensor]


class MarginHead(nn.Module):
    """Logits s·cos θ_j, with a margin on the target class: s·margin(cos θ_y).

    feature_dim: D. num_classes: C. scale: s > 0.
    margin: pure function of the target cosines.
    weight: C×D, Glorot's uniform initialisation as the lineage trains.
    """

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: Margin) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Map embeddings N×D and labels N (int64, 0..C-1) to logits N×C in the weight's dtype.

        Computed in float32 (the weight's dtype) whatever autocast says: at s = 64 half precision
        would round the logits to steps of 1/32.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            unit_embeddings = F.normalize(embeddings.to(self.weight.dtype))
            unit_weight = F.normalize(self.weight)
            # The scale goes in on the small side of the product: N×D numbers, not N×C.
            scaled = self.scale * unit_embeddings
            return _MarginProduct.apply(scaled, unit_weight, labels, self.scale, self.margin)


class _MarginProduct(torch.autograd.Function):
    """scaled·unit_weightᵀ with s·margin(cos θ_y) in place of the targets' s·cos θ_y.

    The N×C product is the only matrix of its size, forward and backward: the targets are
    overwritten in it, and the gradient is that of the plain product plus a correction of N rows
    by the margin's slope, m′(cos θ_y) - 1.
    """

    @staticmethod
    def forward(
        ctx: Any, scaled: Tensor, unit_weight: Tensor, labels: Tensor, scale: float, margin: Margin
    ) -> Tensor:
        logits = F.linear(scaled, unit_weight)  # N×C
        rows = torch.arange(len(labels), device=labels.device)
        with torch.enable_grad():
            cosine = (logits[rows, labels] / scale).detach().requires_grad_()  # N
            target = margin(cosine)
            (slope,) = torch.autograd.grad(target.sum(), cosine)
        logits[rows, labels] = scale * target.detach()
        ctx.save_for_backward(scaled, unit_weight, labels, slope)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled, unit_weight, labels, slope = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            correction = gradient.gather(1, labels[:, None]) * (slope - 1)[:, None]  # N×1
            scaled_gradient = weight_gradient = None
            if ctx.needs_input_grad[0]:
                scaled_gradient = gradient @ unit_weight
                scaled_gradient += correction * unit_weight[labels]
            if ctx.needs_input_grad[1]:
                weight_gradient = gradient.T @ scaled
                weight_gradient.index_add_(0, labels, correction * scaled)
        return scaled_gradient, weight_gradient, None, None, None


class SoftmaxHead(nn.Module):
    """Plain linear classifier, logits x·Wᵀ without normalisation, bias, scale or margin."""

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Map embeddings N×D to logits N×C; labels are taken so that all heads are called alike."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return F.linear(embeddings.to(self.weight.dtype), self.weight)
