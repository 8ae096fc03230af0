"""Recognition of a network from the names and shapes of its tensors alone.

Each layout of each lineage renames the tensors, reads from their shapes which network it would be
(`READERS`), and compares them with what `build_backbone` makes of that. Values never change; only
some 1×1 convolutions are matrices elsewhere, and change their shape.
"""

import functools
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from Backbone import ArchitectureError, build_backbone
from Backbone.kprpe import BUCKETS
from Backbone.resnet import UNITS as RESNET_UNITS
from Backbone.resnet_ir import BOTTLENECK_UNITS, CHANNELS, EXPANSION, UNITS
from Backbone.vit import DEFAULTS as VIT_DEFAULTS
from Backbone.vit import KPRPE_SIZES
from Backbone.vit import SIZES as VIT_SIZES
from Config.errors import shortened
from Utils.Pretrained_Utils.contents import Contents, State
from Utils.Pretrained_Utils.lineages import LINEAGES, Lineage
from Utils.Pretrained_Utils.lineages.layouts import Counts, Layout, module_names

# BatchNorm counts its batches here; files from before PyTorch 0.4.1 do not have it.
COUNTER = "num_batches_tracked"
# Tensors that files may lack: zeros will do. CVLface's ViT has no vector for masked patches.
OPTIONAL = (COUNTER, "mask_token")
SHOWN = 4


class _ShapeError(Exception):
    """No network of the family has these tensors; the text says why."""


@dataclass(frozen=True)
class Match:
    """How well a layout with these counts fits.

    state: the tensors that it has names for, by this project's. differences: what does not fit, in
    words; empty for a match.
    """

    layout: Layout
    counts: Counts
    architecture: dict[str, Any]
    state: State
    differences: list[str] = field(default_factory=list)


def matches(state: State, lineages: tuple[Lineage, ...] = LINEAGES) -> list[tuple[Lineage, Match]]:
    """Every lineage, with its match, whose network this is."""
    found = []
    known: dict[int, Match | None] = {}  # layouts are shared between lineages
    for lineage in lineages:
        for layout in lineage.layouts:
            if id(layout) not in known:
                known[id(layout)] = _find_match(state, layout)
            if match := known[id(layout)]:
                found.append((lineage, match))
    return found


def _find_match(state: State, layout: Layout) -> Match | None:
    """The match of the smallest network of a layout that fits; None if none does."""
    modules = {_module_of(key) for key in state}
    for counts in layout.counts:
        if modules <= module_names(layout, counts).keys():
            match = examine(state, layout, counts)
            if not match.differences:
                return match
    return None


def most_likely(
    found: list[tuple[Lineage, Match]], contents: Contents, name: str = ""
) -> list[tuple[Lineage, Match]]:
    """Of several lineages with the same tensors, those that fit the rest of the file best.

    name: of the file.
    """

    def fits(lineage: Lineage) -> bool:
        marked = not lineage.marks or not contents.keys.isdisjoint(lineage.marks)
        return (contents.container, contents.prefix) in lineage.places and marked

    def is_bare(lineage: Lineage) -> bool:
        return ("", "") in lineage.places

    # A wrapper that none of them writes tells nothing: as if the network stood alone.
    at_home = fits if any(fits(lineage) for lineage, _ in found) else is_bare

    def rank(row: tuple[Lineage, Match]) -> tuple[bool, ...]:
        lineage, match = row
        named = bool(lineage.files and re.fullmatch(lineage.files, name))
        return at_home(lineage), lineage.builds(match.architecture), named

    best = max(map(rank, found))
    return [row for row in found if rank(row) == best]


def nearest(state: State, lineages: tuple[Lineage, ...] = LINEAGES) -> tuple[Lineage, Match] | None:
    """The lineage and network with names for most of the tensors; None if none has any."""
    candidates = [
        (lineage, examine(state, layout, counts))
        for lineage in lineages
        for layout in lineage.layouts
        for counts in layout.counts
    ]
    best = max(candidates, key=lambda row: (len(row[1].state), -len(row[1].differences)))
    return best if best[1].state else None


def examine(state: State, layout: Layout, counts: Counts) -> Match:
    """Compare tensors with the network that a layout and counts make of them."""
    names = module_names(layout, counts)
    unknown = [key for key in state if _module_of(key) not in names]
    ours = to_ours(state, layout, counts)
    differences = [f"it has no {_listed(unknown)}"] if unknown else []
    try:
        architecture = READERS[layout.family](ours, counts)
        architecture["variant"] |= layout.unseen
        expected = _shapes_by(json.dumps(architecture))
    except (_ShapeError, ArchitectureError) as error:
        return Match(layout, counts, {}, ours, [*differences, str(error)])
    differences += compare(ours, expected)
    differences += _check_settings(layout, architecture)
    return Match(layout, counts, architecture, ours, differences)


