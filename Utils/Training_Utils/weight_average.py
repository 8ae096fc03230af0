"""An exponential moving average of a network's weights, which often judges better than the last
weights, above all before the learning rate has fallen.

After update n, average ← d·average + (1 - d)·weights with d = min(decay, (1 + n) / (10 + n)), as
TensorFlow's ExponentialMovingAverage does: so the start, where weights are still random, weighs
little in a short run too.

BatchNorm's running means and variances are averaged in the same way: the network with averaged
weights has other activations than the one that trains, whose statistics would not fit it.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class WeightAverage:
    """The average of a backbone's weights, on its device. `backbone` has them, in evaluation mode.

    decay: 0 < decay < 1; the average looks back on about 1 / (1 - decay) iterations.
    """

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        self.decay = decay
        self._model = AveragedModel(backbone, multi_avg_fn=self._average, use_buffers=True)
        self._model.requires_grad_(False).eval()

    @property
    def backbone(self) -> nn.Module:
        return self._model.module

    @torch.no_grad()
    def update(self, backbone: nn.Module) -> None:
        """Take in the weights after an iteration; waits for nothing on the device."""
        self._model.update_parameters(backbone)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates, for a checkpoint."""
        return {"backbone": self.backbone.state_dict(), "updates": int(self._model.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.backbone.load_state_dict(state["backbone"])
        self._model.n_averaged.fill_(state["updates"])

    def start_from(self, backbone: nn.Module) -> None:
        """Begin with a backbone's weights as they are, where a run goes on that had no average."""
        self.backbone.load_state_dict(backbone.state_dict())
        self._model.n_averaged.fill_(0)

    def _average(self, averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        # AveragedModel keeps its counter on the CPU, so to read it does not wait for the device.
        updates = int(self._model.n_averaged)
        decay = min(self.decay, (1 + updates) / (10 + updates))
        if averaged[0].is_floating_point():
            get_ema_multi_avg_fn(decay)(averaged, current, _)
        else:  # BatchNorm's counter of batches
            torch._foreach_copy_(averaged, current)
