"""Checks of the settings, before any data is read: each error names the setting, its value and
what is allowed.

A setting's own bounds are in its field; this file checks what depends on other settings, on the
machine's devices, or on the number of processes.
"""

import math
import re
from collections.abc import Collection
from importlib.util import find_spec

from Backbone import PREFIX, wrong_timm_name
from Config.config import Config
from Config.errors import ConfigError
from Config.fields import settings_of
from Head import wrong_combined_margin, wrong_margin

# The prefix of each known training set's `<prefix>_dataset_path` and `<prefix>_file_list`.
TRAIN_DATASETS = {"Demo": "demo", "CASIA_WebFace": "webface", "MS_Celeb_1M": "ms1m"}

# Sets of known names with a `<prefix>_file_list`, which needs its `<prefix>_dataset_path`.
LISTED = ("webface", "ms1m", "lfw", "agedb", "cfp", "tinyface")

# The packages of switches that make train does not install.
OPTIONAL = {"use_tensorboard": "tensorboard", "use_wandb": "wandb"}


def validate(
    config: Config,
    cuda_devices: int = 0,
    only: Collection[str] | None = None,
    processes: int = 1,
) -> None:
    """Check the settings, each alone and those that depend on each other.

    cuda_devices: how many CUDA devices the machine has.
    only: the settings in use, if nothing is trained; None: all of them, to train.
    processes: how many train together.
    Raises ConfigError for the first one that can't be used.
    """
    settings = settings_of(type(config))
    names = [name for name in settings if only is None or name in only]
    for name in names:
        settings[name].check(getattr(config, name))
    for name in {"fprs", "fpirs"}.intersection(names):
        if not getattr(config, name):
            raise _wrong(config, name, "give at least one rate, as in 1e-4,1e-6.")
    for prefix in LISTED:
        name, path = f"{prefix}_file_list", f"{prefix}_dataset_path"
        if name in names and getattr(config, name) and not getattr(config, path):
            why = f"{path}, where its images are, is empty; give both."
            raise _wrong(config, name, why)
    if "align" in names and config.detector_file and not config.align:
        why = "align, which says which detector's weights these are, is empty; give both."
        raise _wrong(config, "detector_file", why)
    _check_device(config, cuda_devices)
    on_cpu = config.device == "cpu" or cuda_devices == 0
    if "eval_dtype" in names and config.eval_dtype == "fp16" and on_cpu:
        raise _wrong(config, "eval_dtype", "CPUs do not compute in fp16; use bf16 or fp32.")
    if "all_pairs" in names and config.all_pairs:
        for name in ("compare", "quality", "eval_dtype"):
            if getattr(config, name) != settings[name].default:
                raise _wrong(config, name, "it is for listed pairs; leave it out with all_pairs.")
    if only is None:
        _check_network(config)
        _check_epochs(config)
        _check_teacher(config)
        _check_data(config)
        _check_packages(config)
        _check_devices_of_training(config, on_cpu)
        _check_micro_batches(config, processes)
        if processes > 1:
            _check_processes(config, on_cpu)
        elif config.use_multi_gpus and not on_cpu:
            _check_gpus(config, cuda_devices)


def training_paths(config: Config) -> tuple[str, str]:
    """The training set's path and file list (which may be empty) by `train_dataset`."""
    prefix = TRAIN_DATASETS.get(config.train_dataset, "train")
    return getattr(config, f"{prefix}_dataset_path"), getattr(config, f"{prefix}_file_list", "")


def _wrong(config: Config, name: str, why: str) -> ConfigError:
    return ConfigError(name, getattr(config, name), why)


def _check_network(config: Config) -> None:
    if wrong := wrong_margin(config.margin, config.margin_size):
        raise _wrong(config, "margin_size", wrong)
    timm = config.backbone.startswith(PREFIX)
    if timm and (wrong := wrong_timm_name(config.backbone)):
        raise _wrong(config, "backbone", wrong)
    if config.mask_ratio and config.backbone.endswith("_KPRPE"):
        why = "a network with KP-RPE sees all patches; leave it out."
        raise _wrong(config, "mask_ratio", why)
    for name in ("drop_path", "mask_ratio"):
        if getattr(config, name) is not None and not config.backbone.startswith("ViT_"):
            why = f"only the ViT networks have it, and backbone is {config.backbone}; leave it out."
            raise _wrong(config, name, why)
    if wrong := wrong_combined_margin(config.combined_margin):
        raise _wrong(config, "combined_margin", wrong)
    if config.focal_gamma and config.label_smoothing:
        raise _wrong(
            config,
            "focal_gamma",
            "focal loss weighs an image by the probability of its class, and label_smoothing "
            f"{config.label_smoothing} wants that below 1; set one of them to 0.",
        )
    size = config.input_size
    if len(size) != 2 or any(side < 16 or side % 16 for side in size):
        why = "it must be height,width in pixels, each a multiple of 16."
        raise _wrong(config, "input_size", why)


def _check_epochs(config: Config) -> None:
    if config.warmup_epochs >= config.total_epoch:
        why = f"it must end before the run does, and total_epoch is {config.total_epoch}."
        raise _wrong(config, "warmup_epochs", why)
    increasing = sorted(set(config.milestones))
    if config.schedule == "milestones" and list(config.milestones) != increasing:
        raise _wrong(config, "milestones", "they must be increasing epochs, as in 22,31.")
    epochs = config.freeze_backbone_epochs
    if epochs and not config.pretrained:
        why = "it needs pretrained weights; new weights have to be trained."
        raise _wrong(config, "freeze_backbone_epochs", why)
    if epochs > config.total_epoch:
        why = f"total_epoch is only {config.total_epoch}."
        raise _wrong(config, "freeze_backbone_epochs", why)


