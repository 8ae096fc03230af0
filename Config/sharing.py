"""Checks of the settings that share training out: over devices, processes and parts of a step."""

import math

from Config.config import Config
from Config.errors import ConfigError


def check_sharing(config: Config, cuda_devices: int, processes: int) -> None:
    """Check number format, devices and the equal parts of a batch.

    cuda_devices: of this machine. processes: how many train together. Raises ConfigError.
    """
    on_cpu = config.device == "cpu" or cuda_devices == 0
    if config.use_amp and config.amp_dtype == "fp16" and on_cpu:
        raise ConfigError(
            "amp_dtype", "fp16", "fp16 training needs a CUDA device; on a CPU use bf16 or auto."
        )
    if len(set(config.gpus)) != len(config.gpus) or any(gpu < 0 for gpu in config.gpus):
        raise ConfigError("gpus", config.gpus, "they must be different device numbers, as in 0,1.")
    _check_parts(config, processes)
    if processes > 1:
        _check_processes(config, on_cpu)
    elif config.use_multi_gpus and not on_cpu:
        _check_gpus(config, cuda_devices)


def _check_parts(config: Config, processes: int) -> None:
    """batch_size has to split evenly: else the same settings would mean other batches."""
    parts = processes * config.accumulate_steps
    if config.batch_size % parts or config.batch_size < 2 * parts:
        shares = f"{processes} processes" if processes > 1 else ""
        steps = f"{config.accumulate_steps} parts of a step" if config.accumulate_steps > 1 else ""
        raise ConfigError(
            "batch_size",
            config.batch_size,
            f"it is split over {' and '.join(filter(None, (shares, steps)))}, with as many images "
            f"in each, at least the 2 that BatchNorm learns from; take a multiple of {parts}, at "
            f"least {2 * parts}.",
        )


def _check_processes(config: Config, on_cpu: bool) -> None:
    if ":" in config.device:
        raise ConfigError(
            "device",
            config.device,
            "under torchrun each process takes the CUDA device of its own number; use auto, and "
            "choose devices with CUDA_VISIBLE_DEVICES.",
        )
    if config.sync_batchnorm and on_cpu:
        raise ConfigError("sync_batchnorm", True, "PyTorch has it for GPUs alone.")
    if config.sample_rate < 1 and config.head_parallel == "replicated":
        raise ConfigError(
            "head_parallel",
            "replicated",
            f"with a sample_rate ({config.sample_rate}) in several processes the classes have to "
            f"be split over them: use sharded or auto.",
        )


def _check_gpus(config: Config, cuda_devices: int) -> None:
    if config.compile:
        raise ConfigError(
            "compile", True, "it does not go with use_multi_gpus; start with torchrun instead."
        )
    """What DataParallel needs."""
    gpus = config.gpus
    if any(gpu >= cuda_devices for gpu in gpus):
        raise ConfigError("gpus", gpus, f"this machine shows {cuda_devices} CUDA devices.")
    number = config.device.partition(":")[2]
    if number and gpus and int(number) not in gpus:
        raise ConfigError(
            "gpus",
            gpus,
            f"device is {config.device}, which is not among them; add it, or use auto.",
        )
    # It gives each GPU a share rounded up, and the last one what is left.
    count, images = len(gpus) or cuda_devices, config.batch_size // config.accumulate_steps
    if images < 2 * count or images % math.ceil(images / count) == 1:
        multiple = count * config.accumulate_steps
        raise ConfigError(
            "batch_size",
            config.batch_size,
            f"split over {count} GPUs, it leaves one of them fewer than the 2 images that "
            f"BatchNorm learns from; take a multiple of {multiple}, at least {2 * multiple}.",
        )
