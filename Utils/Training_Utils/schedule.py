"""The learning rate over a run, as a pure function of the position in it.

Nothing is carried from one iteration to the next, so a resumed run has the rates of the run left
alone, and settings changed in between hold at once.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from Config import Config

LR_FACTOR = 0.1  # at each milestone
POWER = 2  # of the polynomial decay


@dataclass(frozen=True)
class Schedule:
    """Rates of an optimiser's groups, each from its own `initial_lr`.

    kind: milestones (times `LR_FACTOR` after these finished epochs), polynomial
    ((1 - t)^`POWER`) or cosine ((1 + cos πt) / 2), where t goes from 0 after the warm-up to 1 at
    the end of the run. warmup: iterations at the start in which the rate rises linearly; the
    first one has 1/warmup of it, so that no iteration is idle. batches: iterations an epoch.
    epochs: of the run.
    """

    kind: str
    milestones: tuple[int, ...]
    warmup: int
    batches: int
    epochs: int

    @classmethod
    def from_config(cls, config: Config, batches: int) -> Schedule:
        return cls(
            config.schedule,
            config.milestones,
            round(config.warmup_epochs * batches),
            batches,
            config.total_epoch,
        )

    def rate(self, initial: float, epoch: int, batch: int) -> float:
        """The learning rate of an iteration, after so many finished epochs and batches of the
        epoch under way, for a group that starts from `initial`."""
        rate = initial
        if self.kind == "milestones":
            # Multiplied one by one, as MultiStepLR does, for the same last digit.
            for _ in range(sum(milestone <= epoch for milestone in self.milestones)):
                rate *= LR_FACTOR
        iteration = epoch * self.batches + batch
        if iteration < self.warmup:
            return rate * (iteration + 1) / self.warmup
        if self.kind == "milestones":
            return rate
        t = (iteration - self.warmup) / (self.epochs * self.batches - self.warmup)
        return rate * ((1 - t) ** POWER if self.kind == "polynomial" else _cosine(t))

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, batch: int) -> None:
        """Set the rates for an iteration."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["initial_lr"], epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint tells of it; to go on, the settings and the position are enough."""
        return dataclasses.asdict(self) | {"milestones": list(self.milestones)}


def scaled_rate(rate: float, config: Config) -> float:
    """A rate of the settings after the rule `lr_scaling`."""
    if config.lr_scaling == "none":
        return rate
    return rate * config.batch_size / config.lr_reference_batch


def describe_rates(config: Config) -> str:
    """A line for the log that says what the learning rate comes from."""
    text = f"learning rate {scaled_rate(config.initial_lr, config):g}"
    if config.lr_scaling == "linear":
        text += (
            f" = initial_lr {config.initial_lr:g} × batch_size {config.batch_size} / "
            f"lr_reference_batch {config.lr_reference_batch}"
        )
    if config.head_lr is not None:
        text += f", head {scaled_rate(config.head_lr, config):g}"
    if config.warmup_epochs:
        text += f", after {config.warmup_epochs:g} epochs of warm-up"
    if config.schedule != "milestones":
        return f"{text}, {config.schedule} decay to the end"
    epochs = ", ".join(map(str, config.milestones))
    return f"{text}, ÷ 10 after epoch {epochs}" if epochs else text


def _cosine(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2
