"""The optimiser of a run: one for all weights, or the head's own; clipping; the loss's scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from Config import Config
from Utils.Training_Utils.paired_optimizer import PairedOptimizer
from Utils.Training_Utils.schedule import scaled_rate


def build_optimizer(
    backbone: nn.Module, head: nn.Module, config: Config, device: torch.device
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, as the lineage trains, or AdamW.

    With any of the settings `head_optimizer`, `head_lr`, `head_weight_decay`, the head has its own.
    """
    head_settings = config.head_lr, config.head_weight_decay
    if not config.head_optimizer and head_settings == (None, None):
        parameters = [*backbone.parameters(), *head.parameters()]
        return _optimizer(config.optimizer, parameters, config, device)
    of_backbone = _optimizer(config.optimizer, backbone.parameters(), config, device)
    kind = config.head_optimizer or config.optimizer
    of_head = _optimizer(kind, head.parameters(), config, device, *head_settings)
    return PairedOptimizer(of_backbone, of_head)


def _optimizer(
    kind: str,
    parameters: Iterable[nn.Parameter],
    config: Config,
    device: torch.device,
    rate: float | None = None,
    weight_decay: float | None = None,
) -> torch.optim.Optimizer:
    """rate, weight_decay: None takes those of the settings for all."""
    rate = scaled_rate(config.initial_lr if rate is None else rate, config)
    group = {"params": list(parameters), "initial_lr": rate}
    decay = config.weight_decay if weight_decay is None else weight_decay
    # Fused, it takes the gradient scaler's verdict on the device; else each step waits for it.
    fused = device.type == "cuda"
    if kind == "adamw":
        return torch.optim.AdamW([group], lr=rate, weight_decay=decay, fused=fused)
    return torch.optim.SGD(
        *([group], rate, config.momentum), weight_decay=decay, nesterov=True, fused=fused
    )


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take the momenta from a checkpoint's optimiser; rates, decay and groups stay the settings'.

    The weights must be the same ones in the same order, and the kinds of optimiser too.
    """
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})


def build_scaler(
    device: torch.device, amp_dtype: torch.dtype | None, group: dist.ProcessGroup | None = None
) -> torch.amp.GradScaler:
    """What keeps fp16 gradients from underflow; does nothing for bf16, which has float32's range.

    group: processes with different shards of the head, which must skip the same steps.
    """
    enabled = amp_dtype == torch.float16
    if group is None:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return ShardedGradScaler(device.type, enabled=enabled, process_group=group)


def clip_gradients(
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    shard: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Shorten the gradient of all weights together to `max_norm` where it is longer.

    shard: the weight of which the group's processes have other rows each; the rest is the same
    everywhere. Returns the norm before.
    """
    with_gradient = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    if group is None:
        norm = nn.utils.get_total_norm([p.grad for p in with_gradient])
    else:
        replicated = nn.utils.get_total_norm([p.grad for p in with_gradient if p is not shard])
        squares = shard.grad.square().sum()
        dist.all_reduce(squares, group=group)
        norm = (replicated.to(squares.device) ** 2 + squares).sqrt()
    nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
