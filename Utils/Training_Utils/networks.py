"""How a training step calls the backbone and the head: in one process, over GPUs, or with DDP.

Under torchrun each process has the whole backbone, in DistributedDataParallel, which averages its
gradients over the processes. The head is either replicated in the same way, or its classes are
split over the processes.

BatchNorm's running statistics are those of each process's own images, unless `sync_batchnorm`
computes them over all processes. The statistics of rank 0 are the run's: `broadcast_statistics`
gives them to the other processes before the test sets are evaluated, and checkpoints hold them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from Config import Config, ConfigError
from Head.classifier import HeadLoss, MarginHead
from Utils.devices import spread_over_gpus
from Utils.errors import RunError, first_line
from Utils.processes import Processes
from Utils.Training_Utils.distillation.loss import Distillation

# With this many classes the class weights are ten times a MobileFaceNet and half a ResNet50:
# averaging their gradient costs more than everything else that a step sends, while a head with
# split classes sends only embeddings.
SHARDED_FROM = 20_000  # classes

# Compiling takes a minute or two, and saves 12 to 29 ms an iteration (benchmarks/RESULTS.md).
COMPILED_FROM = 5_000  # iterations

_COMPRESSION = {"fp16": fp16_compress_hook, "bf16": bf16_compress_hook}
_C_COMPILERS = ("gcc", "clang")  # for Triton, on GPUs
_CPP_COMPILERS = ("g++", "clang++")


def splits_classes(config: Config, num_classes: int, processes: Processes) -> bool:
    """Whether the head's classes are split over the processes, as `head_parallel` decides."""
    if processes.world_size == 1 or config.head_parallel == "replicated":
        return False
    # Each process samples from the classes that it has, so a replicated head can't be sampled:
    # the processes would average gradients of different classes.
    wanted = config.head_parallel == "sharded" or config.sample_rate < 1
    return wanted or num_classes >= SHARDED_FROM


