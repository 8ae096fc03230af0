"""Backbones from weights files: this project's, and those of every lineage in `lineages.py`.

Nothing in a file is ever executed.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from Backbone import BACKBONES, rebuild_backbone
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
FORMATS = ("face-training-checkpoint-", "face-backbone-")
# FaceX-Zoo's `crop_eye` trains on the upper 60 rows of 112×112; the last map is that of 64×112.
HALF_FACE = [64, 112]


@dataclass(frozen=True)
class Weights:
    """A network's weights under this project's names, as they lie in the file.

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
    channel_order, input_mean, input_scale: instead of what the lineage trained with.
    which: of a run's checkpoint with a moving average of its weights, "averaged" or "raw"; any
        other file has one kind of weights, which it is then.

    Returns it in evaluation mode on the CPU, in float32, with its `preprocessing`; `lineage` says
    where it is from. Raises CheckpointError for a file that can't be read without running code,
    that holds no network known here, or another one than `name`.
    """
    weights = read_weights(path, name, which)
    return build(weights, channel_order, input_mean, input_scale)


def build(
    weights: Weights,
    channel_order: str = "",
    input_mean: float | None = None,
    input_scale: float | None = None,
) -> nn.Module:
    """The network of weights that were read, as `load_backbone` returns it."""
    try:
        with torch.device("meta"):  # fresh weights would take longer than reading these
            backbone = rebuild_backbone(weights.description.architecture)
        differences = compare(weights.state, shapes_of(backbone))
        if differences:
            raise ValueError("; ".join(differences))
        backbone.to_empty(device="cpu")
        for name, buffer in backbone.named_buffers():
            if name.endswith(COUNTER):  # the one that old files do not have
                buffer.zero_()
        backbone.load_state_dict(weights.state, strict=False)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise _broken(weights.path, str(error)) from None
    backbone.preprocessing = override_preprocessing(
        backbone.preprocessing, channel_order, input_mean, input_scale
    )
    backbone.lineage = weights.description.lineage
    return backbone.eval()


def override_preprocessing(preprocessing, channel_order="", input_mean=None, input_scale=None):
    """`Preprocessing` with those values replaced that are given."""
    given = {"channel_order": channel_order or None, "mean": input_mean, "scale": input_scale}
    return dataclasses.replace(preprocessing, **{k: v for k, v in given.items() if v is not None})


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
        weights = _read_foreign(path, open_contents(contents), contents, lineage)
    found = weights.description.architecture["name"]
    if name in BACKBONES and name != found:
        raise CheckpointError(f"checkpoint {path} holds a {found}, not a {name}.")
    return weights


def own_weights(
    path: Path,
    contents: dict[str, Any],
    wanted: Lineage | None = None,
    which: str = "averaged",
) -> Weights:
    """Those in what a checkpoint of a run, or a bare backbone file, holds. Raises CheckpointError
    where something in it is missing or of another type.

    which: "averaged" or "raw", where a run's checkpoint has both.
    """
    check_own(path, contents)
    description = Description(contents["architecture"], contents.get("lineage", OWN))
    if wanted and wanted.title != description.lineage:
        raise CheckpointError(
            f"checkpoint {path} says itself which network it holds, of {description.lineage}, and "
            f"was to be read as {wanted.title}'s; leave --lineage out."
        )
    head = class_weights(contents.get("head", {}), description.architecture["feature_dim"])
    if which == "averaged" and "averaged" in contents:
        averaged = dataclasses.replace(
            description, lineage=f"{description.lineage}, averaged weights"
        )
        return Weights(path, averaged, contents["averaged"]["backbone"], head)
    return Weights(path, description, contents["backbone"], head)


def _read_foreign(
    path: Path, contents: Contents, tree: dict[str, Any], wanted: Lineage | None
) -> Weights:
    rows = (wanted,) if wanted else LINEAGES
    found = matches(contents.network, rows)
    if not found:
        raise CheckpointError(
            _another(path, contents, wanted) or _unknown(path, contents, tree, rows)
        )
    lineage, match = most_likely(found, contents)
    architecture = {
        **match.architecture,
        "variant": {
            **match.architecture["variant"],
            **({"normalise": True} if lineage.normalise else {}),
        },
        "preprocessing": {**lineage.preprocessing(), **_beside(path, lineage)},
    }
    if lineage.key == "facex_zoo" and architecture["input_size"] == HALF_FACE:
        raise CheckpointError(
            f"checkpoint {path} holds a network of {lineage.title} for half faces, the upper 60 "
            f"rows of a photo; that can't be read here: height and width must be multiples of 16."
        )
    head = class_weights(contents.head, architecture["feature_dim"], lineage.head_by_columns)
    description = Description(architecture, lineage.title)
    return Weights(path, description, match.state, head, lineage.head_by_columns)


def _beside(path: Path, lineage: Lineage) -> dict[str, str]:
    """What a CVLface network's model.yaml says of its colours."""
    settings = path.with_suffix(".yaml")
    if lineage.key != "cvlface" or not settings.is_file():
        return {}
    said = color_space(settings)
    return {"channel_order": said} if said else {}


def _another(path: Path, contents: Contents, wanted: Lineage | None) -> str:
    """What to say where the lineage asked for is not this one, but another is; else nothing."""
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
    """What was looked for, what the file holds, and what comes nearest."""
    text = (
        f"checkpoint {path} holds no network that is known here. Looked for: "
        f"{', '.join(row.title for row in rows)}. "
    )
    keys = list(contents.network) or list(map(str, tree))
    text += f"The file's first keys: {', '.join(map(shortened, keys[:SHOWN_KEYS]))}. "
    if not contents.network:
        return text + "None of them is a tensor."
    if len(contents.network) == 1 and next(iter(contents.network.values())).ndim == 2:
        return text + "That is what a head's file holds; the network's lies beside it."
    closest = nearest(contents.network, rows)
    if closest is None:
        return text + "No known network has any tensor of these names."
    lineage, match = closest
    return text + (
        f"Nearest: {lineage.title}'s {_kind(match)}, which has names for {match.known} of "
        f"{len(contents.network)} tensors, but {'; '.join(match.differences)}."
    )


def _kind(match: Match) -> str:
    return match.architecture.get("name", match.layout.family)


def _broken(path: Path, why: str) -> CheckpointError:
    why = shortened(why.splitlines()[-1].strip() if why else "damaged", 1000)
    return CheckpointError(f"checkpoint {path} does not fit the network that it describes: {why}.")


def describe(backbone: nn.Module) -> str:
    """One line on a loaded network: what it is, from whom, and what it is fed."""
    given, size = backbone.preprocessing, backbone.preprocessing.input_size
    variant = "".join(f", {k} {v}" for k, v in backbone.architecture["variant"].items())
    what = f"{backbone.architecture['name']}{variant}, {backbone.feature_dim}-d"
    return (
        f"{what}, of {backbone.lineage}; input "
        f"{size[0]}×{size[1]} {given.channel_order}, (pixel - {given.mean:g}) / {given.scale:g}"
    )
