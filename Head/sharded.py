"""A head whose classes are split over processes, for more classes than fit on one device.

This is the parallel acceleration in section 2.2 of https://arxiv.org/abs/1801.07698: each of W
processes has some of the classes, and receives the embeddings of all processes.
Logits are never exchanged, only embeddings, labels, and a few values for each image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed.device_mesh import DeviceMesh

from Head.classifier import HeadLoss, MarginHead
from Head.methods import HeadSettings, Method, gather_rows
from Head.sampling import sample_size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def class_range(num_classes: int, rank: int, world_size: int) -> range:
    """The classes of a process, split as by `torch.chunk`: the last processes have fewer or none.

    `DTensor`'s `Shard(0)` splits them in the same way, so that a checkpoint can be resharded for
    any number of processes.
    """
    size = -(-num_classes // world_size)
    first = min(rank * size, num_classes)
    return range(first, min(first + size, num_classes))


class ShardedHead(MarginHead):
    """`MarginHead` of which each process of the group has the class weights of `local_classes`.

    Each process calls `loss` with equally many images.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        method: Method,
        settings: HeadSettings,
        normalised: bool,
        group: dist.ProcessGroup,
    ) -> None:
        local_classes = class_range(num_classes, group.rank(), group.size())
        super().__init__(feature_dim, num_classes, method, settings, normalised, local_classes)
        self.group = group
        self._images_sampled_for = 0

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Raises RuntimeError: no process has all N×C logits."""
        raise RuntimeError("a head whose classes are split over processes has only a loss")

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The loss of the images of all processes: their mean, the same on each.

        embeddings, labels: of this process's images, as are `correct` and `nearest` of the
        result.

        The gradient of the embeddings is W times that of the loss, for W processes, because
        `DistributedDataParallel` divides the backbone's by W. The weight's is the loss's own.
        Raises ValueError on the CPU if processes have different numbers of images. On a GPU this
        check would wait for the device, so the caller must make sure.
        """
        count = len(labels)
        every_label = self._gather_labels(labels)  # W·N
        embeddings = _Gather.apply(embeddings.to(self.weight.dtype), self.group)  # W·N × D
        result = super().loss(embeddings, every_label)
        own = slice(self.group.rank() * count, (self.group.rank() + 1) * count)
        return HeadLoss(result.loss, result.correct[own], result.nearest[own])

    def sample(self, labels: Tensor, step: int) -> None:
        """As `MarginHead.sample`; each process draws among its own classes."""
        if self.sample_rate < 1:
            self._images_sampled_for = len(labels) * self.group.size()
            super().sample(self._gather_labels(labels), step)

    def as_dtensor(self, rows: Tensor) -> DTensor:
        """C×KD view of rows (local classes)·K × D, the weight's or its optimizer state's, for
        `torch.distributed.checkpoint`, which fills it in place when it loads."""
        # Imported here: it takes a second, and only checkpoints of such heads need it.
        from torch.distributed.tensor import DTensor, Shard

        mesh = DeviceMesh.from_group(self.group, rows.device.type)
        width = self.sub_centers * rows.shape[1]
        by_class = rows.detach().view(len(self.local_classes), width)
        shape, stride = torch.Size((self.num_classes, width)), (width, 1)
        return DTensor.from_local(by_class, mesh, [Shard(0)], shape=shape, stride=stride)

    def _own_gradient(self, regulariser: Tensor) -> Tensor:
        share = len(regulariser) // self.group.size()
        image = torch.arange(len(regulariser), device=regulariser.device)
        is_own = image // share == self.group.rank()
        return torch.where(is_own, regulariser, regulariser.detach())

    def _local_labels(self, labels: Tensor) -> Tensor:
        elsewhere = (labels < self.local_classes.start) | (labels >= self.local_classes.stop)
        return (labels - self.local_classes.start).masked_fill_(elsewhere, -1)

    def _total_sampled(self) -> int:
        world_size, images = self.group.size(), self._images_sampled_for
        ranges = (class_range(self.num_classes, rank, world_size) for rank in range(world_size))
        return sum(sample_size(len(classes), self.sample_rate, images) for classes in ranges)

    def _gather_labels(self, labels: Tensor) -> Tensor:
        """The labels of all processes, W·N from N."""
        if labels.device.type == "cpu":
            counts = gather_rows(torch.tensor([len(labels)]), self.group).tolist()
            if len(set(counts)) > 1:
                raise ValueError(
                    f"the processes have {', '.join(map(str, counts))} images; a head whose "
                    f"classes are split over them needs equally many from each."
                )
        return gather_rows(labels, self.group)


class _Gather(torch.autograd.Function):
    """`gather_rows`, with W times the sum of all processes' gradients of these rows as gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gather_rows(rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        group = ctx.group
        rows = gradient.new_empty((len(gradient) // group.size(), *gradient.shape[1:]))
        chunks = list(gradient.contiguous().chunk(group.size()))
        dist.reduce_scatter(rows, chunks, group=group)
        return rows * group.size(), None
