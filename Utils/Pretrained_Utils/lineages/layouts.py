"""How each code base names the modules of its networks: a table for each, their names to ours.

A `Layout` pairs their name of each module with this project's. Tensors inside a module (weight,
bias, running_mean, ...) have the same names everywhere, so a name is a module and a leaf.

In five families: ResNet-IR, MobileFaceNet, ResNet, ViT, and ViT with KP-RPE. The facts were read
from the public repositories: wujiyang/Face_Pytorch, QuasarLight/Pytorch_Face_Recognition,
Xiaoccer/MobileFaceNet_Pytorch, TreB1eN/InsightFace_Pytorch, ZhaoJ9014/face.evoLVe,
deepinsight/insightface (recognition/arcface_torch), IrvingMeng/MagFace, Tencent/TFace,
HuangYG123/CurricularFace, mk-minchul/AdaFace and CVLface, JDAI-CV/FaceX-Zoo.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from Backbone.mobilefacenet import REPEATS
from Backbone.resnet import UNITS as RESNET_UNITS
from Backbone.resnet_ir import BOTTLENECK_UNITS, UNITS
from Backbone.vit import KPRPE_SIZES
from Backbone.vit import SIZES as VIT_SIZES

# How many units each stage has; the family says what a stage is.
Counts = tuple[int, ...]
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Layout:
    """How one code base names the modules of one family of networks.

    family: ResNetIR, MobileFaceNet, ResNet, ViT or KPRPE.
    fixed: their modules outside the units -> ours; "" is the network itself.
    unit: their modules inside a unit -> ours; a network need not have all of them.
    units: from the counts, (their name, our name) of every unit in order.
    counts: what their code can build, smaller networks first.
    attentions: those of `Backbone.layers.ATTENTIONS` that they have; empty: any.
    variant: the family's settings that their networks share, besides attention and
        normalisation; None: any.
    matrices: our 1×1 convolutions whose weights they keep as matrices, without the last two axes.
    unseen: those of the settings in `variant` that no tensor shows.
    """

    family: str
    fixed: Mapping[str, str]
    unit: Mapping[str, str]
    units: Callable[[Counts], list[tuple[str, str]]]
    counts: tuple[Counts, ...]
    attentions: tuple[str, ...] = ()
    variant: Mapping[str, Any] | None = field(default_factory=dict)
    matrices: tuple[str, ...] = ()
    unseen: Mapping[str, Any] = field(default_factory=dict)


def module_names(layout: Layout, counts: Counts) -> dict[str, str]:
    """Their name -> our name of every module that a network of these counts may have."""
    names = dict(layout.fixed)
    for theirs, ours in layout.units(counts):
        for their_part, our_part in layout.unit.items():
            names[f"{theirs}.{their_part}"] = f"{ours}.{our_part}"
    return names


def _own_stages(counts: Counts) -> list[str]:
    return [f"layer{s}.{i}" for s, count in enumerate(counts, 1) for i in range(count)]


def _staged(counts: Counts) -> Pairs:
    return [(name, name) for name in _own_stages(counts)]


def _flat(counts: Counts) -> Pairs:
    """One sequence `body` over all stages."""
    return [(f"body.{i}", name) for i, name in enumerate(_own_stages(counts))]


def _same(names: str) -> dict[str, str]:
    """Modules that have our names: a name each, separated by spaces."""
    return {name: name for name in names.split()}


def _layers(prefix: str, ours: str) -> dict[str, str]:
    """The layers of a Sequential: our name of each, separated by spaces; - has no tensors."""
    return {f"{prefix}.{i}": name for i, name in enumerate(ours.split()) if name != "-"}


def _depths(table: dict[int, Counts], *depths: int) -> tuple[Counts, ...]:
    return tuple(table[depth] for depth in depths)


# --- ResNet-IR -----------------------------------------------------------------------------------

IR_FIXED = {
    **_layers("input_layer", "conv1 bn1 prelu"),
    **_layers("output_layer", "bn2 - - fc features"),
}
SHORTCUT = _layers("shortcut_layer", "downsample.0 downsample.1")
# BatchNorm between the first convolution and PReLU ...
IR_UNIT = {**SHORTCUT, **_layers("res_layer", "bn1 conv1 bn2 prelu conv2 bn3")}
# ... and none.
IR_UNIT_PLAIN = {
    **SHORTCUT,
    **_layers("res_layer", "bn1 conv1 prelu conv2 bn3"),
    "res_layer.5.fc1": "se.fc1",
    "res_layer.5.fc2": "se.fc2",
}
IR_UNIT_BOTTLENECK = {
    **SHORTCUT,
    **_layers("res_layer", "bn1 conv1 bn2 prelu conv2 bn3 prelu2 conv3 bn4"),
}
SE_AT_6 = {"res_layer.6.fc1": "se.fc1", "res_layer.6.fc2": "se.fc2"}
CAM_AT_6 = {"res_layer.6.shared_mlp.0": "se.mlp.0", "res_layer.6.shared_mlp.2": "se.mlp.2"}
SE_BLOCK = {"res_layer.se_block.fc1": "se.fc1", "res_layer.se_block.fc2": "se.fc2"}

CBAMRESNET = Layout(
    "ResNetIR",
    IR_FIXED,
    {**IR_UNIT, **SE_AT_6, **CAM_AT_6, "res_layer.6.conv": "sam.conv"},
    _staged,
    _depths(UNITS, 50, 100, 152),
    attentions=("none", "se", "cam", "sam"),
)
CBAMRESNET_CBAM = replace(
    CBAMRESNET,
    unit={**IR_UNIT, **CAM_AT_6, "res_layer.7.conv": "sam.conv"},
    attentions=("cbam",),
)
# wujiyang's older arcfacenet.py
SERESNET_IR = Layout(
    "ResNetIR",
    IR_FIXED,
    {**IR_UNIT, **SE_AT_6},
    _flat,
    _depths(UNITS, 50, 100, 152),
    attentions=("none", "se"),
    variant={"shortcut": "pool"},
)
# TreB1eN's Backbone, which face.evoLVe and FaceX-Zoo took over
IRSE = replace(SERESNET_IR, unit=IR_UNIT_PLAIN, variant={"shortcut": "pool", "middle_norm": False})
# CurricularFace's; its last BatchNorm has no weight and bias
CURRICULAR = replace(
    IRSE, variant={"shortcut": "pool", "middle_norm": False, "output_affine": False}
)
# AdaFace's, TFace's and CVLface's
ADAFACE = Layout(
    "ResNetIR",
    IR_FIXED,
    {**IR_UNIT, **SE_BLOCK},
    _flat,
    _depths(UNITS, 18, 34, 50, 100),
    attentions=("none", "se"),
    variant={"shortcut": "pool", "output_affine": False},
)
ADAFACE_BOTTLENECK = replace(
    ADAFACE,
    unit={**IR_UNIT_BOTTLENECK, **SE_BLOCK},
    counts=_depths(BOTTLENECK_UNITS, 152, 200),
    # No unit keeps its channels where the stride is 2, so there is no "pool" shortcut.
    variant={"bottleneck": True, "output_affine": False},
)
OWN_FIXED = _same("conv1 bn1 prelu bn2 fc features")
OWN_UNIT = _same(
    "bn1 conv1 bn2 prelu conv2 bn3 prelu2 conv3 bn4 "
    "se.fc1 se.fc2 se.mlp.0 se.mlp.2 sam.conv downsample.0 downsample.1"
)
IRESNET = Layout(
    "ResNetIR",
    OWN_FIXED,
    _same("bn1 conv1 bn2 prelu conv2 bn3 downsample.0 downsample.1"),
    _staged,
    _depths(UNITS, 18, 34, 50, 100, 200),
    attentions=("none",),
)
OWN_RESNET_IR = Layout(
    "ResNetIR",
    OWN_FIXED,
    OWN_UNIT,
    _staged,
    (*UNITS.values(), BOTTLENECK_UNITS[200]),
    variant=None,
)

# --- MobileFaceNet -------------------------------------------------------------------------------
# Counts are the module's `repeats`.


def _own_blocks(counts: Counts) -> list[str]:
    return [f"blocks.{i}" for i in range(3 + sum(counts[1:]))]


def _sequence(prefix: str):
    """All bottlenecks in one sequence of that name."""
    return lambda counts: [(f"{prefix}.{i}", o) for i, o in enumerate(_own_blocks(counts))]


def _runs(single: tuple[str, str, str], repeated: tuple[str, str, str]):
    """Three times a bottleneck that halves the feature map, then a sequence of others."""

    def units(counts: Counts) -> Pairs:
        theirs = []
        for one, many, count in zip(single, repeated, counts[1:], strict=True):
            theirs += [one, *(f"{many}.{i}" for i in range(count))]
        return list(zip(theirs, _own_blocks(counts), strict=True))

    return units


def _stem(prefix: str, counts: Counts) -> Pairs:
    """The bottlenecks that larger networks have instead of the second convolution."""
    return [(f"{prefix}.{i}", f"dw_conv1.{i}") for i in range(counts[0] if counts[0] > 1 else 0)]


def _mbf_units(counts: Counts) -> Pairs:
    """insightface's."""
    runs = _runs(
        ("layers.2", "layers.4", "layers.6"),
        ("layers.3.layers", "layers.5.layers", "layers.7.layers"),
    )
    return _stem("layers.1.layers", counts) + runs(counts)


