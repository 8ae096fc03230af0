"""A random sample of the classes for each step, for heads with very many classes.

Partial FC, https://arxiv.org/abs/2203.15565: the softmax of a step runs over the classes that are
in the batch and a random share of the others. Only their weights have a gradient and
change: the others keep their weight and momentum, without weight decay, until they are drawn
again (as in the paper's own implementation). AdamW's bias correction counts all steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn


def sample_size(num_classes: int, rate: float, images: int) -> int:
    """k = rate·C, but no fewer than the images (or C), so that the classes of all images
    certainly fit, without waiting for the device to count them."""
    return min(num_classes, max(round(rate * num_classes), images))


def sample_classes(num_classes: int, rate: float, labels: Tensor, seed: tuple[int, ...]) -> Tensor:
    """All classes of the labels and random others: increasing int64 k, see `sample_size`.

    labels: N of 0..C-1, or -1 if another process has the class. seed: integers of at least 0,
    on which the draw depends.
    """
    generator = torch.Generator(labels.device)
    generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
    # One random number for each class; the k highest are taken, and the labels have the highest.
    # The last number is for labels of other processes.
    order = torch.rand(num_classes + 1, generator=generator, device=labels.device)
    # Assigned by an index, the number would be copied to the device, which waits for it.
    order.index_fill_(0, torch.where(labels < 0, num_classes, labels), 2.0)
    count = sample_size(num_classes, rate, len(labels))
    return order[:num_classes].topk(count, sorted=False).indices.sort().values


class ClassSample:
    """The classes of a step and a copy of their weights, which is trained instead of the table's
    rows.

    table: the C·K × D parameter. classes: int64 k, increasing indices. weight: (k·K)×D.
    """

    def __init__(self, table: nn.Parameter, classes: Tensor, sub_centers: int) -> None:
        self.classes = classes
        centers = torch.arange(sub_centers, device=classes.device)
        self._rows = (classes[:, None] * sub_centers + centers).flatten()  # k·K
        self._table = table
        self.weight = nn.Parameter(self._read(table))

    def indices_of(self, labels: Tensor) -> Tensor:
        """Indices in `classes` of labels N, each of which must be among them; -1 stays -1."""
        return torch.where(labels < 0, -1, torch.searchsorted(self.classes, labels))

    @contextmanager
    def swapped_in(self, optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
        """Give the optimizer `weight` instead of the table, and the sampled rows of its state;
        after the block, write both back."""
        (group,) = (g for g in optimizer.param_groups if any(p is self._table for p in g["params"]))
        index = next(i for i, p in enumerate(group["params"]) if p is self._table)
        tables = optimizer.state.pop(self._table, {})
        group["params"][index] = self.weight
        if tables:
            optimizer.state[self.weight] = {
                key: self._read(value) if self._is_table(value) else value
                for key, value in tables.items()
            }
        yield self.weight
        group["params"][index] = self._table
        for key, value in optimizer.state.pop(self.weight, {}).items():
            if not isinstance(value, Tensor) or value.shape != self.weight.shape:
                tables[key] = value
                continue
            if key not in tables:  # a whole table of the size of the weight's
                # Rows that were never drawn have a state of 0, with which SGD and AdamW begin, too.
                tables[key] = torch.zeros_like(self._table)
            self._write(tables[key], value)
        if tables:
            optimizer.state[self._table] = tables
        self._write(self._table, self.weight)

    def _read(self, table: Tensor) -> Tensor:
        """A copy of the sampled rows of a table of C·K rows."""
        return table.detach().index_select(0, self._rows)

    def _write(self, table: Tensor, rows: Tensor) -> None:
        """Write the sampled rows into a table."""
        table.detach().index_copy_(0, self._rows, rows.detach())

    def _is_table(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.shape == self._table.shape
