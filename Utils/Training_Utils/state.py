"""Everything that changes while a run trains: networks, optimiser, position, random states.

`TrainingState` saves itself into a checkpoint and restores itself from one; `start.py` builds it.

The random numbers of augmentation are drawn for the whole batch, and are equal in all processes.
Everything else, such as dropout, uses each process's own generators.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from Backbone import describe_backbone
from Config import Config
from Head.classifier import MarginHead
from Utils.processes import Processes
from Utils.run_folder import FORMAT
from Utils.Training_Utils.checkpoints.sharded import (
    TABLES,
    WEIGHT,
    class_tables,
    describe_tables,
    fill_rows,
    index_in,
    put_tables,
    whole_table,
)
from Utils.Training_Utils.distillation.loss import Distillation
from Utils.Training_Utils.optimization import Schedule, restore_optimizer
from Utils.Training_Utils.reports.means import Means


@dataclass
class Best:
    """The best accuracy of a test set, and the iteration in which it was reached."""

    accuracy: float = 0.0
    iteration: int = 0


@dataclass
class TrainingState:
    """Networks, optimiser and position of a run.

    epoch: finished epochs. batch: finished batches of the current epoch. iteration: finished
    iterations of the whole run. tested: the iteration of the last test. best: by test set, and
    "mean" over the sets. means: of the figures since the last line of the log.
    flip_generator: on the device; decides which images are mirrored. average: of the backbone's
    weights, where `ema_decay` asks for it. distillation: the loss against a teacher, where there is
    one. start: lines for the log about the weights that the run began with.
    """

    backbone: nn.Module
    head: MarginHead
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    flip_generator: torch.Generator
    average: WeightAverage | None = None
    distillation: Distillation | None = None
    epoch: int = 0
    batch: int = 0
    iteration: int = 0
    tested: int = 0
    best: dict[str, Best] = field(default_factory=dict)
    means: Means = field(default_factory=Means)
    start: list[str] = field(default_factory=list)

    @property
    def result(self) -> nn.Module:
        """The backbone to use after training: with averaged weights if there are any."""
        return self.averaged or self.backbone

    @property
    def averaged(self) -> nn.Module | None:
        """The backbone with averaged weights; None if there are none."""
        return self.average.backbone if self.average else None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.head.weight.device

    def advance(self, batches_per_epoch: int) -> None:
        """Count an iteration, and with an epoch's last one the epoch."""
        self.iteration += 1
        self.batch += 1
        if self.batch == batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0

    def lacks_test(self, config: Config) -> bool:
        """Whether a run that continues here begins with a test: one was due, or it is the end."""
        due = self.iteration % config.test_freq == 0 and self.tested < self.iteration
        return due or self.epoch == config.total_epoch

    def note_best(self, accuracies: dict[str, float]) -> set[str]:
        """Remember accuracies, by name, that are better than all before; returns their names."""
        better = {
            name: Best(accuracy, self.iteration)
            for name, accuracy in accuracies.items()
            if accuracy > self.best.setdefault(name, Best()).accuracy
        }
        self.best.update(better)
        return set(better)

    def is_finite(self) -> bool:
        """Whether every weight and statistic, every average of them and every value of the
        optimiser is finite; waits for the device, once."""
        networks = filter(None, (self.backbone, self.head, self.distillation, self.averaged))
        tensors = [t for n in networks for t in (*n.parameters(), *n.buffers())]
        for values in self.optimizer.state.values():
            tensors += [value for value in values.values() if isinstance(value, Tensor)]
        tensors = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
        # NaN becomes both extremes. A table of bools, one a weight, may not fit beside the weights.
        extremes = [extreme.double() for tensor in tensors for extreme in tensor.aminmax()]
        return bool(torch.stack(extremes).isfinite().all())

    def checkpoint(
        self, config: Config, num_images: int, processes: Processes, with_tables: bool = True
    ) -> dict[str, Any]:
        """Everything as tensors and plain values, for `torch.save`. All processes must call this.

        with_tables: whether to include the class tables, as in a file; in a folder they have their
        own files.
        """
        extra = {"averaged": self.average.state_dict()} if self.average else {}
        if self.distillation:
            extra["distillation"] = self.distillation.saved()
        state = {
            "format": FORMAT,
            "settings": config.to_dict(),
            "num_classes": self.head.num_classes,
            "num_images": num_images,
            "architecture": describe_backbone(self.backbone),
            "backbone": self.backbone.state_dict(),
            **extra,
            "head": self.head.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random_states(self.flip_generator, processes),
            "position": {"epoch": self.epoch, "batch": self.batch, "iteration": self.iteration},
            "tested": self.tested,
            "means": self.means.checkpoint(processes),
            "best": {name: vars(best).copy() for name, best in self.best.items()},
        }
        if with_tables and self.head.group is None:
            return state
        tables = class_tables(self.head, self.optimizer)
        index = index_in(self.optimizer, self.head)
        of_weight = state["optimizer"]["state"].get(index, {})
        of_weight = {name: value for name, value in of_weight.items() if name not in tables}
        if index in state["optimizer"]["state"]:  # AdamW has none before its first step
            state["optimizer"]["state"][index] = of_weight
        if with_tables:
            whole = {name: whole_table(self.head, rows) for name, rows in tables.items()}
            put_tables(state, of_weight, whole)
        else:
            del state["head"][WEIGHT]
            state[TABLES] = describe_tables(self.head, self.optimizer)
        return state

    def restore(self, saved: dict[str, Any], config: Config, processes: Processes) -> None:
        """The inverse of `checkpoint`, for the same network and number of classes, and for any
        number of processes, which must all call this.

        saved: from `read_run`; it is changed in place. If the settings of the optimiser have
        changed since then, the new ones are used.
        """
        fill_rows(saved, self.head, self.optimizer, processes.group)
        self.backbone.load_state_dict(saved["backbone"])
        if self.average and "averaged" in saved:
            self.average.load_state_dict(saved["averaged"])
        elif self.average:
            self.average.start_from(self.backbone)
        if self.distillation and "distillation" in saved:
            self.distillation.restore(saved["distillation"])
        self.head.load_state_dict(saved["head"])
        restore_optimizer(self.optimizer, saved["optimizer"])
        if self.scaler.is_enabled() and saved["scaler"]:
            self.scaler.load_state_dict(saved["scaler"])
        self.epoch = saved["position"]["epoch"]
        self.batch = saved["position"]["batch"]
        self.iteration = saved["position"]["iteration"]
        self.tested = saved.get("tested", self.iteration)  # once, checkpoints had neither
        self.means.restore(saved.get("means", []), processes)
        self.best = {name: Best(**best) for name, best in saved["best"].items()}
        set_random_states(
            saved["random"], self.flip_generator, processes, config.seed, self.iteration
        )


