"""Training of a network without batch statistics, which comes out the same in any number of
processes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from Backbone import BACKBONES, Preprocessing
from Config import Config
from Head import build_head
from Utils.Datasets_Utils import open_training_set
from Utils.processes import Processes
from Utils.Training_Utils import start
from Utils.Training_Utils.trainer import Trainer

STEPS = 20
SIZE, DIM, HIDDEN = 32, 8, 24


class Plain(nn.Module):
    """Two linear layers."""

    def __init__(self, feature_dim: int, input_size: tuple[int, int]) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.preprocessing = Preprocessing(input_size=input_size)
        self.first = nn.Linear(3 * SIZE * SIZE, HIDDEN)
        self.activation = nn.PReLU()
        self.second = nn.Linear(HIDDEN, feature_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.flatten(1).to(self.first.weight.dtype)
        return self.second(self.activation(self.first(x)))


def plain_config(train: Path, train_list: Path, save_dir: Path, **changes: Any) -> Config:
    """20 steps of 48 images, for a list of 96 32×32 images."""
    config = Config(
        train_dataset="Tiny",
        train_dataset_path=str(train),
        train_file_list=str(train_list),
        **{"input_size": (SIZE, SIZE), "feature_dim": DIM, "batch_size": 48, "num_workers": 0},
        **{"backbone": "Plain", "initial_lr": 0.02, "total_epoch": 10, "milestones": (7,)},
        **{"log_freq": 1, "test_freq": 10**6, "save_freq": 10**6, "use_visdom": False},
        **{"device": "cpu", "save_dir": str(save_dir)},
    )
    return dataclasses.replace(config, **changes)


def train(
    group: dist.ProcessGroup | None, config: Config, dtype: torch.dtype
) -> tuple[list[float], str | None]:
    """The loss of each step, and the run's folder. dtype: of all weights."""
    processes = Processes()
    if group is not None:
        processes = Processes(group.rank(), group.size(), group, group)
    losses = []
    with (
        mock.patch.dict(BACKBONES, Plain=lambda **given: Plain(**given).to(dtype)),
        mock.patch(f"{start.__name__}.validate"),  # "Plain" is no word that the setting allows
        mock.patch(f"{start.__name__}.build_head", lambda *a, **k: build_head(*a, **k).to(dtype)),
    ):
        trainer = Trainer(config, processes)
        step = trainer.step

        def recorded(batch):
            result = step(batch)
            losses.append(processes.mean(result.loss.item()))
            return result

        trainer.step = recorded
        run = trainer.run().run
    return losses, run and str(run)


def train_all(
    group: dist.ProcessGroup | None, cases: list[tuple[Config, torch.dtype]]
) -> list[tuple[list[float], str | None]]:
    """`train` for each of several settings."""
    return [train(group, *case) for case in cases]


def plain_losses(config: Config) -> list[float]:
    """The losses by the formulas alone: all images at once, in float64."""
    data = open_training_set(config.train_dataset_path, config.train_file_list)
    images = torch.from_numpy(np.stack([image for image, _ in data])).permute(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in data])
    torch.manual_seed(config.seed)
    backbone = Plain(DIM, (SIZE, SIZE)).double()
    head = build_head(config.margin, DIM, data.num_classes)
    weight = nn.Parameter(head.weight.detach().double())
    optimizer = torch.optim.SGD(
        [*backbone.parameters(), weight], config.initial_lr, config.momentum,
        weight_decay=config.weight_decay, nesterov=True,
    )  # fmt: skip
    losses = []
    for epoch, rows, flip in _batches(config, len(data)):
        rate = config.initial_lr * 0.1 ** sum(epoch >= end for end in config.milestones)
        optimizer.param_groups[0]["lr"] = rate
        x = torch.where(flip[:, None, None, None], images[rows].flip(3), images[rows])
        embeddings = backbone((x.double() - 127.5) / 127.5)
        logits = _arcface_logits(embeddings, weight, labels[rows], config)
        loss = F.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _batches(config: Config, count: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    flips = torch.Generator().manual_seed(config.seed)
    for epoch in range(config.total_epoch):
        order = np.random.default_rng((config.seed, epoch)).permutation(count)
        for first in range(0, count, config.batch_size):
            rows = torch.from_numpy(order[first : first + config.batch_size])
            yield epoch, rows, torch.rand(len(rows), generator=flips) < 0.5


def _arcface_logits(embeddings: Tensor, weight: Tensor, labels: Tensor, config: Config) -> Tensor:
    cosines = F.linear(F.normalize(embeddings), F.normalize(weight))
    theta, m = torch.arccos(cosines.gather(1, labels[:, None])), config.margin_size
    straight_on = torch.cos(theta) - m * math.sin(m)
    moved = torch.where(theta < math.pi - m, torch.cos(theta + m), straight_on)
    return config.scale_size * cosines.scatter(1, labels[:, None], moved)
