"""Backbones from weights files: this project's, and those of every lineage in `lineages`.

`load_backbone` is `read_weights` (find, read and recognise the file) and `build` (make the network
and fill it). Nothing in a file is ever executed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Backbone import BACKBONES, ArchitectureError, Preprocessing, rebuild_backbone
from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.files import (
    BACKBONE_FORMAT,
    Contents,
    Description,
    find_weights,
    open_contents,
    read_file,
)
from Utils.Pretrained_Utils.heads import class_weights
from Utils.Pretrained_Utils.lineages import LINEAGES, OWN, Lineage, find_lineage
from Utils.Pretrained_Utils.lineages.descriptions import check_own, color_space
from Utils.Pretrained_Utils.lineages.recognise import (
    COUNTER,
    Match,
    compare,
    matches,
    most_likely,
    nearest,
    shapes_of,
)
from Utils.run_folder import FORMAT

SHOWN_KEYS = 5
FORMATS = ("face-training-checkpoint-", "face-backbone-")  # of this program's other versions, too
# FaceX-Zoo's `crop_eye` trains on the upper 60 rows of 112×112; its last feature map is that of
# 64×112.
HALF_FACE = [64, 112]


@dataclass(frozen=True)
class Weights:
    """A network's weights under this project's names, with the dtypes of the file.

    description: how to build it, and whose it is. head: class weights C×D, where the file has any.
    head_by_columns: see `lineages.Lineage`.
    """

    path: Path
    description: Description
    state: dict[str, Tensor]
    head: Tensor | None
    head_by_columns: bool = False


def load_backbone(
    path: str | Path,
    name: str | None = None,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
    which: str = "averaged",
) -> nn.Module:
    """Read the backbone of a file, whoever wrote it; recognised by its tensors' names and shapes.

    path: the file, or the name of one in the folder Pretrained.
    name: the backbone that it must be, or the key of the lineage that it is from
        (`lineages.LINEAGES`), which decides where two of them look alike; None takes what it is.
    channel_order, input_mean, input_scale: instead of what the lineage trained with; mean and scale
        in pixel values, 0..255.
    which: of a run's checkpoint with a moving average of its weights, "averaged" or "raw"; in any
        other file there is one kind of weights, and this is not looked at.

    Returns it in evaluation mode on the CPU, in float32, with its `preprocessing`; `lineage` says
    where it is from. Raises CheckpointError for a file that can't be read without running code,
    that holds no network known here, or another one than `name`.
    """
    weights = read_weights(path, name, which)
    return build(weights, channel_order, input_mean, input_scale)


def read_weights(path: str | Path, name: str | None = None, which: str = "averaged") -> Weights:
    """Read and recognise a file, as `load_backbone` does, without building the network."""
    lineage = find_lineage(name) if name else None
    if name and lineage is None and name not in BACKBONES:
        keys = ", ".join(row.key for row in LINEAGES)
        raise CheckpointError(
            f"{name!r} is neither a backbone ({', '.join(BACKBONES)}) nor a lineage ({keys})."
        )
    path = find_weights(path)
    contents = read_file(path)
    if contents.get("format") in (FORMAT, BACKBONE_FORMAT):
        weights = own_weights(path, contents, lineage, which)
    elif str(contents.get("format")).startswith(FORMATS):
        raise CheckpointError(
            f"checkpoint {path} has format {shortened(contents['format'])!r}; this version of the "
            f"program reads {FORMAT} and {BACKBONE_FORMAT}."
        )
    else:
        weights = _foreign_weights(path, contents, lineage)
    found = weights.description.architecture["name"]
    if name in BACKBONES and name != found:
        raise CheckpointError(f"checkpoint {path} holds a {found}, not a {name}.")
    return weights


def build(
    weights: Weights,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
) -> nn.Module:
    """The network of weights that were read, as `load_backbone` returns it.

    Raises CheckpointError if the weights do not fit the architecture that the file describes.
    """
    try:
        with torch.device("meta"):  # fresh weights would take longer than reading these
            backbone = rebuild_backbone(weights.description.architecture)
    except ArchitectureError as error:
        raise _misfit(weights.path, str(error)) from None
    if differences := compare(weights.state, shapes_of(backbone)):
        raise _misfit(weights.path, "; ".join(differences))
    backbone.to_empty(device="cpu")
    for name, buffer in backbone.named_buffers():
        if name.endswith(COUNTER):  # old files do not have it
            buffer.zero_()
    backbone.load_state_dict(weights.state, strict=False)
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
    return (
        f"{what}, of {backbone.lineage}; input "
        f"{size[0]}×{size[1]} {given.channel_order}, (pixel - {given.mean:g}) / {given.scale:g}"
    )


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


def _foreign_weights(path: Path, tree: dict[str, Any], wanted: Lineage | None) -> Weights:
    """The weights of another code base, from what its file holds."""
    contents = open_contents(tree)
    rows = (wanted,) if wanted else LINEAGES
    found = matches(contents.network, rows)
    if not found:
        raise CheckpointError(
            _other_lineage(path, contents, wanted) or _unknown(path, contents, tree, rows)
        )
    lineage, match = most_likely(found, contents)
    architecture = {**match.architecture, "variant": dict(match.architecture["variant"])}
    architecture["preprocessing"] = lineage.preprocessing()
    if lineage.normalise:
        architecture["variant"]["normalise"] = True
    if lineage.key == "cvlface" and (order := color_space(path.with_suffix(".yaml"))):
        architecture["preprocessing"]["channel_order"] = order
    if lineage.key == "facex_zoo" and architecture["input_size"] == HALF_FACE:
        raise CheckpointError(
            f"checkpoint {path} holds a network of {lineage.title} for half faces, the upper 60 "
            f"rows of a photo; that can't be read here: height and width must be multiples of 16."
        )
    head = class_weights(contents.head, architecture["feature_dim"], lineage.head_by_columns)
    description = Description(architecture, lineage.title)
    return Weights(path, description, match.state, head, lineage.head_by_columns)


def _other_lineage(path: Path, contents: Contents, wanted: Lineage | None) -> str:
    """The error where the file is of another lineage than the one asked for; else ""."""
    found = matches(contents.network) if wanted else []
    if not found:
        return ""
    lineage, match = most_likely(found, contents)
    return (
        f"checkpoint {path} holds no network of {wanted.title}: its tensors are those of "
        f"{lineage.title}'s {_kind(match)}. Leave --lineage out, or say {lineage.key}."
    )


def _unknown(
    path: Path, contents: Contents, tree: dict[str, Any], rows: tuple[Lineage, ...]
) -> str:
    """The error for a file of no known network: what it holds, and which network is nearest."""
    text = (
        f"checkpoint {path} holds no network that is known here. Looked for: "
        f"{', '.join(row.title for row in rows)}. "
    )
    keys = list(contents.network) or list(map(str, tree))
    text += f"The file's first keys: {', '.join(map(shortened, keys[:SHOWN_KEYS]))}. "
    if not contents.network:
        return text + "None of them is a tensor."
    if len(contents.network) == 1 and next(iter(contents.network.values())).ndim == 2:
        return text + "That is what a head's file holds; the network's is another file beside it."
    closest = nearest(contents.network, rows)
    if closest is None:
        return text + "No known network has any tensor of these names."
    lineage, match = closest
    return text + (
        f"Nearest: {lineage.title}'s {_kind(match)}, which has names for {len(match.state)} of "
        f"{len(contents.network)} tensors, but {'; '.join(match.differences)}."
    )


def _kind(match: Match) -> str:
    return match.architecture.get("name", match.layout.family)


def _misfit(path: Path, why: str) -> CheckpointError:
    why = shortened(why, 1000)
    return CheckpointError(f"checkpoint {path} does not fit the network that it describes: {why}.")
