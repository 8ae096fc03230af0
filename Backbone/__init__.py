"""Backbones by name: networks that turn a face image into an embedding.

Files, in the order to read them:

preprocessing.py  which input a network expects, and the function that makes it from pixels
mobilefacenet.py  MobileFaceNet, small and fast
resnet_ir.py      ResNet-IR and SE-ResNet-IR, the networks of ArcFace
resnet.py         ResNet with bottleneck units, as face.evoLVe has it
vit.py            ViT, the vision transformers of insightface and CVLface
kprpe.py          KP-RPE: position encoding relative to the face's five points, for ViT
timm_network.py   any network of the package timm
layers.py         attention gates, PReLU with a fast gradient on CPUs, the error for settings

A new backbone is a module with `preprocessing` and `feature_dim`, and a row in `BACKBONES`. Its
docstring's first sentence describes it; a link there, or else the first one of its file, is its
source.
"""

import difflib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from Backbone.layers import ArchitectureError
from Backbone.mobilefacenet import MobileFaceNet
from Backbone.preprocessing import Preprocessing
from Backbone.resnet import UNITS as RESNET_UNITS
from Backbone.resnet import ResNet
from Backbone.resnet_ir import UNITS, ResNetIR
from Backbone.timm_network import PREFIX, TimmNetwork, wrong_timm_name
from Backbone.vit import KPRPE_SIZES, SIZES, KeypointViT, ViT

__all__ = [
    "BACKBONES",
    "PREFIX",
    "ArchitectureError",
    "Preprocessing",
    "build_backbone",
    "describe_backbone",
    "rebuild_backbone",
    "wrong_timm_name",
]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "MobileFaceNet": MobileFaceNet,
    **{f"ResNet{depth}_IR": partial(ResNetIR, depth) for depth in UNITS},
    **{f"SEResNet{depth}_IR": partial(ResNetIR, depth, attention="se") for depth in UNITS},
    **{f"ResNet{depth}": partial(ResNet, depth) for depth in RESNET_UNITS},
    **{f"ViT_{size}": partial(ViT, size) for size in SIZES},
    **{f"ViT_{s}_KPRPE": partial(KeypointViT, s, **given) for s, given in KPRPE_SIZES.items()},
}

_LARGEST_DIM, _LARGEST_SIDE = 2**24, 2**14  # beyond them a tensor's size could overflow


def build_backbone(
    name: str,
    feature_dim: int = 512,
    input_size: tuple[int, int] = (112, 112),
    **variant: Any,
) -> nn.Module:
    """Build a backbone with fresh weights.

    name: a key of `BACKBONES`, or `timm:NAME` for a network of timm.
    feature_dim: size D of the embedding, above 0.
    input_size: (height, width) in pixels, each divisible by 16.
    variant: further arguments of the network's class, which weights of other projects may need.

    The module maps float N×3×H×W to float N×D, not L2-normalised. Its `preprocessing` turns pixels
    into that input; its `architecture` holds the arguments that it was built with. Raises
    ArchitectureError for an unknown name, or for a size or a variant that the class does not take.
    """
    if name not in BACKBONES and not name.startswith(PREFIX):
        near = difflib.get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ArchitectureError(f"backbone is {name!r}; {hint}Known: {', '.join(BACKBONES)}")
    if not 1 <= feature_dim <= _LARGEST_DIM:
        why = "it must be at least 1" if feature_dim < 1 else "sizes of that network overflow"
        raise ArchitectureError(f"feature_dim is {feature_dim}; {why}")
    if any(side % 16 or not 16 <= side <= _LARGEST_SIDE for side in input_size):
        raise ArchitectureError(
            f"input_size is {input_size}; height and width must be multiples of 16, at most "
            f"{_LARGEST_SIDE}"
        )
    make = BACKBONES.get(name) or partial(TimmNetwork, name)
    arguments = {"feature_dim": feature_dim, "input_size": tuple(input_size), **variant}
    try:  # only checks the arguments: a TypeError inside the constructor would be a bug
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        raise ArchitectureError(f"backbone {name} can't be built with {variant}: {error}") from None
    backbone = make(**arguments)
    backbone.architecture = {
        "name": name,
        "feature_dim": feature_dim,
        "input_size": list(input_size),
        "variant": variant,
    }
    return backbone


def describe_backbone(backbone: nn.Module) -> dict[str, Any]:
    """Plain values from which `rebuild_backbone` builds the same network with fresh weights."""
    preprocessing = backbone.preprocessing
    return {
        **backbone.architecture,
        "preprocessing": {
            "channel_order": preprocessing.channel_order,
            "mean": preprocessing.mean,
            "scale": preprocessing.scale,
        },
    }


def rebuild_backbone(description: dict[str, Any]) -> nn.Module:
    """The inverse of `describe_backbone`. Raises ArchitectureError if a value can't be used."""
    size = tuple(description["input_size"])
    backbone = build_backbone(
        description["name"], description["feature_dim"], size, **description["variant"]
    )
    backbone.preprocessing = Preprocessing(input_size=size, **description["preprocessing"])
    return backbone
