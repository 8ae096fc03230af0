"""Everything that changes the weights of a run: learning rate, optimiser, loss scaling, clipping.

The learning rate is a pure function of the settings and the position in the run (`Schedule`).
It has no state, so a resumed run has the same rates as one without the interruption, and changed
settings take effect at once.

One optimiser updates all weights, unless the settings give the head its own optimiser, learning
rate or weight decay: then `PairedOptimizer` combines two optimisers into one.
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
from torch.optim import Optimizer

from Config import Config

LR_FACTOR = 0.1  # at each milestone
POWER = 2  # of the polynomial decay


@dataclass(frozen=True)
class Schedule:
    """The learning rates of an optimiser's parameter groups, each from its own `initial_lr`.

    kind: "milestones" multiplies the rate by `LR_FACTOR` after each of these epochs; "polynomial"
    by (1 - t)^`POWER` and "cosine" by (1 + cos πt) / 2, where t goes from 0 after the warm-up to 1
    at the end of the run. warmup: iterations at the start in which the rate rises linearly; the
    first one has 1/warmup of it, so that no iteration has a rate of 0. batches: iterations of an
    epoch. epochs: of the run.
    """

    kind: str
    milestones: tuple[int, ...]
    warmup: int
    batches: int
    epochs: int

    @classmethod
    def from_config(cls, config: Config, batches: int) -> Schedule:
        """The schedule of the settings, for epochs of `batches` batches."""
        return cls(
            kind=config.schedule,
            milestones=config.milestones,
            warmup=round(config.warmup_epochs * batches),
            batches=batches,
            epochs=config.total_epoch,
        )

    def rate(self, initial: float, epoch: int, batch: int) -> float:
        """The learning rate of the iteration `batch` of `epoch`, both counted from 0, for a group
        whose rate begins at `initial`."""
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
        if self.kind == "polynomial":
            return rate * (1 - t) ** POWER
        return rate * ((1 + math.cos(math.pi * t)) / 2)

    def apply(self, optimizer: torch.optim.Optimizer, epoch: int, batch: int) -> None:
        """Set the rates of the optimiser's groups for the iteration `batch` of `epoch`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["initial_lr"], epoch, batch)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint. Resuming needs only the settings and the position."""
        return dataclasses.asdict(self) | {"milestones": list(self.milestones)}


def scaled_rate(rate: float, config: Config) -> float:
    """A learning rate of the settings, scaled with the batch size where `lr_scaling` says so
    (https://arxiv.org/abs/1706.02677, section 2.1)."""
    if config.lr_scaling == "none":
        return rate
    return rate * config.batch_size / config.lr_reference_batch


def describe_rates(config: Config) -> str:
    """A line for the log: the learning rate, where it comes from and how it changes."""
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
    reached = [str(epoch) for epoch in config.milestones if epoch < config.total_epoch]
    never = [str(epoch) for epoch in config.milestones if epoch >= config.total_epoch]
    if reached:
        text += f", ÷ 10 after epoch {', '.join(reached)}"
    if never:
        last = config.total_epoch
        text += f"; milestones never reached, as total_epoch is {last}: {', '.join(never)}"
    return text


def build_optimizer(
    backbone: nn.Module,
    head: nn.Module,
    config: Config,
    device: torch.device,
    others: nn.Module | None = None,
) -> Optimizer:
    """SGD with Nesterov momentum, as the lineage trains, or AdamW.

    With any of the settings `head_optimizer`, `head_lr`, `head_weight_decay`, the head has its own.
    device: on CUDA the optimiser is fused. others: has weights that are trained as the head's are.
    """
    rate, decay = config.initial_lr, config.weight_decay
    # The others are the last: a checkpoint without them keeps the indices of its states.
    of_head = [*head.parameters(), *(others.parameters() if others else ())]
    if not config.head_optimizer and (config.head_lr, config.head_weight_decay) == (None, None):
        parameters = [*backbone.parameters(), *of_head]
        optimizer = _optimizer(config.optimizer, parameters, rate, decay, config, device)
        _begin_momenta(optimizer)
        return optimizer
    head_rate = rate if config.head_lr is None else config.head_lr
    head_decay = decay if config.head_weight_decay is None else config.head_weight_decay
    head_kind = config.head_optimizer or config.optimizer
    optimizer = PairedOptimizer(
        _optimizer(config.optimizer, backbone.parameters(), rate, decay, config, device),
        _optimizer(head_kind, of_head, head_rate, head_decay, config, device),
    )
    _begin_momenta(optimizer)
    return optimizer


