"""Writing a network as a folder for the Hugging Face hub."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from Backbone import describe_backbone
from Utils.errors import RunError
from Utils.files import atomic_path, make_folder, reading, save_json
from Utils.Pretrained_Utils.files import (
    BACKBONE_FORMAT,
    Description,
    Weights,
    default_output,
    read_file,
    write_backbone,
)
from Utils.Pretrained_Utils.hub.card import UNKNOWN_LICENSE, model_card
from Utils.Pretrained_Utils.hub.download import CONFIG, WEIGHTS
from Utils.Pretrained_Utils.hub.results import Network, figures_of
from Utils.Pretrained_Utils.load import describe, weights_digest

CARD = "README.md"

# Of a run's settings, those that say how its network was trained; none of them is a path.
_TRAINING = (
    *("train_dataset", "margin", "margin_size", "scale_size", "batch_size", "optimizer"),
    *("initial_lr", "weight_decay", "total_epoch", "milestones", "ema_decay", "seed"),
)
_WITH_TEACHER = ("teacher_loss", "teacher_weight", "margin_weight")


def hub_target(folder: Path) -> Path:
    """The folder to write. Raises RunError if it has a file that would be overwritten, such as a
    card that somebody edited, or if there is no folder above it."""
    with reading(folder, "target", RunError):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; name a folder to write.")
        there = [name for name in (WEIGHTS, CONFIG, CARD) if (folder / name).exists()]
        if there:
            raise RunError(
                f"{folder} already has {', '.join(there)}, which would be overwritten; name "
                f"another folder, or remove what is there."
            )
        if not folder.absolute().parent.is_dir():
            make = shlex.join(["mkdir", "-p", str(folder.parent)])
            raise RunError(f"the folder {folder.parent} does not exist; make it with `{make}`.")
    return folder


def write_hub_folder(
    folder: Path,
    weights: Weights,
    backbone: nn.Module,
    results: Sequence[Path] = (),
    licence: str = UNKNOWN_LICENSE,
) -> list[str]:
    """Write `model.safetensors`, `config.json` and `README.md`.

    backbone: the network built of the weights. results: files or folders of results; none: those of
    the default folder of its evaluations, and those beside the weights.
    Returns lines about what was written. Raises RunError if it can't be written, DataError for
    results that are of another network.
    """
    architecture = describe_backbone(backbone)
    places = list(results) or [default_output(weights.path), weights.path.parent]
    network = Network(weights_digest(backbone), describe(backbone), str(weights.path))
    figures, left_out = figures_of(places, network, bool(results))
    training = training_settings(weights.path)
    make_folder(folder)
    description = Description(architecture, weights.description.lineage)
    write_backbone(folder / WEIGHTS, weights.state, description)
    about = {
        "format": BACKBONE_FORMAT,
        "architecture": architecture,
        "lineage": description.lineage,
    }
    save_json(folder / CONFIG, {**about, "training": training} if training else about)
    values = sum(tensor.numel() for tensor in weights.state.values())
    facts = {"values": f"{values:,}", **training}
    name = folder.absolute().name
    card = model_card(name, describe(backbone), architecture, facts, figures, licence)
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    benchmarks = ", ".join(dict.fromkeys(figure.benchmark for figure in figures))
    return [
        f"written  {folder}: {WEIGHTS}, {CONFIG}, {CARD}",
        f"results  {benchmarks or 'none; evaluation scripts write them, --results names them'}",
        *(f"left out {why}" for why in left_out),
        f"publish  `hf upload USER/{name} {shlex.quote(str(folder))}` (after `hf auth login`)",
    ]


def training_settings(path: Path) -> dict[str, Any]:
    """How a run's checkpoint was trained; {} for other files."""
    settings = read_file(path).get("settings")
    if not isinstance(settings, dict):
        return {}
    plain = (str, int, float, bool, list)
    names = _TRAINING + (_WITH_TEACHER if settings.get("teacher") else ())
    return {name: settings[name] for name in names if isinstance(settings.get(name), plain)}
