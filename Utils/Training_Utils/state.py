"""Everything that changes while a run trains: built from the settings, saved, and put back."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from Backbone import describe_backbone
from Config import Config
from Head import build_head
from Utils.processes import ALONE, Processes
from Utils.Training_Utils.checkpoint import FORMAT
from Utils.Training_Utils.class_tables import Tables, fit_tables, take_out
from Utils.Training_Utils.fine_tuning import starting_backbone, take_class_weights
from Utils.Training_Utils.networks import splits_classes
from Utils.Training_Utils.optimization import build_optimizer, build_scaler, restore_optimizer
from Utils.Training_Utils.random_state import random_states, seed_process, set_random_states
from Utils.Training_Utils.schedule import Schedule
from Utils.Training_Utils.weight_average import WeightAverage


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
        config.easy_margin,
        config.label_smoothing,
        config.focal_gamma,
        processes.tensors if splits_classes(config, num_classes, processes) else None,
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
