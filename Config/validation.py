"""Checks of the settings, before any data is read: each error names the setting, its value and
what is allowed."""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import fields

from Backbone import BACKBONES
from Config.config import Config
from Head import HEADS

AMP_DTYPES = ("auto", "fp16", "bf16")
CHANNEL_ORDERS = ("RGB", "BGR")
PROTOCOLS = ("cosine", "insightface", "both")

# Settings that are one of a few words.
CHOICES = {
    "amp_dtype": AMP_DTYPES,
    "protocol": PROTOCOLS,
    "channel_order": ("", *CHANNEL_ORDERS),
    "blp_channel_order": CHANNEL_ORDERS,
    "noise": ("drop", "insightface"),
    "ties": ("mate", "against"),
    "feature_flip": ("sum", "concat", "none"),
    "feature_dtype": ("fp32", "fp16"),
    "score_dtype": ("fp32", "bf16", "fp16"),
}

# The prefix of each known training set's `<prefix>_dataset_path` and `<prefix>_file_list`.
TRAIN_DATASETS = {"Demo": "demo", "CASIA_WebFace": "webface", "MS_Celeb_1M": "ms1m"}

# Lowest allowed value of each number; the second value says whether it is itself allowed.
LOWER_BOUNDS = {
    "batch_size": (2, True),
    "num_workers": (0, True),
    "seed": (0, True),
    "feature_dim": (1, True),
    "margin_size": (0, True),
    "scale_size": (0, False),
    "freeze_backbone_epochs": (0, True),
    "input_scale": (0, False),
    "initial_lr": (0, False),
    "momentum": (0, False),
    "weight_decay": (0, True),
    "total_epoch": (1, True),
    "log_freq": (1, True),
    "test_freq": (1, True),
    "save_freq": (1, True),
    "eval_batch_size": (1, True),
    "visdom_port": (1, True),
}


class ConfigError(ValueError):
    """A setting has a value that can't be used."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"setting {name} is {value!r}: {why}")


def validate(config: Config, cuda_devices: int = 0) -> None:
    """Check every setting and those that depend on each other.

    cuda_devices: how many CUDA devices the machine has.
    Raises ConfigError for the first one that can't be used.
    """
    _check_names(config)
    _check_numbers(config)
    _check_schedule(config)
    _check_freezing(config)
    _check_data(config)
    _check_devices(config, cuda_devices)


def training_paths(config: Config) -> tuple[str, str]:
    """The training set's path and file list (which may be empty) by `train_dataset`."""
    prefix = TRAIN_DATASETS.get(config.train_dataset, "train")
    return getattr(config, f"{prefix}_dataset_path"), getattr(config, f"{prefix}_file_list", "")


def require(name: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ConfigError, with the nearest allowed name, unless value is allowed."""
    allowed = list(allowed)
    if value not in allowed:
        lower = {a.lower(): a for a in allowed}
        nearest = difflib.get_close_matches(str(value).lower(), lower, n=1, cutoff=0.0)
        raise ConfigError(
            name, value, f"did you mean {lower[nearest[0]]!r}? Allowed: {', '.join(allowed)}."
        )


def _check_names(config: Config) -> None:
    require("backbone", config.backbone, BACKBONES)
    require("margin", config.margin, HEADS)
    for name, allowed in CHOICES.items():
        require(name, getattr(config, name), allowed)


def _check_numbers(config: Config) -> None:
    for f in fields(config):
        value = getattr(config, f.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f.name, value, "it must be a finite number.")
    for name, (bound, inclusive) in LOWER_BOUNDS.items():
        value = getattr(config, name)
        if value is None:
            continue
        if value < bound or (value == bound and not inclusive):
            raise ConfigError(
                name, value, f"it must be {'at least' if inclusive else 'above'} {bound}."
            )
    for name in ("ranks", "distractor_sizes"):
        if any(value < 1 for value in getattr(config, name)):
            raise ConfigError(name, getattr(config, name), "they must be whole numbers from 1 on.")
    for name in ("fprs", "fpirs"):
        if not getattr(config, name) or any(not 0 <= r <= 1 for r in getattr(config, name)):
            raise ConfigError(name, getattr(config, name), "they must be rates from 0 to 1.")
    if config.momentum >= 1:
        raise ConfigError("momentum", config.momentum, "it must be below 1.")
    if config.visdom_port > 65535:
        raise ConfigError("visdom_port", config.visdom_port, "it must be at most 65535.")
    if config.margin == "ArcFace" and (config.margin_size or 0) >= math.pi:
        raise ConfigError("margin_size", config.margin_size, "ArcFace's is an angle below π.")
    size = config.input_size
    if len(size) != 2 or any(side < 16 or side % 16 for side in size):
        raise ConfigError(
            "input_size", size, "it must be height,width in pixels, each a multiple of 16."
        )


def _check_schedule(config: Config) -> None:
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
    path, _ = training_paths(config)
    if path:
        return
    prefix = TRAIN_DATASETS.get(config.train_dataset, "train")
    known = ", ".join(TRAIN_DATASETS)
    raise ConfigError(
        "train_dataset",
        config.train_dataset,
        f"it needs {prefix}_dataset_path, the folder or file of its images, which is empty. "
        f"Known: {known}; any other name is a set of your own.",
    )


def _check_devices(config: Config, cuda_devices: int) -> None:
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
    on_cpu = device == "cpu" or cuda_devices == 0
    if config.use_amp and config.amp_dtype == "fp16" and on_cpu:
        raise ConfigError(
            "amp_dtype", "fp16", "fp16 training needs a CUDA device; on a CPU use bf16 or auto."
        )
    if len(set(config.gpus)) != len(config.gpus) or any(gpu < 0 for gpu in config.gpus):
        raise ConfigError("gpus", config.gpus, "they must be different device numbers, as in 0,1.")
    if config.use_multi_gpus and cuda_devices and any(gpu >= cuda_devices for gpu in config.gpus):
        raise ConfigError("gpus", config.gpus, f"this machine shows {cuda_devices} CUDA devices.")
