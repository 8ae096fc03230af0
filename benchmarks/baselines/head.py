"""ArcFace with cosine, sine, shifted cosine, one-hot labels and their mixture, each N×C."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainArcFace(nn.Module):
    """Logits N×C of embeddings N×D and labels N, for `nn.CrossEntropyLoss`."""

    def __init__(self, feature_dim: int, num_classes: int, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, feature_dim))
        nn.init.xavier_uniform_(self.weight)
        self.scale = scale
        self.margin = margin

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.weight))
        sine = torch.sqrt(1.0 - torch.pow(cosine, 2))
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        beyond = cosine - math.sin(math.pi - self.margin) * self.margin
        shifted = torch.where(cosine > math.cos(math.pi - self.margin), shifted, beyond)
        one_hot = torch.zeros_like(cosine)
        one_hot.scatter_(1, labels.view(-1, 1), 1)
        return ((one_hot * shifted) + ((1.0 - one_hot) * cosine)) * self.scale
