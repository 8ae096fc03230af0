"""Devices and the precision of their arithmetic, chosen from the settings."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from Config import Config, ConfigError
from Utils.processes import ALONE, Processes


def choose_device(config: Config, processes: Processes = ALONE) -> torch.device:
    """The device to train on, from `device` and, with `use_multi_gpus`, the first of `gpus`.

    With several processes, each takes the CUDA device whose index is its local rank. Raises
    ConfigError where a machine has more processes than devices.
    """
    if processes.world_size > 1:
        device, found = find_device(config.device), torch.cuda.device_count()
        if device.type == "cuda" and processes.local_rank >= found:
            raise ConfigError(
                "device",
                config.device,
                f"this machine shows {found} CUDA devices, too few for process "
                f"{processes.local_rank + 1} on it: start as many processes as devices.",
            )
        return torch.device("cuda", processes.local_rank) if device.type == "cuda" else device
    first = config.gpus[0] if config.use_multi_gpus and config.gpus else 0
    return find_device(config.device, first)


def share_device(config: Config, processes: Processes) -> torch.device:
    """The device to evaluate on. Several processes on CUDA take the devices in turn, unless
    `device` names one; they may be more than the devices.

    Raises ConfigError for a name that PyTorch does not know.
    """
    device = find_device(config.device)
    if processes.world_size > 1 and device.type == "cuda" and ":" not in config.device:
        return torch.device("cuda", processes.local_rank % torch.cuda.device_count())
    return device


def find_device(name: str, first: int = 0) -> torch.device:
    """The device that a `device` setting names; "cuda" without an index is device `first`.

    Raises ConfigError for a name that PyTorch does not know.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        return torch.device("cuda", first)
    try:
        return torch.device(name)
    except RuntimeError:
        raise ConfigError("device", name, "expected auto, cpu, cuda or cuda:N.") from None


def choose_amp_dtype(config: Config, device: torch.device) -> torch.dtype | None:
    """The dtype of mixed precision; None if it is off."""
    if not config.use_amp:
        return None
    if config.amp_dtype != "auto":
        return {"fp16": torch.float16, "bf16": torch.bfloat16}[config.amp_dtype]
    # Older GPUs emulate bf16, slowly; their tensor cores do fp16 only.
    native = device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float16


def spread_over_gpus(
    backbone: nn.Module, config: Config, device: torch.device
) -> tuple[nn.Module, str]:
    """Wrap the backbone in DataParallel where `use_multi_gpus` is on and there are several GPUs.

    Returns (the module to call, a line for the log that names the devices).
    """
    found = torch.cuda.device_count() if device.type == "cuda" else 0
    gpus = list(config.gpus) or list(range(found))
    if not config.use_multi_gpus:
        return backbone, f"training on {device}"
    if found < 2 or len(gpus) < 2:
        reason = f"{found} CUDA devices" if found < 2 else f"gpus = {gpus}"
        return backbone, f"training on {device}: use_multi_gpus is on, but there is {reason}"
    gpus.sort(key=lambda gpu: gpu != device.index)  # DataParallel gathers on the first
    parallel = nn.DataParallel(backbone, device_ids=gpus, output_device=device)
    return parallel, f"training on CUDA devices {', '.join(map(str, gpus))}"


@contextmanager
def full_precision() -> Iterator[None]:
    """Results on CUDA as exact as their dtype, for evaluation; what was set before is restored.

    Without TF32, which cuDNN takes by default and which has fp16's precision in place of
    float32's; without partial sums in half precision; and without cuDNN's choice of algorithms by
    their measured times, with which the last digits would differ from run to run.
    """
    matmul = {
        "allow_tf32": False,
        "allow_fp16_reduced_precision_reduction": False,
        "allow_bf16_reduced_precision_reduction": False,
    }
    with _backends(cudnn={"allow_tf32": False, "benchmark": False}, matmul=matmul):
        yield


@contextmanager
def training_precision(config: Config, device: torch.device) -> Iterator[None]:
    """Arithmetic on CUDA as `tf32` and `deterministic` say; what was set before is restored.

    With `deterministic`, a computation that has no deterministic form is a RuntimeError.
    """
    cudnn = {
        "allow_tf32": config.tf32,
        # All batches have one size, so the search for the fastest convolution pays off.
        "benchmark": device.type == "cuda" and not config.deterministic,
        "deterministic": config.deterministic,
    }
    with _backends(cudnn=cudnn, matmul={"allow_tf32": config.tf32}) as before:
        if config.deterministic:
            # cuBLAS reads it once, before this process's first product on CUDA.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            before.callback(
                torch.use_deterministic_algorithms,
                torch.are_deterministic_algorithms_enabled(),
                warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            )
            torch.use_deterministic_algorithms(True)
        yield


@contextmanager
def _backends(cudnn: dict[str, bool], matmul: dict[str, bool]) -> Iterator[ExitStack]:
    """Set flags of PyTorch's CUDA back ends, and restore them at the end.

    `allow_tf32` sets `fp32_precision` as well; PyTorch refuses to read it where that was set alone.
    """
    with ExitStack() as before:
        for module, flags in (
            (torch.backends.cudnn, cudnn),
            (torch.backends.cuda.matmul, matmul),
        ):
            for name, value in flags.items():
                before.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, value)
        yield before


def describe_precision(config: Config, device: torch.device, amp_dtype: torch.dtype | None) -> str:
    """For the log: how a run computes, such as "bfloat16 in the backbone, TF32 allowed"."""
    name = str(amp_dtype or torch.float32).removeprefix("torch.")
    parts = [f"{name} in the backbone" if amp_dtype else name]
    if config.tf32 and device.type == "cuda":
        parts.append("TF32 allowed")
    if config.deterministic:
        parts.append("deterministic")
    return ", ".join(parts)


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """Floats as float32, integers as int64, on a device; does not wait for it."""
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    tensor = torch.from_numpy(np.asarray(values, kind))
    if device.type == "cuda":  # a copy from other memory waits for all that the device has to do
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class CopyStream:
    """Copies tensors to a device; to a GPU on a stream of its own, beside what the GPU computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def to_device(self, *tensors: Tensor) -> list[Tensor]:
        """Copies for the current stream. Those in pinned memory are not waited for."""
        with torch.cuda.stream(self._stream):  # None: does nothing
            copies = [tensor.to(self._device, non_blocking=True) for tensor in tensors]
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            for copy in copies:
                copy.record_stream(current)  # its memory is not free before that has used it
        return copies
