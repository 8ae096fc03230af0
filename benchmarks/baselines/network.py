"""Backbones of PyTorch's own layers in their default memory layout, and the plain training loop."""

import torch
from torch import Tensor, nn

from Backbone import build_backbone
from Backbone.layers import PReLU
from benchmarks.baselines.head import PlainArcFace


def plain_backbone(name: str, feature_dim: int) -> nn.Module:
    """The network of that name with `nn.PReLU`, weights and activations channels first."""
    backbone = build_backbone(name, feature_dim)
    for path, module in list(backbone.named_modules()):
        if isinstance(module, PReLU):
            plain = nn.PReLU(module.num_parameters)
            plain.weight = module.weight
            backbone.set_submodule(path, plain)
    return backbone


class PlainTraining:
    """One iteration: forward, head, loss, backward, step."""

    def __init__(self, backbone: nn.Module, head: PlainArcFace) -> None:
        self.backbone, self.head = backbone, head
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(
            [{"params": backbone.parameters()}, {"params": head.parameters()}],
            lr=0.05,
            momentum=0.9,
            weight_decay=5e-4,
            nesterov=True,
        )

    def step(self, pixels: Tensor, labels: Tensor) -> float:
        """Learn from float N×3×H×W; returns the loss."""
        self.optimizer.zero_grad()
        loss = self.criterion(self.head(self.backbone(pixels), labels), labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()
