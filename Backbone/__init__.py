"""Backbones by name: networks that turn a face image into an embedding."""

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from Backbone.mobilefacenet import MobileFaceNet
from Backbone.preprocessing import Preprocessing
from Backbone.resnet_ir import UNITS, ResNetIR

__all__ = ["BACKBONES", "Preprocessing", "build_backbone"]

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "MobileFaceNet": MobileFaceNet,
    **{f"ResNet{depth}_IR": partial(ResNetIR, depth) for depth in UNITS},
    **{f"SEResNet{depth}_IR": partial(ResNetIR, depth, se=True) for depth in UNITS},
}


def build_backbone(
    name: str, feature_dim: int = 512, input_size: tuple[int, int] = (112, 112)
) -> nn.Module:
    """Build a backbone with fresh weights.

    name: a key of `BACKBONES`.
    feature_dim: size D of the embedding, above 0.
    input_size: (height, width) in pixels, each divisible by 16.

    The module maps float N×3×H×W to float N×D, not normalised; its `preprocessing` says how
    pixels become that input. Raises ValueError for an unknown name or a size it can't take.
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
    return BACKBONES[name](feature_dim=feature_dim, input_size=tuple(input_size))