def set_frozen(backbone: nn.Module, frozen: bool) -> None:
    """Freeze a backbone, or let it train.

    Frozen: without gradients, so that the optimiser skips its weights, weight decay included; and
    in evaluation mode, so that BatchNorm's statistics stay and dropout is off.
    """
    backbone.requires_grad_(not frozen)
    backbone.train(not frozen)


def random_states(generator: torch.Generator, processes: Processes) -> dict[str, Any]:
    """The states of all generators, complete in the main process. All processes must call this.

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
    did not exist when they were saved gets a new seed."""
    if state["flip"].shape == generator.get_state().shape:  # else: another kind of device
        generator.set_state(state["flip"])
    own = [state, *state.get("others", [])][processes.rank :][:1]
    if not own:
        seed_process(processes, seed, iteration)
        return
    if own[0]["cpu"].shape == torch.get_rng_state().shape:  # else: another version of PyTorch
        torch.set_rng_state(own[0]["cpu"])
    cuda = own[0]["cuda"]
    if len(cuda) == 1 and generator.device.type == "cuda":
        torch.cuda.set_rng_state(cuda[0], generator.device)
    elif cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def seed_process(processes: Processes, seed: int, iteration: int = 0) -> None:
    """Seed this process's global generators differently from the others'; the main process keeps
    its own, so that it draws what a single process would."""
    if not processes.is_main:
        words = np.random.SeedSequence((seed, iteration, processes.rank)).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))


class WeightAverage:
    """An exponential moving average of a backbone's weights, on its device, which often scores
    better than the last weights, above all before the learning rate has fallen.

    After update n, average ← d·average + (1 - d)·weights with d = min(decay, (1 + n) / (10 + n)),
    as TensorFlow's ExponentialMovingAverage: so the first weights, which are still random, have
    little influence even in a short run. Update 0 takes the weights as they are. BatchNorm's
    running statistics are averaged in the same way, because the activations of the averaged weights
    differ from those of the trained weights.

    decay: 0 < decay < 1; the average spans about 1 / (1 - decay) iterations. updates: done so far.
    backbone: the network with averaged weights, in evaluation mode.
    """

    def __init__(self, backbone: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, backbone: nn.Module) -> None:
        """Add the weights of an iteration; does not wait for the device."""
        n = self.updates
        decay = min(self.decay, (1 + n) / (10 + n)) if n else 0.0
        floats, counters = [], []  # the counters are BatchNorm's, of batches
        for pair in zip(_tensors(self.backbone), _tensors(backbone), strict=True):
            (floats if pair[0].is_floating_point() else counters).append(pair)
        torch._foreach_lerp_(*zip(*floats, strict=True), 1 - decay)
        if counters:
            torch._foreach_copy_(*zip(*counters, strict=True))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates, for a checkpoint."""
        return {"backbone": self.backbone.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.backbone.load_state_dict(state["backbone"])
        self.updates = int(state["updates"])

    def start_from(self, backbone: nn.Module) -> None:
        """Begin with a backbone's weights, where a run is resumed that had no average."""
        self.backbone.load_state_dict(backbone.state_dict())
        self.updates = 0


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
