"""A head whose classes are split over processes, for more of them than fit on one device.

As model parallelism of the last layer in https://arxiv.org/abs/1801.07698, section 2.2 (parallel
acceleration): every process has some of the classes, and the embeddings of all processes. Logits
are never exchanged, only embeddings, labels, and a few numbers for each image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from Head.classifier import HeadLoss, MarginHead
from Head.methods import Method, gather_rows
from Head.sampling import sample_size


def class_range(num_classes: int, rank: int, processes: int) -> range:
    """The classes of a process: as `torch.chunk` splits them, the last processes' fewer or none.

    So they lie as `DTensor`'s `Shard(0)` has them, and a checkpoint can be split anew for any
    number of processes.
    """
    size = -(-num_classes // processes)
    first = min(rank * size, num_classes)
    return range(first, min(first + size, num_classes))


class ShardedHead(MarginHead):
    """`MarginHead` with the classes `here` of 0..C-1, and the others in the group's processes.

    `weight` has the rows of these classes only. Each process calls `loss` with as many images.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        scale: float | None,
        method: Method,
        sub_centers: int = 1,
        normalised: bool = True,
        *,
        group: dist.ProcessGroup,
    ) -> None:
        here = class_range(num_classes, group.rank(), group.size())
        super().__init__(feature_dim, num_classes, scale, method, sub_centers, normalised, here)
        self.group = group
        self._images_sampled_for = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """There are no N×C logits. Raises RuntimeError."""
        raise RuntimeError("a head whose classes are split over processes has only a loss")

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The loss of the images of all processes: their mean, the same on each.

        embeddings, labels: of this process's images, as are `correct` and `nearest` of the
        result.

        The gradient of the embeddings is W times that of the loss, for W processes, because
        `DistributedDataParallel` divides the backbone's by W. The weight's is the loss's own.
        Raises ValueError on the CPU where processes have different numbers of images. On a GPU the
        numbers would have to be waited for, so there the caller answers for them.
        """
        count = len(labels)
        of_all = self._of_all(labels)
        embeddings = _Gather.apply(embeddings.to(self.weight.dtype), self.group)
        result = super().loss(embeddings, of_all)
        own = slice(self.group.rank() * count, (self.group.rank() + 1) * count)
        return HeadLoss(result.loss, result.correct[own], result.nearest[own])

    def sample(self, labels: Tensor, step: int) -> None:
        """As `MarginHead.sample`; each process draws among its own classes."""
        if self.sample_rate < 1:
            self._images_sampled_for = len(labels) * self.group.size()
            super().sample(self._of_all(labels), step)

    def as_dtensor(self, rows: Tensor) -> DTensor:
        """C×KD view of rows (C here)·K × D, the weight's or its optimiser state's, for
        `torch.distributed.checkpoint`, which fills it in place when it loads."""
        mesh = DeviceMesh.from_group(self.group, rows.device.type)
        width = self.sub_centers * rows.shape[1]
        of_classes = rows.detach().view(len(self.local_classes), width)
        shape, stride = torch.Size((self.num_classes, width)), (width, 1)
        return DTensor.from_local(of_classes, mesh, [Shard(0)], shape=shape, stride=stride)

    def _counted_once(self, penalty: Tensor) -> Tensor:
        # Every process has all penalties, and each passes on the gradient of its own images.
        share = len(penalty) // self.group.size()
        image = torch.arange(len(penalty), device=penalty.device)
        return torch.where(image // share == self.group.rank(), penalty, penalty.detach())

    def _local_labels(self, labels: Tensor) -> Tensor:
        elsewhere = (labels < self.local_classes.start) | (labels >= self.local_classes.stop)
        return (labels - self.local_classes.start).masked_fill_(elsewhere, -1)

    def _total_sampled(self) -> int:
        processes, images = self.group.size(), self._images_sampled_for
        ranges = (class_range(self.num_classes, rank, processes) for rank in range(processes))
        return sum(sample_size(len(here), self.sample_rate, images) for here in ranges)

    def _of_all(self, labels: Tensor) -> Tensor:
        """The labels of all processes."""
        if labels.device.type == "cpu":
            self._check_equal(len(labels))
        return gather_rows(labels, self.group)

    def _check_equal(self, count: int) -> None:
        counts = gather_rows(torch.tensor([count]), self.group).tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"the processes have {', '.join(map(str, counts))} images; a head whose classes "
                f"are split over them needs as many from each."
            )


class _Gather(torch.autograd.Function):
    """`gather_rows` whose gradient is W times the sum of what each process has for these rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gather_rows(rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        group = ctx.group
        rows = gradient.new_empty((len(gradient) // group.size(), *gradient.shape[1:]))
        parts = list(gradient.contiguous().chunk(group.size()))
        dist.reduce_scatter(rows, parts, group=group)
        return rows * group.size(), None
