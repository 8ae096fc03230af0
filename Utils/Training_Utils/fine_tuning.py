"""Starting from weights that exist: the network, its head where that fits, and holding it still."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from Backbone import build_backbone
from Config import Config
from Head.classifier import MarginHead
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.heads import ClassWeights, find_class_weights
from Utils.Pretrained_Utils.load import (
    build,
    describe,
    override_preprocessing,
    own_weights,
    read_weights,
)


def pretrained_settings(config: Config) -> dict[str, Any]:
    """The settings of the network in the file that `pretrained` names; for `Config.read_config`."""
    weights = read_weights(config.pretrained, config.lineage or None, config.weights)
    architecture = weights.description.architecture
    return _settings_of(architecture)


def starting_backbone(
    config: Config, saved: dict[str, Any] | None
) -> tuple[nn.Module, ClassWeights | None, str]:
    """The network that a run begins with, on the CPU.

    saved: the checkpoint that the run goes on from; the file that it began with is not needed then.

    Returns it, what class weights came with it, and a line for the log; None and an empty line
    where it starts without a file.
    Raises CheckpointError for a weights file or checkpoint that can't be read or is damaged, or a
    file of another network than the settings say.
    """
    given = (config.channel_order, config.input_mean, config.input_scale)
    if saved:
        return build(own_weights(Path(config.resume), saved, which="raw"), *given), None, ""
    if not config.pretrained:
        backbone = build_backbone(config.backbone, config.feature_dim, config.input_size)
        backbone.preprocessing = override_preprocessing(backbone.preprocessing, *given)
        return backbone, None, ""
    weights = read_weights(config.pretrained, config.lineage or None, config.weights)
    for name, value in _settings_of(weights.description.architecture).items():
        if getattr(config, name) != value:
            raise CheckpointError(
                f"pretrained {weights.path} has {name} {value}, the settings say "
                f"{getattr(config, name)}; set {value}, or leave it out."
            )
    backbone = build(weights, *given)
    found = find_class_weights(
        weights.path, weights.head, backbone.feature_dim, weights.head_by_columns
    )
    return backbone, found, f"starting from {weights.path}: {describe(backbone)}"


def take_class_weights(head: MarginHead, found: ClassWeights) -> str:
    """Put a file's class weights into the head where they fit; returns a line that says so.

    Of a head whose classes are split over processes, each takes the rows of its own.
    """
    weights = found.weights
    if weights is None:
        return f"head: starts fresh; looked for class weights in {found.where}"
    shape = "×".join(map(str, weights.shape))
    centers, dim = head.sub_centers, head.weight.shape[1]
    needed = (head.num_classes * centers, dim)
    if weights.shape != needed:
        return (
            f"head: starts fresh; {found.where} has weights for other classes ({shape}, the "
            f"training set needs {needed[0]}×{needed[1]})"
        )
    with torch.no_grad():
        head.weight.copy_(weights[head.local_rows.start : head.local_rows.stop])
    return f"head: {shape} class weights taken from {found.where}"


def set_frozen(backbone: nn.Module, frozen: bool) -> None:
    """Hold a network still, or let it learn.

    Held still: no gradients, so that the optimiser passes its weights by, weight decay included;
    and evaluation mode, so that BatchNorm's statistics stay and dropout is off.
    """
    backbone.requires_grad_(not frozen)
    backbone.train(not frozen)


def _settings_of(architecture: dict[str, Any]) -> dict[str, Any]:
    return {
        "backbone": architecture["name"],
        "feature_dim": architecture["feature_dim"],
        "input_size": tuple(architecture["input_size"]),
    }