def _own_units(counts: Counts) -> Pairs:
    return _stem("dw_conv1", counts) + [(name, name) for name in _own_blocks(counts)]


def _named(theirs: str, ours: str) -> dict[str, str]:
    """Convolution, BatchNorm and PReLU of one ConvBlock."""
    return {f"{theirs}.{part}": f"{ours}.{part}" for part in ("conv", "bn", "prelu")}


def _numbered(theirs: str, ours: str) -> dict[str, str]:
    return _layers(theirs, f"{ours}.conv {ours}.bn {ours}.prelu")


OWN_BLOCKS = ("conv1", "dw_conv1", "conv2", "linear7", "linear1")
OWN_MOBILE_FIXED = {k: v for name in OWN_BLOCKS for k, v in _named(name, name).items()}
OWN_MOBILE_UNIT = {k: v for i in range(3) for k, v in _named(f"conv.{i}", f"conv.{i}").items()}
# Eight layers in one Sequential.
MOBILE_UNIT_FLAT = _layers(
    "conv",
    "conv.0.conv conv.0.bn conv.0.prelu conv.1.conv conv.1.bn conv.1.prelu conv.2.conv conv.2.bn",
)

OWN_MOBILEFACENET = Layout(
    "MobileFaceNet",
    OWN_MOBILE_FIXED,
    OWN_MOBILE_UNIT,
    _own_units,
    (REPEATS, (2, 8, 12, 4)),
    variant=None,
)
QUASARLIGHT_MOBILE = Layout(
    "MobileFaceNet",
    {
        **_named("conv3", "conv1"),
        **_named("dw_conv3", "dw_conv1"),
        **_named("conv1", "conv2"),
        **_named("linear_GDConv7", "linear7"),
        **_named("linear_conv1", "linear1"),
    },
    MOBILE_UNIT_FLAT,
    _sequence("bottlenecks"),
    (REPEATS,),
)
WUJIYANG_MOBILE = Layout(
    "MobileFaceNet", OWN_MOBILE_FIXED, MOBILE_UNIT_FLAT, _sequence("blocks"), (REPEATS,)
)
TREB1EN_MOBILE = Layout(
    "MobileFaceNet",
    {
        **_named("conv1", "conv1"),
        **_named("conv2_dw", "dw_conv1"),
        **_named("conv_6_sep", "conv2"),
        **_named("conv_6_dw", "linear7"),
        "linear": "linear1.conv",
        "bn": "linear1.bn",
    },
    {
        **_named("conv", "conv.0"),
        **_named("conv_dw", "conv.1"),
        **_named("project", "conv.2"),
    },
    _runs(("conv_23", "conv_34", "conv_45"), ("conv_3.model", "conv_4.model", "conv_5.model")),
    (REPEATS,),
    matrices=("linear1.conv",),
)
MBF = Layout(
    "MobileFaceNet",
    {
        **_numbered("layers.0.layers", "conv1"),
        **_numbered("layers.1.layers", "dw_conv1"),
        **_numbered("conv_sep.layers", "conv2"),
        **_numbered("features.layers.0.layers", "linear7"),
        "features.layers.2": "linear1.conv",
        "features.layers.3": "linear1.bn",
    },
    {k: v for i in range(3) for k, v in _numbered(f"layers.{i}.layers", f"conv.{i}").items()},
    _mbf_units,
    (REPEATS,),
    variant={"width": 2},
    matrices=("linear1.conv",),
)
MBF_LARGE = replace(MBF, counts=((2, 8, 12, 4),), variant={"width": 4, "repeats": [2, 8, 12, 4]})

