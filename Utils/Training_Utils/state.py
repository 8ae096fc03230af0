"""Everything that changes while a run trains: built from the settings, saved, and put back.

The random generators that training draws from.

Draws that belong to images, such as mirroring, are made for the whole batch, alike in each process.
What else is random, such as dropout, comes from each process's own generators.

An exponential moving average of a network's weights, which often judges better than the last
weights, above all before the learning rate has fallen.

After update n, average ← d·average + (1 - d)·weights with d = min(decay, (1 + n) / (10 + n)), as
TensorFlow's ExponentialMovingAverage does: so the start, where weights are still random, weighs
little in a short run too.

BatchNorm's running means and variances are averaged in the same way: the network with averaged
weights has other activations than the one that trains, whose statistics would not fit it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from Backbone import describe_backbone
from Config import Config
from Head import build_head
from Utils.processes import ALONE, Processes
from Utils.run_folder import FORMAT
from Utils.Training_Utils.checkpoints.sharded import Tables, fit_tables, take_out
from Utils.Training_Utils.fine_tuning import starting_backbone, take_class_weights
from Utils.Training_Utils.networks import splits_classes
from Utils.Training_Utils.optimization import (
    Schedule,
    build_optimizer,
    build_scaler,
    restore_optimizer,
)


@dataclass
class Best:
    """The best accuracy of a test set, and the iteration in which it was reached."""

    accuracy: float = 0.0
    iteration: int = 0


@dataclass
class TrainingState:
    """Networks, optimiser and position of a run.

    epoch: finished epochs. batch: finished batches of the epoch under way. iteration: finished
    iterations of the whole run. best: by test set, and "mean" over the sets.
    flip_generator: on the device; decides which images are mirrored. average: of the backbone's
    weights, where `ema_decay` asks for it. start: for the log, one string a line, what weights the
    run began with.
    """

    backbone: nn.Module
    head: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    flip_generator: torch.Generator
    average: WeightAverage | None = None
    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    best: dict[str, Best] = field(default_factory=dict)
    start: list[str] = field(default_factory=list)

    @property
    def result(self) -> nn.Module:
        """The backbone that the run comes to: with averaged weights where there are any."""
        return self.averaged or self.backbone

    @property
    def averaged(self) -> nn.Module | None:
        """The backbone with averaged weights; None where there are none."""
        return self.average.backbone if self.average else None

    def checkpoint(
        self, config: Config, num_images: int, processes: Processes
    ) -> tuple[dict[str, Any], Tables]:
        """Everything as tensors and plain values, for `torch.save`; and the class tables, which
        are taken out of it. Called by all processes together."""
        averaged = {"averaged": self.average.state_dict()} if self.average else {}
        state = {
            "format": FORMAT,
            "settings": config.to_dict(),
            "num_classes": self.head.num_classes,
            "num_images": num_images,
            "architecture": describe_backbone(self.backbone),
            "backbone": self.backbone.state_dict(),
            **averaged,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(self.flip_generator, processes),
            "position": {"epoch": self.epoch, "batch": self.batch, "iteration": self.iteration},
            "best": {name: vars(best).copy() for name, best in self.best.items()},
        }
        return state, take_out(state, self.head, self.optimizer)

    def is_finite(self) -> bool:
        """Whether every weight and statistic is a number; waits for the device."""
        networks = (self.backbone, self.head)
        tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
        return bool(torch.stack([tensor.isfinite().all() for tensor in tensors]).all())

    def restore(self, checkpoint: dict[str, Any], config: Config, processes: Processes) -> None:
        """The inverse of `checkpoint`, for the same network and number of classes, and any number
        of processes, which call this together.

        Where the settings of the optimiser are others than the run's, today's hold from here.
        """
        fit_tables(checkpoint, self.head, self.optimizer, processes.group)
        self.backbone.load_state_dict(checkpoint["backbone"])
        if self.average and "averaged" in checkpoint:
            self.average.load_state_dict(checkpoint["averaged"])
        elif self.average:
            self.average.start_from(self.backbone)
        self.head.load_state_dict(checkpoint["head"])
        restore_optimizer(self.optimizer, checkpoint["optimizer"])
        if self.scaler.is_enabled() and checkpoint["scaler"]:
            self.scaler.load_state_dict(checkpoint["scaler"])
        iteration = checkpoint["position"]["iteration"]
        set_random_states(
            checkpoint["random"], self.flip_generator, processes, config.seed, iteration
        )
        self.epoch = checkpoint["position"]["epoch"]
        self.batch = checkpoint["position"]["batch"]
        self.iteration = iteration
        self.best = {name: Best(**best) for name, best in checkpoint["best"].items()}


def build_state(
    config: Config,
    num_classes: int,
    batches_per_epoch: int,
    device: torch.device,
    amp_dtype: torch.dtype | None,
    saved: dict[str, Any] | None = None,
    processes: Processes = ALONE,
) -> TrainingState:
    """The networks that a run begins with, on the device, with their optimiser.

    saved: the checkpoint that is to be restored, which says what network it is. They are the same
    in all processes, and for any number of them.
    """
    torch.manual_seed(config.seed)
    backbone, class_weights, note = starting_backbone(config, saved)
    head = build_head(
        config.margin,
        config.feature_dim,
        num_classes,
        config.scale_size,
        config.margin_size,
        processes.device_group if splits_classes(config, num_classes, processes) else None,
        easy_margin=config.easy_margin,
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        sample_rate=config.sample_rate,
        sample_seed=config.seed,
        combined_margin=config.combined_margin,
        sub_centers=config.sub_centers,
    )
    start = [note, take_class_weights(head, class_weights)] if note else []
    backbone = backbone.to(device, memory_format=torch.channels_last)
    head = head.to(device)
    seed_process(processes, config.seed)
    return TrainingState(
        backbone=backbone,
        head=head,
        optimizer=build_optimizer(backbone, head, config, device),
        schedule=Schedule.from_config(config, batches_per_epoch),
        scaler=build_scaler(device, amp_dtype, head.group),
        flip_generator=torch.Generator(device).manual_seed(config.seed),
        average=WeightAverage(backbone, config.ema_decay) if config.ema_decay else None,
        start=start,
    )


def random_states(generator: torch.Generator, processes: Processes) -> dict[str, Any]:
    """The states of all generators; called by all processes together. The first one's are whole.

    generator: on the device, the one for images.
    """
    alone = processes.world_size == 1
    device = generator.device
    cuda = []
    if torch.cuda.is_available() and (alone or device.type == "cuda"):
        cuda = torch.cuda.get_rng_state_all() if alone else [torch.cuda.get_rng_state(device)]
    own = {"cpu": torch.get_rng_state(), "cuda": cuda}
    return {"flip": generator.get_state(), **own, "others": processes.collect(own)[1:]}


def set_random_states(
    state: dict[str, Any],
    generator: torch.Generator,
    processes: Processes,
    seed: int,
    iteration: int,
) -> None:
    """The inverse of `random_states`, as far as this machine has the same devices; a process that
    was not there then begins with generators of its own."""
    if state["flip"].shape == generator.get_state().shape:  # else: another kind of device
        generator.set_state(state["flip"])
    own = [state, *state.get("others", [])][processes.rank :][:1]
    if not own:
        seed_process(processes, seed, iteration)
        return
    torch.set_rng_state(own[0]["cpu"])
    cuda = own[0]["cuda"]
    if len(cuda) == 1 and generator.device.type == "cuda":
        torch.cuda.set_rng_state(cuda[0], generator.device)
    elif cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def seed_process(processes: Processes, seed: int, iteration: int = 0) -> None:
    """Let the global generators of this process differ from those of the others; the first one's
    stay as they are, as they are without others."""
    if not processes.is_main:
        words = np.random.SeedSequence((seed, iteration, processes.rank)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


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
