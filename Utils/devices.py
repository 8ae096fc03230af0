"""Devices and the dtype of mixed precision, chosen from the settings."""

import torch
from torch import nn

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
