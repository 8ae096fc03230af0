"""The optimiser of a run and its learning rate over the epochs."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR

from Config import Config

LR_FACTOR = 0.1  # at each milestone


def build_optimizer(
    parameters: Iterable[nn.Parameter], config: Config, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, as the lineage trains."""
    return torch.optim.SGD(
        parameters,
        lr=config.initial_lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
        # Fused, it takes the gradient scaler's verdict on the device; else each step waits for it.
        fused=device.type == "cuda",
    )


def build_schedule(optimizer: torch.optim.Optimizer, config: Config) -> LRScheduler:
    """The milestones' schedule."""
    return MultiStepLR(optimizer, list(config.milestones), gamma=LR_FACTOR)


def apply_changes(
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    config: Config,
    saved: Config,
    epoch: int,
) -> LRScheduler:
    """Let the settings of today hold for an optimiser and schedule restored from a checkpoint.

    saved: the settings in the checkpoint. epoch: finished epochs.
    Returns the schedule to go on with.
    """
    for group in optimizer.param_groups:
        group["momentum"], group["weight_decay"] = config.momentum, config.weight_decay
    if (config.initial_lr, config.milestones) == (saved.initial_lr, saved.milestones):
        return schedule  # to compute the rate anew could change its last digit
    passed = sum(milestone <= epoch for milestone in config.milestones)
    for group in optimizer.param_groups:
        group["initial_lr"] = config.initial_lr
        group["lr"] = config.initial_lr * LR_FACTOR**passed
    changed = build_schedule(optimizer, config)
    changed.last_epoch = epoch  # with the optimiser's rate left as it is
    return changed
