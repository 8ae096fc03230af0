"""Backbones from weights files: this project's, and those of every lineage in `lineages`.

`load_backbone` is `read_weights` (find, read and recognise the file) and `build` (make the network
and fill it); a network in an ONNX file comes from `onnx_network`. Nothing in a file is ever
executed.
"""

import dataclasses
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from Backbone import BACKBONES, PREFIX, ArchitectureError, Preprocessing, rebuild_backbone
from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.file_kinds import is_onnx
from Utils.Pretrained_Utils.files import (
    BACKBONE_FORMAT,
    Description,
    Weights,
    check_whole,
    find_weights,
    read_file,
)
from Utils.Pretrained_Utils.foreign import foreign_weights
from Utils.Pretrained_Utils.heads import class_weights
from Utils.Pretrained_Utils.hub.config import with_config
from Utils.Pretrained_Utils.lineages import LINEAGES, OWN, Lineage, find_lineage
from Utils.Pretrained_Utils.lineages.descriptions import check_own
from Utils.Pretrained_Utils.lineages.recognise import (
    compare,
    shapes_of,
)
from Utils.Pretrained_Utils.onnx_network import load_onnx
from Utils.run_folder import FORMAT

FORMATS = ("face-training-checkpoint-", "face-backbone-")  # of this program's other versions, too


def load_backbone(
    path: str | Path,
    name: str | None = None,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
    which: str = "averaged",
) -> nn.Module:
    """Read the backbone of a file, whoever wrote it; recognised by its tensors' names and shapes.

    path: the file, or the name of one in the folder Pretrained, or hf:USER/NAME at the hub.
    name: the backbone that it must be, or the key of the lineage that it is from
        (`lineages.LINEAGES`), which decides where two of them look alike; None takes what it is.
    channel_order, input_mean, input_scale: instead of what the lineage trained with; mean and scale
        in pixel values, 0..255. Of lineages that look alike, the one with that channel order is
        taken.
    which: of a run's checkpoint with a moving average of its weights, "averaged" or "raw"; in any
        other file there is one kind of weights, and this is not looked at.

    Returns it in evaluation mode on the CPU, in float32, with its `preprocessing`; `lineage` says
    where it is from. Of an ONNX file it is a module that computes, without parameters. Raises
    CheckpointError for a file that can't be read without running code, that holds no network known
    here, or another one than `name`, or one that can be of several lineages whose inputs differ.
    """
    lineage = _wanted(name)
    path = find_weights(path)
    if is_onnx(path):
        given = {"channel_order": channel_order or None, "mean": input_mean, "scale": input_scale}
        backbone = load_onnx(path, lineage, given)
        _check_name(path, name, backbone.architecture["name"])
        return backbone
    weights = read_weights(path, name, which, channel_order)
    return build(weights, channel_order, input_mean, input_scale)


def read_weights(
    path: str | Path,
    name: str | None = None,
    which: str = "averaged",
    channel_order: str = "",
    part: str = "",
) -> Weights:
    """Read and recognise a file, as `load_backbone` does, without building the network.

    part: of a file with several networks, the keys and prefix of the one to read.
    """
    lineage = _wanted(name)
    path = find_weights(path)
    contents = with_config(path, read_file(path))
    if contents.get("format") in (FORMAT, BACKBONE_FORMAT):
        check_whole(path)
        weights = own_weights(path, contents, lineage, which)
    elif str(contents.get("format")).startswith(FORMATS):
        raise CheckpointError(
            f"checkpoint {path} has format {shortened(contents['format'])!r}; this version of the "
            f"program reads {FORMAT} and {BACKBONE_FORMAT}. Read it with the version that wrote it."
        )
    else:
        weights = foreign_weights(path, contents, lineage, channel_order, part)
    _check_name(path, name, weights.description.architecture["name"])
    return weights


