"""Backbones by name: networks that turn a face image into an embedding."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from Backbone.mobilefacenet import MobileFaceNet
from Backbone.preprocessing import Preprocessing
from Backbone.resnet import UNITS as RESNET_UNITS
from Backbone.resnet import ResNet
from Backbone.resnet_ir import UNITS, ResNetIR

__all__ = [
    "BACKBONES",
    "Preprocessing",
    "build_backbone",
    "describe_backbone",
    "rebuild_backbone",
]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "MobileFaceNet": MobileFaceNet,
    **{f"ResNet{depth}_IR": partial(ResNetIR, depth) for depth in UNITS},
    **{f"SEResNet{depth}_IR": partial(ResNetIR, depth, attention="se") for depth in UNITS},
    **{f"ResNet{depth}": partial(ResNet, depth) for depth in RESNET_UNITS},
}


def build_backbone(
    name: str,
    feature_dim: int = 512,
    input_size: tuple[int, int] = (112, 112),
    **variant: Any,
) -> nn.Module:
    """Build a backbone with fresh weights.

    name: a key of `BACKBONES`.
    feature_dim: size D of the embedding, above 0.
    input_size: (height, width) in pixels, each divisible by 16.
    variant: further settings of the family's class, which weights from elsewhere may need.

    The module maps float N×3×H×W to float N×D, not normalised; its `preprocessing` says how
    pixels become that input, its `architecture` which arguments built it. Raises ValueError for
    an unknown name, a size or a variant it can't take.
    """
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"backbone is {name!r}; did you mean {nearest!r}? Known: {', '.join(BACKBONES)}"
        )
    if feature_dim < 1:
        raise ValueError(f"feature_dim is {feature_dim}; it must be at least 1")
    if any(side < 16 or side % 16 for side in input_size):
        raise ValueError(f"input_size is {input_size}; height and width must be multiples of 16")
    try:
        backbone = BACKBONES[name](feature_dim=feature_dim, input_size=tuple(input_size), **variant)
    except TypeError as error:
        raise ValueError(f"backbone {name} can't be built with {variant}: {error}") from None
    backbone.architecture = {
        "name": name,
        "feature_dim": feature_dim,
        "input_size": list(input_size),
        "variant": variant,
    }
    return backbone


def describe_backbone(backbone: nn.Module) -> dict[str, Any]:
    """Plain values from which `rebuild_backbone` makes the same network, with fresh weights."""
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
    """The inverse of `describe_backbone`. Raises ValueError where a value can't be used."""
    size = tuple(description["input_size"])
    backbone = build_backbone(
        description["name"], description["feature_dim"], size, **description["variant"]
    )
    backbone.preprocessing = Preprocessing(input_size=size, **description["preprocessing"])
    return backbone
