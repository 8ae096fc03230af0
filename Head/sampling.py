"""Sampling of classes, for heads with more of them than there is time or memory for.

Partial FC, https://arxiv.org/abs/2203.15565: the softmax of a step runs over the classes that are
in the batch and a random share of the others. Only their weights have a gradient, and only they
change: the others keep weight, momentum and all as they are, weight decay included, until they are
drawn again (as in the paper's own implementation). Bias correction of AdamW counts all steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


class ClassSample:
    """Classes of a step, and their weights, which may be trained in place of the table's.

    classes: int64 k, increasing, numbers in the table. weight: (k·K)×D.
    """

    def __init__(self, table: Tensor, classes: Tensor, sub_centers: int) -> None:
        self.classes = classes
        centers = torch.arange(sub_centers, device=classes.device)
        self._rows = (classes[:, None] * sub_centers + centers).flatten()
        self._table = table
        self.weight = nn.Parameter(self.rows_of(table))

    def numbers(self, labels: Tensor) -> Tensor:
        """Places of labels N in `classes`; -1 stays -1. Each must have been among the positives."""
        return torch.where(labels < 0, -1, torch.searchsorted(self.classes, labels))

    def rows_of(self, table: Tensor) -> Tensor:
        """The sampled rows of a table with a row for each of the weight's; a copy."""
        return table.detach().index_select(0, self._rows)

    def put_rows(self, table: Tensor, rows: Tensor) -> None:
        """The inverse of `rows_of`."""
        table.detach().index_copy_(0, self._rows, rows.detach())

    @contextmanager
    def swapped_in(self, optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
        """Gives `weight`, which the optimiser has in here, with its rows of the state."""
        (group,) = (g for g in optimizer.param_groups if any(p is self._table for p in g["params"]))
        place = next(i for i, p in enumerate(group["params"]) if p is self._table)
        tables = optimizer.state.pop(self._table, {})
        group["params"][place] = self.weight
        if tables:
            optimizer.state[self.weight] = {
                key: self.rows_of(value) if self._is_table(value) else value
                for key, value in tables.items()
            }
        yield self.weight
        group["params"][place] = self._table
        for key, value in optimizer.state.pop(self.weight, {}).items():
            if not isinstance(value, Tensor) or value.shape != self.weight.shape:
                tables[key] = value
                continue
            # Of a row that was never drawn: what SGD and AdamW begin with, too.
            self.put_rows(tables.setdefault(key, torch.zeros_like(self._table)), value)
        if tables:
            optimizer.state[self._table] = tables
        self.put_rows(self._table, self.weight)

    def _is_table(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.shape == self._table.shape


def sample_size(num_classes: int, rate: float, images: int) -> int:
    """k = rate·C, but no fewer than the images (or C), so that the classes of all images are sure
    to fit, and nobody has to wait for the device to count them."""
    return min(num_classes, max(round(rate * num_classes), images))


def sample_classes(num_classes: int, rate: float, labels: Tensor, seed: tuple[int, ...]) -> Tensor:
    """All classes of the labels and random others: increasing int64 k, see `sample_size`.

    labels: N of 0..C-1, or -1 where another process has the class. seed: whole numbers from 0 on,
    on which the draw depends.
    """
    generator = torch.Generator(labels.device)
    generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
    # The last one is for labels that are not here.
    order = torch.rand(num_classes + 1, generator=generator, device=labels.device)
    order[torch.where(labels < 0, num_classes, labels)] = 2.0
    count = sample_size(num_classes, rate, len(labels))
    return order[:num_classes].topk(count, sorted=False).indices.sort().values
