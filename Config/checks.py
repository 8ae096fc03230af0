"""Checks of the settings, before any data is read: each error names the setting, its value and
what is allowed.

Checks of the settings that share training out: over devices, processes and parts of a step.
"""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import fields

from Backbone import BACKBONES
from Config.config import Config
from Config.errors import ConfigError, nearest_name
from Head import HEADS, wrong_combined_margin, wrong_margin

AMP_DTYPES = ("auto", "fp16", "bf16")
CHANNEL_ORDERS = ("RGB", "BGR")
SAMPLERS = ("shuffled", "balanced")
WEIGHTS = ("averaged", "raw")
CROP_KINDS = ("resize", "blank")

# Each with a probability, `<name>_prob`.
AUGMENTATIONS = ("flip", "crop", "low_res", "jitter", "jpeg", "erasing")
OPTIMIZERS = ("sgd", "adamw")

# Settings that are one of a few words.
CHOICES = {
    "backbone": BACKBONES,
    "margin": HEADS,
    "amp_dtype": AMP_DTYPES,
    "sampler": SAMPLERS,
    "weights": WEIGHTS,
    "crop_kind": CROP_KINDS,
    "optimizer": OPTIMIZERS,
    "head_optimizer": ("", *OPTIMIZERS),
    "lr_scaling": ("none", "linear"),
    "head_parallel": ("auto", "replicated", "sharded"),
    "ddp_compression": ("none", "fp16", "bf16"),
    "checkpoint_format": ("auto", "file", "sharded"),
    "schedule": ("milestones", "polynomial", "cosine"),
    "protocol": ("cosine", "insightface", "both"),
    "channel_order": ("", *CHANNEL_ORDERS),
    "blp_channel_order": CHANNEL_ORDERS,
    "noise": ("drop", "insightface"),
    "ties": ("mate", "against"),
    "feature_flip": ("sum", "concat", "none"),
    "feature_dtype": ("fp32", "fp16"),
    "score_dtype": ("fp32", "bf16", "fp16"),
    "eval_dtype": ("fp32", "bf16", "fp16"),
}

# The prefix of each known training set's `<prefix>_dataset_path` and `<prefix>_file_list`.
TRAIN_DATASETS = {"Demo": "demo", "CASIA_WebFace": "webface", "MS_Celeb_1M": "ms1m"}

# Lowest allowed value of each number; the second value says whether it is itself allowed.
LOWER_BOUNDS = {
    "min_images": (1, True),
    **{f"{name}_prob": (0, True) for name in AUGMENTATIONS},
    "crop_scale": (0, False),
    "batch_size": (2, True),
    "accumulate_steps": (1, True),
    "num_workers": (0, True),
    "seed": (0, True),
    "feature_dim": (1, True),
    "margin_size": (0, True),
    "sub_centers": (1, True),
    "scale_size": (0, False),
    "sample_rate": (0, False),
    "label_smoothing": (0, True),
    "focal_gamma": (0, True),
    "freeze_backbone_epochs": (0, True),
    "input_scale": (0, False),
    "initial_lr": (0, False),
    "momentum": (0, False),
    "weight_decay": (0, True),
    "ema_decay": (0, True),
    "head_lr": (0, False),
    "head_weight_decay": (0, True),
    "lr_reference_batch": (1, True),
    "clip_norm": (0, True),
    "warmup_epochs": (0, True),
    "total_epoch": (1, True),
    "log_freq": (1, True),
    "test_freq": (1, True),
    "save_freq": (1, True),
    "eval_batch_size": (1, True),
    "profile": (0, True),
    "visdom_port": (1, True),
}

# Highest allowed value: of probabilities, of the random generators' seeds, of what fits into
# memory, of ports.
UPPER_BOUNDS = {
    **{f"{name}_prob": 1 for name in AUGMENTATIONS},
    **{"crop_scale": 1, "ema_decay": 0.999999, "sample_rate": 1},
    **{"seed": 2**63 - 1, "feature_dim": 2**16, "visdom_port": 2**16 - 1},
}

# Sets of known names with a `<prefix>_file_list`, which needs its `<prefix>_dataset_path`.
LISTED = ("webface", "ms1m", "lfw", "agedb", "cfp")


def validate(
    config: Config,
    cuda_devices: int = 0,
    only: Collection[str] | None = None,
    processes: int = 1,
) -> None:
    """Check the settings, each alone and those that depend on each other.

    cuda_devices: how many CUDA devices the machine has.
    only: the settings in use, where nothing is trained; None: all of them, to train.
    processes: how many train together.
    Raises ConfigError for the first one that can't be used.
    """
    names = [f.name for f in fields(config) if only is None or f.name in only]
    _check_choices(config, names)
    _check_bounds(config, names)
    _check_rows(config, names)
    _check_lists(config, names)
    _check_device(config, cuda_devices)
    if "eval_dtype" in names:
        _check_eval_dtype(config, cuda_devices)
    if only is None:
        _check_network(config)
        _check_schedule(config)
        _check_freezing(config)
        _check_data(config)
        check_sharing(config, cuda_devices, processes)


def training_paths(config: Config) -> tuple[str, str]:
    """The training set's path and file list (which may be empty) by `train_dataset`."""
    prefix = TRAIN_DATASETS.get(config.train_dataset, "train")
    return getattr(config, f"{prefix}_dataset_path"), getattr(config, f"{prefix}_file_list", "")


