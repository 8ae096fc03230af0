"""How a training step calls the networks of a run: alone, over several GPUs, in step with others.

Each process of a torchrun launch has the whole backbone, whose gradients are averaged. The head is
there whole as well, with its gradients averaged, or has a part of the classes in each process.

A backbone's running statistics are those of each process's own images, unless `sync_batchnorm` has
them counted over all. The first process's are the run's: the others take them over before the test
sets are judged, and they are what a checkpoint holds.

Compiling a network with torch.compile, and saying early where that can't be done.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from Config import Config
from Head.classifier import HeadLoss, MarginHead
from Utils.devices import spread_over_gpus
from Utils.errors import RunError
from Utils.processes import Processes

# From here on the class weights are more than a MobileFaceNet ten times over, and half a ResNet50:
# averaging their gradient costs more than everything else that a step sends, while a split head
# sends only embeddings.
SHARDED_FROM = 20_000  # classes

_COMPRESSION = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}


def splits_classes(config: Config, num_classes: int, processes: Processes) -> bool:
    """Whether each process has a part of the classes, as `head_parallel` says."""
    if processes.world_size == 1 or config.head_parallel == "replicated":
        return False
    # A sample of the classes is drawn from what each process has: there are no averages of it.
    wanted = config.head_parallel == "sharded" or config.sample_rate < 1
    return wanted or num_classes >= SHARDED_FROM


class Networks:
    """The backbone and the head's loss, as a step is to call them.

    backbone, head: on `device`, with weights that are the same in all processes; a head whose
    classes are split has its `group`. where: for the log.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: MarginHead,
        config: Config,
        device: torch.device,
        processes: Processes,
    ) -> None:
        head.method.parts = config.accumulate_steps
        self._plain = backbone
        self._tensors = processes.device_group
        self._together: list[DistributedDataParallel] = []
        self._backbone: nn.Module = backbone
        self._head_loss: nn.Module = _Loss(head)
        if processes.world_size == 1:
            self._backbone, self.where = spread_over_gpus(backbone, config, device)
        else:
            self._join(config, device, processes)
        if config.compile:
            self._backbone = compiled(self._backbone, device)
            self.where += ", compiled"

    def _join(self, config: Config, device: torch.device, processes: Processes) -> None:
        """Wrap what is averaged over the processes."""
        backbone, head = self._plain, self._head_loss.head
        if config.sync_batchnorm:
            nn.SyncBatchNorm.convert_sync_batchnorm(backbone, processes.device_group)
        self._backbone = self._in_step(backbone, config, device)
        if head.group is None:
            head.method.group = processes.device_group  # its running statistics are of all images
            self._head_loss = self._in_step(self._head_loss, config, device)
        kind = "a copy of the head in each" if head.group is None else "its classes split over them"
        self.where = f"training in {processes.world_size} processes, this one on {device}, {kind}"

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings N×D of pixels N×3×H×W."""
        learns = any(parameter.requires_grad for parameter in self._plain.parameters())
        return (self._backbone if learns else self._plain)(pixels)

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The head's loss of embeddings N×D with labels N: in each process of its own images, or,
        where the classes are split, of everybody's."""
        return self._head_loss(embeddings, labels)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """Gradients of what is computed in here are added up, and averaged with the next ones."""
        with ExitStack() as stack:
            for network in self._together:
                stack.enter_context(network.no_sync())
            yield

    def take_statistics(self, averaged: nn.Module | None) -> None:
        """Let running statistics be the first process's in all of them: those of the backbone, and
        of the one with its averaged weights."""
        if self._tensors is not None:
            averages = averaged.buffers() if averaged else ()
            for buffer in (*self._plain.buffers(), *averages):
                dist.broadcast(buffer, group=self._tensors, group_src=0)

    def _in_step(self, network: nn.Module, config: Config, device: torch.device) -> nn.Module:
        with warnings.catch_warnings():
            # Of `broadcast_buffers`, which has another name in the newest PyTorch.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                process_group=self._tensors,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # see above: running statistics do not change a step
            )
        if config.ddp_compression != "none":
            wrapped.register_comm_hook(self._tensors, _COMPRESSION[config.ddp_compression])
        self._together.append(wrapped)
        return wrapped


class _Loss(nn.Module):
    """A head's loss as a module's call, which is what can be wrapped."""

    def __init__(self, head: MarginHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        return self.head.loss(embeddings, labels)


_CPP_COMPILERS = ("g++", "clang++")


def compiled(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as one that is compiled when it is first called; it shares its weights.

    Raises RunError where the machine lacks what compiled code is made with.
    """
    if device.type == "cpu":
        named = os.environ.get("CXX")
        names = (named,) if named else _CPP_COMPILERS
        if not any(map(shutil.which, names)):
            raise RunError(
                f"compile is on, but there is no C++ compiler ({' or '.join(names)}); install one, "
                f"or leave --compile out."
            )
    elif importlib.util.find_spec("triton") is None:
        raise RunError(
            "compile is on, but the package triton, which PyTorch's builds for CUDA on Linux come "
            "with, is not installed; install it, or leave --compile out."
        )
    # All batches of a run have one size: code for any size would be slower.
    return torch.compile(network, dynamic=False)