@functools.lru_cache(maxsize=64)  # layouts share networks, of which a deep one takes a while
def _shapes_by(text: str) -> dict[str, tuple[int, ...]]:
    architecture = json.loads(text)
    name, feature_dim, input_size = (architecture[k] for k in ("name", "feature_dim", "input_size"))
    with torch.device("meta"):
        return shapes_of(
            build_backbone(name, feature_dim, tuple(input_size), **architecture["variant"])
        )


def _module_of(key: str) -> str:
    """The module of a tensor's name."""
    return key.rpartition(".")[0]


def to_ours(state: State, layout: Layout, counts: Counts) -> State:
    """Rename their tensors to ours; those of modules that the layout does not know are left out."""
    names = module_names(layout, counts)
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if module not in names:
            continue
        ours = names[module]
        if ours in layout.matrices and leaf == "weight" and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[f"{ours}.{leaf}".removeprefix(".")] = tensor
    return renamed


def to_theirs(state: State, layout: Layout, counts: Counts) -> State:
    """The inverse of `to_ours`. Raises KeyError for a module for which they have no name."""
    names = {ours: theirs for theirs, ours in module_names(layout, counts).items()}
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if module in layout.matrices and leaf == "weight":
            tensor = tensor[:, :, 0, 0]
        renamed[f"{names[module]}.{leaf}".removeprefix(".")] = tensor
    return renamed


def _check_settings(layout: Layout, architecture: dict[str, Any]) -> list[str]:
    variant = dict(architecture["variant"])
    attention = variant.pop("attention", "se" if architecture["name"].startswith("SE") else "none")
    wrong = []
    if layout.attentions and attention not in layout.attentions:
        wrong.append(f"its attention is {' or '.join(layout.attentions)}, this is {attention}")
    if layout.variant is not None and variant != layout.variant:
        wrong.append(f"its settings are {dict(layout.variant)}, these are {variant}")
    return wrong