def build(
    weights: Weights,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
) -> nn.Module:
    """The network of weights that were read, as `load_backbone` returns it.

    Raises CheckpointError if the weights do not fit the architecture that the file describes, or
    are not finite.
    """
    description = weights.description.architecture
    try:
        if description["name"].startswith(PREFIX):
            # They compute buffers that their state dicts do not have, so they are built with
            # memory; but not more of it than the file has, where that can be told before.
            with suppress(ArchitectureError):
                _build_without_memory(weights)
            backbone = rebuild_backbone(description)
            _check_fit(weights, backbone)
        else:
            backbone = _build_without_memory(weights)
            kept = backbone.state_dict().keys()
            if all(name in kept for name, _ in backbone.named_buffers()):
                backbone.to_empty(device="cpu")
            else:  # KP-RPE computes the others
                backbone = rebuild_backbone(description)
    except ArchitectureError as error:
        raise _misfit(weights.path, str(error)) from None
    for name, tensor in backbone.state_dict().items():
        if name not in weights.state:
            tensor.zero_()
    backbone.load_state_dict(weights.state, strict=False)
    for name, tensor in backbone.state_dict().items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{weights.path}: {name} has values that are not finite (NaN or infinite), so the "
                f"network's embeddings would be NaN. Take an older checkpoint, or the file anew."
            )
    backbone.preprocessing = override_preprocessing(
        backbone.preprocessing, channel_order, input_mean, input_scale
    )
    backbone.lineage = weights.description.lineage
    return backbone.eval()


def override_preprocessing(
    preprocessing: Preprocessing,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
) -> Preprocessing:
    """The same with the values replaced that are given. Raises CheckpointError for a bad one."""
    given = {"channel_order": channel_order or None, "mean": input_mean, "scale": input_scale}
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return dataclasses.replace(preprocessing, **given)
    except ArchitectureError as error:
        raise CheckpointError(f"the network can't be given such an input: {error}.") from None


def describe(backbone: nn.Module) -> str:
    """One line on a loaded network: its name and settings, its lineage, and its input."""
    given, size = backbone.preprocessing, backbone.preprocessing.input_size
    variant = "".join(f", {k} {v}" for k, v in backbone.architecture["variant"].items())
    what = f"{backbone.architecture['name']}{variant}, {backbone.feature_dim}-d"
    note = getattr(backbone, "note", "")  # of an ONNX network
    return (
        f"{what}, of {backbone.lineage}; input "
        f"{size[0]}×{size[1]} {given.channel_order}, (pixel - {given.mean:g}) / {given.scale:g}"
        + (f" ({note})" if note else "")
    )


def weights_digest(backbone: nn.Module) -> str:
    """SHA-256 of a network's weights and of its preprocessing, as 64 hexadecimal digits."""
    found = hashlib.sha256(repr(backbone.preprocessing).encode())
    for name, value in backbone.state_dict().items():
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def own_weights(
    path: Path,
    contents: dict[str, Any],
    wanted: Lineage | None = None,
    which: str = "averaged",
) -> Weights:
    """The weights in the contents of a run's checkpoint or of a bare backbone file.

    wanted: the lineage that the user named. which: "averaged" or "raw", where a run's checkpoint
    has both. Raises CheckpointError if an entry is missing or of another type.
    """
    check_own(path, contents)
    description = Description(contents["architecture"], contents.get("lineage", OWN))
    if wanted and wanted.title != description.lineage:
        raise CheckpointError(
            f"checkpoint {path} says itself which network it holds, of {description.lineage}, and "
            f"can't be read as {wanted.title}'s; leave --lineage out."
        )
    head = class_weights(contents.get("head", {}), description.architecture["feature_dim"])
    if which == "averaged" and "averaged" in contents:
        lineage = f"{description.lineage}, averaged weights"
        averaged = dataclasses.replace(description, lineage=lineage)
        return Weights(path, averaged, contents["averaged"]["backbone"], head)
    return Weights(path, description, contents["backbone"], head)


def _wanted(name: str | None) -> Lineage | None:
    """The lineage that a name asks for; None for a backbone's name, or none at all."""
    lineage = find_lineage(name) if name else None
    if name and lineage is None and name not in BACKBONES:
        keys = ", ".join(row.key for row in LINEAGES)
        raise CheckpointError(
            f"{name!r} is neither a backbone ({', '.join(BACKBONES)}) nor a lineage ({keys})."
        )
    return lineage


def _check_name(path: Path, name: str | None, found: str) -> None:
    if name in BACKBONES and name != found:
        raise CheckpointError(f"checkpoint {path} holds a {found}, not a {name}.")


def _build_without_memory(weights: Weights) -> nn.Module:
    with torch.device("meta"):
        backbone = rebuild_backbone(weights.description.architecture)
    _check_fit(weights, backbone)
    return backbone


def _check_fit(weights: Weights, backbone: nn.Module) -> None:
    if differences := compare(weights.state, shapes_of(backbone)):
        raise _misfit(weights.path, "; ".join(differences))


def _misfit(path: Path, why: str) -> CheckpointError:
    why = shortened(why, 1000)
    return CheckpointError(f"checkpoint {path} does not fit the network that it describes: {why}.")