def _check_teacher(config: Config) -> None:
    if not config.teacher or config.margin_weight:
        return
    if not config.teacher_weight:
        raise _wrong(config, "margin_weight", "teacher_weight is 0 too, so nothing is trained.")
    if config.freeze_backbone_epochs:
        why = "with margin_weight 0 the head learns nothing in these epochs; leave it out."
        raise _wrong(config, "freeze_backbone_epochs", why)


def _check_data(config: Config) -> None:
    known = ", ".join(TRAIN_DATASETS)
    prefix = TRAIN_DATASETS.get(config.train_dataset)
    for name in ("train_dataset_path", "train_file_list"):
        if prefix and getattr(config, name):
            raise _wrong(
                config,
                name,
                f"it is for a set of your own, but train_dataset is {config.train_dataset}, which "
                f"has {prefix}_dataset_path; give your set a name with --train_dataset, any but "
                f"{known}.",
            )
    path, _ = training_paths(config)
    if not path:
        raise _wrong(
            config,
            "train_dataset",
            f"it needs {prefix or 'train'}_dataset_path, the folder or file of its images, which "
            f"is empty. Known: {known}; any other name is a set of your own.",
        )


def _check_packages(config: Config) -> None:
    for name, package in OPTIONAL.items():
        # A folder "wandb", which W&B makes where it runs, is a package too, but has no file.
        if getattr(config, name) and getattr(find_spec(package), "origin", None) is None:
            why = f"the package {package} is not installed: python -m pip install {package}"
            raise _wrong(config, name, f"{why} (or make extras).")


def _check_device(config: Config, cuda_devices: int) -> None:
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", config.device)
    if not match:
        raise _wrong(config, "device", "allowed: auto, cpu, cuda, cuda:N.")
    if config.device.startswith("cuda") and int(match[1] or 0) >= cuda_devices:
        why = f"this machine shows {cuda_devices} CUDA devices; use cpu or auto."
        raise _wrong(config, "device", why)


def _check_devices_of_training(config: Config, on_cpu: bool) -> None:
    if config.use_amp and config.amp_dtype == "fp16" and on_cpu:
        why = "fp16 training needs a CUDA device; on a CPU use bf16 or auto."
        raise _wrong(config, "amp_dtype", why)
    if config.compile and config.activation_checkpointing:
        raise _wrong(config, "compile", "it does not go with activation_checkpointing.")
    if len(set(config.gpus)) != len(config.gpus):
        raise _wrong(config, "gpus", "they must be different devices, as in 0,1.")


def _check_micro_batches(config: Config, processes: int) -> None:
    """batch_size has to split evenly: else the same settings would mean other batches."""
    count = processes * config.accumulate_steps
    if config.batch_size % count or config.batch_size < 2 * count:
        shares = f"{processes} processes" if processes > 1 else ""
        steps = f"{config.accumulate_steps} micro-batches" if config.accumulate_steps > 1 else ""
        raise _wrong(
            config,
            "batch_size",
            f"it is split over {' and '.join(filter(None, (shares, steps)))}, with as many images "
            f"in each, at least the 2 that BatchNorm learns from; take a multiple of {count}, at "
            f"least {2 * count}.",
        )


def _check_processes(config: Config, on_cpu: bool) -> None:
    if ":" in config.device:
        raise _wrong(
            config,
            "device",
            "under torchrun each process takes the CUDA device of its own LOCAL_RANK; use auto, "
            "and choose devices with CUDA_VISIBLE_DEVICES.",
        )
    if config.sync_batchnorm and on_cpu:
        raise _wrong(config, "sync_batchnorm", "PyTorch supports it on GPUs only.")
    if config.sample_rate < 1 and config.head_parallel == "replicated":
        raise _wrong(
            config,
            "head_parallel",
            f"with a sample_rate ({config.sample_rate}) in several processes the classes have to "
            f"be split over them: use sharded or auto.",
        )


def _check_gpus(config: Config, cuda_devices: int) -> None:
    """The conditions of DataParallel."""
    if config.compile:
        why = "it does not work with use_multi_gpus; start with torchrun instead."
        raise _wrong(config, "compile", why)
    gpus = config.gpus
    if any(gpu >= cuda_devices for gpu in gpus):
        raise _wrong(config, "gpus", f"this machine shows {cuda_devices} CUDA devices.")
    number = config.device.partition(":")[2]
    if number and gpus and int(number) not in gpus:
        why = f"device is {config.device}, which is not among them; add it, or use auto."
        raise _wrong(config, "gpus", why)
    # DataParallel gives each GPU a share rounded up, and the last one the rest.
    count, images = len(gpus) or cuda_devices, config.batch_size // config.accumulate_steps
    if images < 2 * count or images % math.ceil(images / count) == 1:
        multiple = count * config.accumulate_steps
        raise _wrong(
            config,
            "batch_size",
            f"split over {count} GPUs, it leaves one of them fewer than the 2 images that "
            f"BatchNorm learns from; take a multiple of {multiple}, at least {2 * multiple}.",
        )