# --- ResNet --------------------------------------------------------------------------------------

OWN_RESNET = Layout(
    "ResNet",
    _same("conv1 bn1 bn2 fc features"),
    _same("conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1"),
    _staged,
    tuple(RESNET_UNITS.values()),
)
EVOLVE_RESNET = replace(
    OWN_RESNET, fixed={**_same("conv1 bn1 fc"), "bn_o1": "bn2", "bn_o2": "features"}
)

# --- ViT -----------------------------------------------------------------------------------------
# Counts are the number of blocks. Names are the same everywhere, but for KP-RPE's.


def _vit_blocks(counts: Counts) -> Pairs:
    return [(f"blocks.{i}", f"blocks.{i}") for i in range(counts[0])]


VIT = Layout(
    "ViT",
    {"": "", **_same("patch_embed.proj norm feature.0 feature.1 feature.2 feature.3")},
    _same("norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2"),
    _vit_blocks,
    tuple(dict.fromkeys((depth,) for _, depth, _ in VIT_SIZES.values())),
)
CVLFACE_VIT_SMALL = replace(VIT, counts=((12,),), variant={"patch_size": 8, "mlp_ratio": 5})
CVLFACE_VIT_BASE = replace(
    VIT,
    counts=((24,),),
    variant={"patch_size": 8, "mlp_ratio": 3, "heads": 16},
    unseen={"heads": 16},
)
# The shapes tell the settings; a layout's variant is what differs from the table of backbones.
CVLFACE_KPRPE = replace(
    VIT,
    family="KPRPE",
    fixed={**VIT.fixed, "keypoint_linear": "keypoint_encoding.linear"},
    counts=tuple(dict.fromkeys((VIT_SIZES[size][1],) for size in KPRPE_SIZES)),
)
OWN_KPRPE = replace(CVLFACE_KPRPE, fixed={**VIT.fixed, **_same("keypoint_encoding.linear")})