def require(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ConfigError, with the allowed name most like it, unless value is allowed."""
    allowed = list(allowed)
    if value not in allowed:
        named = [a for a in allowed if a]
        nearest = nearest_name(value, named)
        hint = f"did you mean {nearest!r}? Allowed" if nearest else "allowed"
        raise ConfigError(name, value, f"{hint}: {', '.join(named)}.")


def _check_choices(config: Config, names: Collection[str]) -> None:
    for name, allowed in CHOICES.items():
        if name in names:
            require(name, getattr(config, name), allowed)


def _check_bounds(config: Config, names: Collection[str]) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(name, value, "it must be a finite number.")
    for name, (bound, inclusive) in LOWER_BOUNDS.items():
        value = getattr(config, name)
        if name not in names or value is None:
            continue
        if value < bound or (value == bound and not inclusive):
            raise ConfigError(
                name, value, f"it must be {'at least' if inclusive else 'above'} {bound}."
            )
    for name, bound in UPPER_BOUNDS.items():
        if name in names and getattr(config, name) > bound:
            raise ConfigError(name, getattr(config, name), f"it must be at most {bound}.")


def _check_rows(config: Config, names: Collection[str]) -> None:
    """The settings that are several numbers."""
    for name in {"ranks", "distractor_sizes"}.intersection(names):
        if any(value < 1 for value in getattr(config, name)):
            raise ConfigError(name, getattr(config, name), "they must be whole numbers from 1 on.")
    for name in {"fprs", "fpirs"}.intersection(names):
        if not getattr(config, name) or any(not 0 <= r <= 1 for r in getattr(config, name)):
            raise ConfigError(name, getattr(config, name), "they must be rates from 0 to 1.")


def _check_lists(config: Config, names: Collection[str]) -> None:
    for prefix in LISTED:
        name, path = f"{prefix}_file_list", f"{prefix}_dataset_path"
        if name in names and getattr(config, name) and not getattr(config, path):
            raise ConfigError(
                name, getattr(config, name), f"{path}, where its images are, is empty; give both."
            )


def _check_network(config: Config) -> None:
    if config.momentum >= 1:
        raise ConfigError("momentum", config.momentum, "it must be below 1.")
    if config.label_smoothing >= 1:
        raise ConfigError("label_smoothing", config.label_smoothing, "it must be below 1.")
    _check_head(config)
    size = config.input_size
    if len(size) != 2 or any(side < 16 or side % 16 for side in size):
        raise ConfigError(
            "input_size", size, "it must be height,width in pixels, each a multiple of 16."
        )


def _check_head(config: Config) -> None:
    for name, wrong in (
        ("margin_size", wrong_margin(config.margin, config.margin_size)),
        ("combined_margin", wrong_combined_margin(config.combined_margin)),
    ):
        if wrong:
            raise ConfigError(name, getattr(config, name), wrong)
    if config.focal_gamma and config.label_smoothing:
        raise ConfigError(
            "focal_gamma",
            config.focal_gamma,
            "focal loss weighs an image by the probability of its class, and label_smoothing "
            f"{config.label_smoothing} wants that below 1; set one of them to 0.",
        )


def _check_schedule(config: Config) -> None:
    if config.warmup_epochs >= config.total_epoch:
        raise ConfigError(
            "warmup_epochs",
            config.warmup_epochs,
            f"it must end before the run does, and total_epoch is {config.total_epoch}.",
        )
    if config.schedule != "milestones":
        return
    milestones = config.milestones
    if list(milestones) != sorted(set(milestones)) or any(m < 1 for m in milestones):
        raise ConfigError("milestones", milestones, "they must be epochs from 1 on, increasing.")
    if milestones and milestones[-1] >= config.total_epoch:
        raise ConfigError(
            "milestones",
            milestones,
            f"{milestones[-1]} is not before the last epoch; total_epoch is {config.total_epoch}, "
            f"so milestones go up to {config.total_epoch - 1}.",
        )


def _check_freezing(config: Config) -> None:
    epochs = config.freeze_backbone_epochs
    if epochs and not config.pretrained:
        raise ConfigError(
            "freeze_backbone_epochs", epochs, "it goes with pretrained; fresh weights must learn."
        )
    if epochs > config.total_epoch:
        raise ConfigError(
            "freeze_backbone_epochs", epochs, f"total_epoch is only {config.total_epoch}."
        )


def _check_data(config: Config) -> None:
    known = ", ".join(TRAIN_DATASETS)
    prefix = TRAIN_DATASETS.get(config.train_dataset)
    for name in ("train_dataset_path", "train_file_list"):
        if prefix and getattr(config, name):
            raise ConfigError(
                name,
                getattr(config, name),
                f"it is for a set of your own, but train_dataset is {config.train_dataset}, which "
                f"has {prefix}_dataset_path; give your set a name with --train_dataset, any but "
                f"{known}.",
            )
    path, _ = training_paths(config)
    if not path:
        raise ConfigError(
            "train_dataset",
            config.train_dataset,
            f"it needs {prefix or 'train'}_dataset_path, the folder or file of its images, which "
            f"is empty. Known: {known}; any other name is a set of your own.",
        )


def _check_device(config: Config, cuda_devices: int) -> None:
    device = config.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise ConfigError("device", device, "allowed: auto, cpu, cuda, cuda:N.")
    if device.startswith("cuda"):
        number = int(device.partition(":")[2] or 0)
        if number >= cuda_devices:
            raise ConfigError(
                "device",
                device,
                f"this machine shows {cuda_devices} CUDA devices; use cpu or auto.",
            )


def _check_eval_dtype(config: Config, cuda_devices: int) -> None:
    if config.eval_dtype == "fp16" and (config.device == "cpu" or cuda_devices == 0):
        raise ConfigError("eval_dtype", "fp16", "CPUs do not compute in fp16; use bf16 or fp32.")


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
