"""Heads by name: classifiers that turn embeddings and labels into logits for cross-entropy."""

import difflib
import math
from collections.abc import Callable
from functools import partial

from Head.classifier import MarginHead
from Head.margin import arcface, cosface
from Head.methods import Method, TargetMargin

__all__ = ["DEFAULT_MARGIN_SIZE", "HEADS", "build_head"]

# The published margins m; Softmax has none.
DEFAULT_MARGIN_SIZE = {"ArcFace": 0.5, "CosFace": 0.35, "Softmax": 0.0}


def _arcface(
    feature_dim: int, num_classes: int, scale: float, margin: float, easy_margin: bool
) -> MarginHead:
    if not 0 <= margin < math.pi:
        raise ValueError(f"the margin of ArcFace is {margin}; it is an angle, 0 <= m < π radians")
    function = partial(arcface, m=margin, easy_margin=easy_margin)
    return MarginHead(feature_dim, num_classes, scale, TargetMargin(function))


def _cosface(
    feature_dim: int, num_classes: int, scale: float, margin: float, easy_margin: bool
) -> MarginHead:
    return MarginHead(feature_dim, num_classes, scale, TargetMargin(partial(cosface, m=margin)))


def _softmax(
    feature_dim: int, num_classes: int, scale: float, margin: float, easy_margin: bool
) -> MarginHead:
    return MarginHead(feature_dim, num_classes, 1.0, Method(), normalised=False)


HEADS: dict[str, Callable[..., MarginHead]] = {
    "ArcFace": _arcface,
    "CosFace": _cosface,
    "Softmax": _softmax,
}


def build_head(
    name: str,
    feature_dim: int,
    num_classes: int,
    scale: float = 32.0,
    margin: float | None = None,
    easy_margin: bool = False,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> MarginHead:
    """Build a head with fresh weights.

    name: a key of `HEADS`.
    feature_dim: D, the embedding's size. num_classes: C. scale: s, above 0.
    margin: m; None takes the published one (`DEFAULT_MARGIN_SIZE`).
    easy_margin: ArcFace only: apply the margin only where cos θ > 0.
    label_smoothing: ε, 0 <= ε < 1. focal_gamma: γ >= 0 of focal loss; 0 is cross-entropy.

    The module has `weight` C×D, and maps (embeddings N×D, labels N) to logits N×C with scale and
    margin applied; its `loss(embeddings, labels)` is the loss of these, in less time and memory.
    Raises ValueError for an unknown name or a value out of range.
    """
    if name not in HEADS:
        nearest = difflib.get_close_matches(name, HEADS, n=1, cutoff=0.0)[0]
        raise ValueError(f"head is {name!r}; did you mean {nearest!r}? Known: {', '.join(HEADS)}")
    if feature_dim < 1 or num_classes < 1:
        raise ValueError(f"feature_dim {feature_dim} and num_classes {num_classes} must be >= 1")
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to below 1")
    if not 0 <= focal_gamma < math.inf:
        raise ValueError(f"focal_gamma is {focal_gamma}; it must be 0 or above")
    if margin is None:
        margin = DEFAULT_MARGIN_SIZE[name]
    head = HEADS[name](feature_dim, num_classes, scale, margin, easy_margin)
    head.label_smoothing, head.focal_gamma = label_smoothing, focal_gamma
    return head