def shapes_of(backbone: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a network."""
    return {key: tuple(tensor.shape) for key, tensor in backbone.state_dict().items()}


def compare(ours: State, expected: dict[str, tuple[int, ...]]) -> list[str]:
    """A text about how tensors differ from a network's; those of `OPTIONAL` may be missing."""
    missing = [k for k in expected if k not in ours and not k.endswith(OPTIONAL)]
    extra = [k for k in ours if k not in expected]
    shapes = [
        f"{key} is {_shape(tensor.shape)} and not {_shape(expected[key])}"
        for key, tensor in ours.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    types = [
        f"{key} is {str(tensor.dtype).removeprefix('torch.')}, not floating point"
        for key, tensor in ours.items()
        if not (tensor.is_floating_point() or key.endswith(COUNTER) or key in extra)
    ]
    differences = []
    if missing:
        differences.append(f"the file lacks {_listed(missing)} (by this project's names)")
    if extra:
        differences.append(f"it has no {_listed(extra)} (by this project's names)")
    return differences + shapes[:SHOWN] + types[:SHOWN]


def _read_resnet_ir(ours: State, counts: Counts) -> dict[str, Any]:
    bottleneck = "layer1.0.conv3.weight" in ours
    table = BOTTLENECK_UNITS if bottleneck else UNITS
    depth = _depth(table, counts)
    attention = _attention(ours)
    variant: dict[str, Any] = {}
    if attention not in ("none", "se"):
        variant["attention"] = attention
    if "layer1.0.downsample.0.weight" not in ours:
        variant["shortcut"] = "pool"
    if not bottleneck and "layer1.0.bn2.weight" not in ours:
        variant["middle_norm"] = False
    if bottleneck:
        variant["bottleneck"] = True
    if "features.weight" not in ours:
        variant["output_affine"] = False
    channels = CHANNELS[-1] * (EXPANSION if bottleneck else 1)
    feature_dim, inputs = _shape_of(ours, "fc.weight", 2)
    return {
        "name": f"{'SE' if attention == 'se' else ''}ResNet{depth}_IR",
        "feature_dim": feature_dim,
        "input_size": [16 * side for side in _sides(inputs, channels)],
        "variant": variant,
    }


def _read_mobilefacenet(ours: State, counts: Counts) -> dict[str, Any]:
    variant: dict[str, Any] = {}
    stem = _shape_of(ours, "conv1.conv.weight", 4)[0]
    width = stem // 64
    if width < 1:
        raise _ShapeError(f"conv1.conv has {stem} channels; expected 64 or a multiple")
    if width != 1:
        variant["width"] = width
    if counts[0] != 1:
        variant["repeats"] = list(counts)
    return {
        "name": "MobileFaceNet",
        "feature_dim": _shape_of(ours, "linear1.conv.weight", 4)[0],
        "input_size": [16 * side for side in _shape_of(ours, "linear7.conv.weight", 4)[2:]],
        "variant": variant,
    }


def _read_resnet(ours: State, counts: Counts) -> dict[str, Any]:
    feature_dim, inputs = _shape_of(ours, "fc.weight", 2)
    height, width = _sides(inputs, CHANNELS[-1] * EXPANSION)
    # A map of 4×4 is what 112×112 leaves, rounded up at each halving.
    size = [112, 112] if (height, width) == (4, 4) else [32 * height, 32 * width]
    return {
        "name": f"ResNet{_depth(RESNET_UNITS, counts)}",
        "feature_dim": feature_dim,
        "input_size": size,
        "variant": {},
    }


def _read_vit(ours: State, counts: Counts) -> dict[str, Any]:
    width, _, *patch = _shape_of(ours, "patch_embed.proj.weight", 4)
    name = next((n for n, (*size, _) in VIT_SIZES.items() if size == [width, *counts]), None)
    if name is None or patch[0] != patch[1] or not patch[0]:
        raise _ShapeError(
            f"no ViT has {counts[0]} blocks of width {width} and patches of {_shape(tuple(patch))}"
        )
    settings = {
        "patch_size": patch[0],
        "mlp_ratio": _shape_of(ours, "blocks.0.mlp.fc1.weight", 2)[0] // width,
    }
    return {
        "name": f"ViT_{name}",
        "feature_dim": _shape_of(ours, "feature.2.weight", 2)[0],
        "input_size": _size_of_patches(_shape_of(ours, "pos_embed", 3)[1], patch[0]),
        "variant": {k: v for k, v in settings.items() if v != VIT_DEFAULTS[k]},
    }


def _read_kprpe(ours: State, counts: Counts) -> dict[str, Any]:
    """Beside a ViT's, one row of its layer for each bucket, head and block."""
    found = _read_vit(ours, counts)
    size = found["name"].removeprefix("ViT_")
    if size not in KPRPE_SIZES:
        raise _ShapeError(f"no network with KP-RPE has {found['name']}'s width and blocks")
    rows = _shape_of(ours, "keypoint_encoding.linear.weight", 2)[0]
    settings = {**VIT_DEFAULTS, **found["variant"], "heads": rows // (BUCKETS * counts[0])}
    usual = {**VIT_DEFAULTS, **KPRPE_SIZES[size]}
    variant = {k: v for k, v in settings.items() if v != usual[k]}
    return {**found, "name": f"ViT_{size}_KPRPE", "variant": variant}


def _size_of_patches(patches: int, side: int) -> list[int]:
    """The input size, a square one or 112×96, that has so many whole patches of that side."""
    largest = side * (math.isqrt(patches) + 1)
    for size in (*((s, s) for s in range(16, largest, 16)), (112, 96)):
        if (size[0] // side) * (size[1] // side) == patches:
            return list(size)
    raise _ShapeError(
        f"pos_embed is for {patches} patches; neither a square image with sides that are multiples "
        f"of 16 nor one of 112×96 has so many of {side}×{side}"
    )


READERS = {
    "ResNetIR": _read_resnet_ir,
    "MobileFaceNet": _read_mobilefacenet,
    "ResNet": _read_resnet,
    "ViT": _read_vit,
    "KPRPE": _read_kprpe,
}


def _depth(table: dict[int, Counts], counts: Counts) -> int:
    for depth, units in table.items():
        if units == counts:
            return depth
    raise _ShapeError(f"no network has {counts} such units in its stages")


def _attention(ours: State) -> str:
    channel = next(
        (n for n, k in (("se", "fc1"), ("cam", "mlp.0")) if f"layer1.0.se.{k}.weight" in ours), ""
    )
    if "layer1.0.sam.conv.weight" not in ours:
        return channel or "none"
    return {"": "sam", "cam": "cbam"}.get(channel, "se and sam")


def _shape_of(ours: State, key: str, axes: int) -> tuple[int, ...]:
    """The shape of one of our tensors, which must have that many axes."""
    if key not in ours:
        raise _ShapeError(f"there is no {key} (by this project's names)")
    shape = tuple(ours[key].shape)
    if len(shape) != axes:
        raise _ShapeError(
            f"{key} is {_shape(shape)} and has not {axes} axes (by this project's names)"
        )
    return shape


def _sides(inputs: int, channels: int) -> tuple[int, int]:
    """Height and width of the last feature map, from the inputs of the layer after it."""
    positions, rest = divmod(inputs, channels)
    side = math.isqrt(positions)
    if rest == 0 and side * side == positions:
        return side, side
    if rest == 0 and positions == 7 * 6:  # the crop of the SphereFace alignment, 112×96
        return 7, 6
    raise _ShapeError(
        f"fc has {inputs} inputs; expected {channels} times height times width of the last "
        f"feature map, a square one or 7×6: from another one the size of the images does not follow"
    )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(map(shortened, keys[:SHOWN])) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