class Networks:
    """The backbone and the head's loss, wrapped for the run's devices and processes.

    backbone, head: on `device`, with equal weights in all processes; a head whose classes are
    split has its `group`. amp_dtype: the backbone's dtype under autocast; None: float32.
    iterations: of the whole run, for `compiles`. where: a line for the log about devices and
    processes.

    loss: `head.loss`, of embeddings N×D with labels N; in DDP where the head is replicated.
    distillation: the loss of embeddings against a teacher's, N×T; in DDP where it has weights.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: MarginHead,
        config: Config,
        device: torch.device,
        processes: Processes,
        amp_dtype: torch.dtype | None = None,
        iterations: int = 0,
        distillation: Distillation | None = None,
    ) -> None:
        head.method.micro_batches = config.accumulate_steps
        if config.activation_checkpointing:
            if not hasattr(backbone, "recompute"):
                why = f"the network {config.backbone} has no blocks that could be computed again."
                raise ConfigError("activation_checkpointing", True, why)
            backbone.recompute = True
        self._plain = _Autocast(backbone, device, amp_dtype)
        self._group = processes.device_group
        self._replicated: list[DistributedDataParallel] = []
        self._backbone: nn.Module = self._plain
        self.loss: Callable[[Tensor, Tensor], HeadLoss] = head.loss
        self.distillation: Callable[[Tensor, Tensor], Tensor] | None = distillation
        if processes.world_size == 1:
            self._backbone, self.where = spread_over_gpus(self._plain, config, device)
        else:
            self._distribute(head, config, device, processes)
            if distillation and distillation.projection is not None:
                self.distillation = self._replicate(distillation, config, device)
        self._eager = self._backbone
        self._may_fail = False  # without ending the run
        if compiles(config, device, processes, iterations):
            # Around DDP, so that its buckets are exchanged during the backward pass. Gradients in
            # a CUDA graph's memory can't be summed over micro-batches.
            graphs = processes.world_size == config.accumulate_steps == 1
            self._backbone = compiled(self._backbone, device, graphs)
            self._may_fail = config.compile is None  # nobody has asked for it
            self.where += ", compiled"

    def embed(self, pixels: Tensor) -> Tensor:
        """Embeddings N×D of float32 pixels N×3×H×W, not normalised."""
        # DDP refuses a network without gradients, such as a frozen backbone.
        trains = any(parameter.requires_grad for parameter in self._plain.parameters())
        if not trains:
            return self._plain(pixels)
        if not self._may_fail:
            return self._backbone(pixels)
        self._may_fail = False
        try:
            return self._backbone(pixels)
        except torch._dynamo.exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", error)
            warnings.warn(f"not compiled, as that failed: {first_line(cause)}", stacklevel=2)
            self._backbone = self._eager
            return self._backbone(pixels)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """As DDP's: gradients computed in here are summed in this process, and averaged over the
        processes in the next backward pass outside."""
        with ExitStack() as stack:
            for network in self._replicated:
                stack.enter_context(network.no_sync())
            yield

    def broadcast_statistics(self, averaged: nn.Module | None) -> None:
        """Copy rank 0's BatchNorm statistics to all processes, which must all call this.

        averaged: the backbone with averaged weights, whose statistics are copied as well.
        """
        if self._group is not None:
            averaged_buffers = averaged.buffers() if averaged else ()
            for buffer in (*self._plain.buffers(), *averaged_buffers):
                dist.broadcast(buffer, group=self._group, group_src=0)

    def _distribute(
        self, head: MarginHead, config: Config, device: torch.device, processes: Processes
    ) -> None:
        """Wrap the backbone, and the head unless its classes are split, in DDP."""
        if config.sync_batchnorm:
            nn.SyncBatchNorm.convert_sync_batchnorm(self._plain, self._group)
        self._backbone = self._replicate(self._plain, config, device)
        if head.group is None:
            head.method.group = self._group  # its running statistics are of all images
            self.loss = self._replicate(_Loss(head), config, device)
        kind = "a copy of the head in each" if head.group is None else "its classes split over them"
        self.where = f"training in {processes.world_size} processes, this one on {device}, {kind}"

    def _replicate(self, network: nn.Module, config: Config, device: torch.device) -> nn.Module:
        with warnings.catch_warnings():
            # About `broadcast_buffers`, which the newest PyTorch has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = DistributedDataParallel(
                network,
                device_ids=[device.index] if device.type == "cuda" else None,
                process_group=self._group,
                gradient_as_bucket_view=True,
                # Running statistics do not change a step; `broadcast_statistics` copies them.
                broadcast_buffers=False,
            )
        if config.ddp_compression != "none":
            wrapped.register_comm_hook(self._group, _COMPRESSION[config.ddp_compression])
        self._replicated.append(wrapped)
        return wrapped


class _Autocast(nn.Module):
    """A backbone that computes in `dtype` under autocast; None: as it is.

    It enters autocast itself, because DataParallel calls replicas in threads of their own, which
    inherit whether autocast is on but not its dtype.
    """

    def __init__(
        self, backbone: nn.Module, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._device_type, self._dtype = device.type, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype is not None):
            return self.backbone(pixels)


class _Loss(nn.Module):
    """A head's loss as a module's forward, which is what DDP can wrap."""

    def __init__(self, head: MarginHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        return self.head.loss(embeddings, labels)


def compiles(config: Config, device: torch.device, processes: Processes, iterations: int) -> bool:
    """Whether a run of so many iterations compiles its backbone.

    If `compile` leaves it open: in one process on a GPU, where it pays and can be done.
    iterations: of the whole run, not those that are left, so that a resumed run decides as before:
    compiled code rounds differently.
    """
    if config.compile is not None:
        return config.compile
    pays = device.type == "cuda" and iterations >= COMPILED_FROM and processes.world_size == 1
    other = config.use_multi_gpus or config.deterministic or config.activation_checkpointing
    return pays and not (other or lacks_compiler(device))


def compiled(network: nn.Module, device: torch.device, graphs: bool = False) -> nn.Module:
    """`torch.compile` of the network, which compiles at its first call; it shares the weights.

    graphs: on a GPU, replay its operations as CUDA graphs, which saves the time to launch each.
    Raises RunError if the machine lacks the compiler, before anything is trained.
    """
    if lacking := lacks_compiler(device):
        raise RunError(f"compile is on, but there is {lacking}; install it, or use --no-compile.")
    mode = "reduce-overhead" if graphs and device.type == "cuda" else "default"
    # All batches of a run have one size: code for any size would be slower.
    return torch.compile(network, dynamic=False, mode=mode)


def lacks_compiler(device: torch.device) -> str:
    """What `torch.compile` needs for a device and does not find; "" if it finds everything."""
    on_cpu = device.type == "cpu"
    if not on_cpu and importlib.util.find_spec("triton") is None:
        return "no package triton, which PyTorch's builds for CUDA on Linux come with"
    given = os.environ.get("CXX" if on_cpu else "CC")
    names = (given,) if given else _CPP_COMPILERS if on_cpu else _C_COMPILERS
    if any(map(shutil.which, names)):
        return ""
    return f"no {'C++' if on_cpu else 'C'} compiler ({' or '.join(names)})"
