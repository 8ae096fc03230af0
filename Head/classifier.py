"""The classification head: it owns the class weights, and applies a margin and the scale s."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
            logits = F.linear(self.scale * unit_embeddings, unit_weight)  # N×C
            rows = torch.arange(len(labels), device=labels.device)
            target = logits[rows, labels]  # N, s·cos θ_y
            change = self.scale * self.margin(target / self.scale) - target
            # Adding the change touches N entries in place, and its gradient needs no copy of
            # the N×C matrix, which overwriting them would.
            return logits.scatter_add_(1, labels[:, None], change[:, None])


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
