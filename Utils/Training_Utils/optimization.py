"""The optimiser of a run: one for all weights, or the head's own; clipping; the loss's scale.

Two optimisers, of the backbone and of the head, that are one to the rest of the program.

The learning rate over a run, as a pure function of the position in it.

Nothing is carried from one iteration to the next, so a resumed run has the rates of the run left
alone, and settings changed in between hold at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.optim import Optimizer

from Config import Config
from Config.checks import milestones_never_reached


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
    never = milestones_never_reached(config)
    epochs = ", ".join(str(epoch) for epoch in config.milestones if epoch not in never)
    text += f", ÷ 10 after epoch {epochs}" if epochs else ""
    if never:
        epochs = ", ".join(map(str, never))
        text += f" (not after {epochs}: the run ends at epoch {config.total_epoch})"
    return text


def _cosine(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2
