"""ArcFace as the lineage writes it: whole N×C tensors for cos, sin, cos(θ + m), one-hot, logits.

Its behaviour, for comparison; the lineage's square root of a number below 0 is left out.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainArcFace(nn.Module):
    """Logits N×C of embeddings N×D and labels N, for `nn.CrossEntropyLoss`."""

    def __init__(self, weight: Tensor, s: float, m: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.s, self.m = s, m

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        sine = torch.sqrt((1.0 - cosine**2).clamp(0, 1))
        phi = cosine * math.cos(self.m) - sine * math.sin(self.m)
        last = math.cos(math.pi - self.m)
        phi = torch.where(cosine > last, phi, cosine - math.sin(math.pi - self.m) * self.m)
        one_hot = torch.zeros_like(cosine)
        one_hot.scatter_(1, labels.view(-1, 1), 1)
        return (one_hot * phi + (1.0 - one_hot) * cosine) * self.s
