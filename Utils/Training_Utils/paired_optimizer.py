"""Two optimisers, of the backbone and of the head, that are one to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class PairedOptimizer(Optimizer):
    """Groups and state of both, saved and loaded as one; a step is a step of each.

    With fp16's scaler each step waits for the device, to know whether it is skipped.
    """

    def __init__(self, backbone: Optimizer, head: Optimizer) -> None:
        self._parts = backbone, head
        super().__init__([*backbone.param_groups, *head.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # makes new groups and state
        self._share()

    def _share(self) -> None:
        first = len(self._parts[0].param_groups)
        for part, groups in zip(
            self._parts, (self.param_groups[:first], self.param_groups[first:]), strict=True
        ):
            part.param_groups, part.state = groups, self.state