def _optimizer(
    kind: str,
    parameters: Iterable[nn.Parameter],
    rate: float,
    weight_decay: float,
    config: Config,
    device: torch.device,
) -> Optimizer:
    rate = scaled_rate(rate, config)
    group = {"params": list(parameters), "initial_lr": rate}
    # Only a fused step can be skipped by the gradient scaler without waiting for the device.
    shared = {"lr": rate, "weight_decay": weight_decay, "fused": device.type == "cuda"}
    if kind == "adamw":
        return torch.optim.AdamW([group], **shared)
    return torch.optim.SGD([group], momentum=config.momentum, nesterov=True, **shared)


def _begin_momenta(optimizer: Optimizer) -> None:
    """Give SGD a momentum of 0 for each weight without one, which changes no step.

    A fused SGD would allocate them in its first step, leave them uninitialised if the gradient
    scaler skips that step, and refuse weights that get their first gradient later than others.
    """
    for group in optimizer.param_groups:
        if group.get("momentum"):  # AdamW's groups have none; it begins with zeros by itself
            for weight in group["params"]:
                state = optimizer.state[weight]
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(weight)


class PairedOptimizer(Optimizer):
    """An optimiser of the backbone and one of the head as one: a step is a step of each.

    It has the parameter groups and the state of both, saved and loaded together.
    """

    def __init__(self, backbone: Optimizer, head: Optimizer) -> None:
        self._pair = backbone, head
        super().__init__([*backbone.param_groups, *head.param_groups], {})
        # Then the gradient scaler gives `found_inf` to the step instead of waiting for it.
        self._step_supports_amp_scaling = all(
            getattr(optimizer, "_step_supports_amp_scaling", False) for optimizer in self._pair
        )
        self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all weights; closure: as in `torch.optim.Optimizer.step`."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for optimizer in self._pair:
            for name in ("grad_scale", "found_inf"):  # from the gradient scaler
                setattr(optimizer, name, getattr(self, name, None))
            optimizer.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the groups and the state of both."""
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()

    def _share(self) -> None:
        """Let both optimisers use the groups and the state of this one."""
        backbone, head = self._pair
        first = len(backbone.param_groups)
        backbone.param_groups = self.param_groups[:first]
        head.param_groups = self.param_groups[first:]
        backbone.state = head.state = self.state


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Load the momenta of a checkpoint's optimiser; initial rates, weight decay and groups remain
    those of the settings, and weights for which it has no momentum begin with 0.

    saved: the `state_dict` of an optimiser of the same kind, with the same weights in the same
    order; its groups may differ.
    """
    groups = optimizer.state_dict()["param_groups"]
    # The rate of the last step, until the schedule sets that of the next.
    for group, before in zip(groups, saved.get("param_groups", []), strict=False):
        group["lr"] = before["lr"]
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    _begin_momenta(optimizer)


def build_scaler(
    device: torch.device, amp_dtype: torch.dtype | None, group: dist.ProcessGroup | None = None
) -> torch.amp.GradScaler:
    """The loss scaling that keeps fp16 gradients from underflow; disabled for other dtypes, as
    bf16 has float32's range.

    group: processes with different shards of the head, which must all skip the same steps.
    """
    enabled = amp_dtype == torch.float16
    if group is None:
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return _CommonScaler(device.type, enabled=enabled, group=group)


class _CommonScaler(torch.amp.GradScaler):
    """A gradient scaler with which the processes of a group skip the same steps."""

    def __init__(self, device: str, enabled: bool, group: dist.ProcessGroup) -> None:
        super().__init__(device, enabled=enabled)
        self._group = group

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the scale; a gradient of any process may be infinite."""
        super().unscale_(optimizer)
        if self.is_enabled():
            for found_inf in self._found_inf_per_device(optimizer).values():
                # Not their sum, as in PyTorch's ShardedGradScaler: fused optimisers skip a step
                # only if it is exactly 1.
                dist.all_reduce(found_inf, dist.ReduceOp.MAX, group=self._group)


def clip_gradients(
    optimizer: Optimizer,
    max_norm: float,
    shard: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Scale all gradients down so that their common L2 norm is at most `max_norm`.

    shard: the head's weight, of which each process of `group` has different rows; all other
    weights are replicated. Returns the norm before clipping, a scalar.
    """
    with_gradient = [p for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    if group is None:
        norm = nn.utils.get_total_norm([p.grad for p in with_gradient])
    else:
        replicated = nn.utils.get_total_norm([p.grad for p in with_gradient if p is not shard])
        squares = shard.grad.square().sum()
        dist.all_reduce(squares, group=group)
        # A norm of no gradients is a 0 on the CPU, and is not moved: that waits for the device.
        norm = (replicated**2 + squares).sqrt()
    nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
