"""Heads by name: classifiers that turn embeddings and labels into logits for cross-entropy."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from Head.classifier import MarginHead
from Head.margin import arcface, combined, cosface
from Head.methods import (
    AdaFace,
    CurricularFace,
    ElasticFace,
    MagFace,
    Method,
    SphereFace,
    TargetMargin,
)
from Head.sharded import ShardedHead

__all__ = [
    "HEADS",
    "HeadKind",
    "build_head",
    "wrong_combined_margin",
    "wrong_margin",
]


@dataclass(frozen=True)
class MarginOptions:
    """m, easy_margin and (m1, m2, m3), of which a method takes what it has."""

    m: float
    easy_margin: bool
    combined: tuple[float, ...]


@dataclass(frozen=True)
class HeadKind:
    """What is behind a head's name.

    method: what it does to the cosines. margin: the published m. lowest, below: the limits of m.
    scale: the published s; None: each embedding's own norm. scalable: whether s can be another.
    normalised: whether weights and embeddings are. sub_centers: whether a class has several.
    """

    method: Callable[[MarginOptions], Method]
    margin: float = 0.0
    lowest: float = 0.0
    below: float = math.inf
    scale: float | None = 64.0
    scalable: bool = True
    normalised: bool = True
    sub_centers: bool = False


def _arcface(options: MarginOptions) -> Method:
    return TargetMargin(partial(arcface, m=options.m, easy_margin=options.easy_margin))


def _combined(options: MarginOptions) -> Method:
    m1, m2, m3 = options.combined
    return TargetMargin(partial(combined, m1=m1, m2=m2, m3=m3))


def _elastic_arcface(options: MarginOptions, deviation: float, plus: bool = False) -> Method:
    margin = partial(arcface, easy_margin=options.easy_margin)
    return ElasticFace(margin, options.m, deviation, plus)


def _elastic_cosface(options: MarginOptions, deviation: float, plus: bool = False) -> Method:
    return ElasticFace(cosface, options.m, deviation, plus)


HEADS: dict[str, HeadKind] = {
    "ArcFace": HeadKind(_arcface, 0.5, below=math.pi),
    "CosFace": HeadKind(lambda options: TargetMargin(partial(cosface, m=options.m)), 0.35),
    "Softmax": HeadKind(lambda options: Method(), scale=1.0, scalable=False, normalised=False),
    "SphereFace": HeadKind(
        lambda options: SphereFace(options.m), 4.0, lowest=1.0, scale=None, scalable=False
    ),
    "Combined": HeadKind(_combined),
    "CurricularFace": HeadKind(
        lambda options: CurricularFace(options.m, options.easy_margin), 0.5, below=math.pi
    ),
    "AdaFace": HeadKind(lambda options: AdaFace(options.m), 0.4, below=math.pi),
    "MagFace": HeadKind(
        lambda options: MagFace(options.m, options.easy_margin),
        0.45,
        below=math.pi / MagFace.GROWTH,
    ),
    # ArcFace with K weights a class, of which the nearest counts, so that mislabelled images
    # gather at another one: Sub-center ArcFace, ECCV 2020
    # (https://doi.org/10.1007/978-3-030-58621-8_43).
    "SubCenterArcFace": HeadKind(_arcface, 0.5, below=math.pi, sub_centers=True),
    "ElasticArcFace": HeadKind(partial(_elastic_arcface, deviation=0.05), 0.5, below=math.pi),
    "ElasticCosFace": HeadKind(partial(_elastic_cosface, deviation=0.05), 0.35),
    "ElasticArcFacePlus": HeadKind(
        partial(_elastic_arcface, deviation=0.0175, plus=True), 0.5, below=math.pi
    ),
    "ElasticCosFacePlus": HeadKind(partial(_elastic_cosface, deviation=0.02, plus=True), 0.35),
}


def build_head(
    name: str,
    feature_dim: int,
    num_classes: int,
    scale: float | None = None,
    margin: float | None = None,
    easy_margin: bool = False,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    group: dist.ProcessGroup | None = None,
    sample_rate: float = 1.0,
    sample_seed: int = 0,
    combined_margin: tuple[float, ...] = (1.0, 0.3, 0.2),
    sub_centers: int = 3,
) -> MarginHead:
    """Build a head with fresh weights.

    name: a key of `HEADS`.
    feature_dim: D, the embedding's size. num_classes: C.
    scale: s, above 0; None takes the published one. Softmax and SphereFace have none.
    margin: m; None takes the published one. Softmax and Combined have none.
    easy_margin: of angular margins: apply them only where cos θ > 0.
    label_smoothing: ε, 0 <= ε < 1. focal_gamma: γ >= 0 of focal loss; 0 is cross-entropy.
    group: processes to split the classes over, as `ShardedHead` does; None: all are here.
    sample_rate: share of the classes that a step is restricted to, 0 < rate <= 1, see
    `MarginHead.sample`. sample_seed: of the draws, >= 0.
    combined_margin: m1, m2 and m3 of Combined; sub_centers: K of SubCenterArcFace; the published.

    The module has `weight` C×D (C·K × D with sub-centers), and maps (embeddings N×D, labels N) to
    logits N×C with scale and margin applied; its `loss(embeddings, labels)` is the loss of these,
    in less time and memory. Raises ValueError for an unknown name or a value out of range.
    """
    if name not in HEADS:
        nearest = difflib.get_close_matches(name, HEADS, n=1, cutoff=0.0)[0]
        raise ValueError(f"head is {name!r}; did you mean {nearest!r}? Known: {', '.join(HEADS)}")
    _check_sizes(feature_dim, num_classes, scale, sub_centers)
    _check_loss(label_smoothing, focal_gamma, sample_rate)
    if wrong := wrong_margin(name, margin) or wrong_combined_margin(combined_margin):
        raise ValueError(f"the margin is {margin}, the combined one {combined_margin}: {wrong}")
    kind = HEADS[name]
    options = MarginOptions(kind.margin if margin is None else margin, easy_margin, combined_margin)
    make = MarginHead if group is None else partial(ShardedHead, group=group)
    head = make(
        feature_dim,
        num_classes,
        kind.scale if scale is None or not kind.scalable else scale,
        kind.method(options),
        sub_centers if kind.sub_centers else 1,
        kind.normalised,
    )
    head.label_smoothing, head.focal_gamma = label_smoothing, focal_gamma
    head.sample_rate, head.sample_seed = sample_rate, sample_seed
    return head


def wrong_margin(name: str, margin: float | None) -> str:
    """What is wrong with an m for a head of this name, "" where nothing is."""
    kind = HEADS[name]
    if margin is None or kind.lowest <= margin < kind.below:
        return ""
    if kind.lowest:
        published = f"none takes the published {kind.margin:g}"
        return f"{name}'s is a factor from {kind.lowest:g} on; {published}."
    if kind.below == math.inf:
        return f"{name}'s is a number from 0 on."
    limit = "π" if kind.below == math.pi else f"{kind.below:.3f}"
    return f"{name}'s is an angle below {limit}, from 0 on."


def wrong_combined_margin(margins: tuple[float, ...]) -> str:
    """What is wrong with (m1, m2, m3), "" where nothing is."""
    if len(margins) == 3 and all(map(math.isfinite, margins)):
        factor, angle, difference = margins
        if factor > 0 and 0 <= angle < math.pi and difference >= 0:
            return ""
    return "it is m1,m2,m3 of cos(m1·θ + m2) - m3: a factor above 0, an angle below π, at least 0."


def _check_sizes(feature_dim: int, num_classes: int, scale: float | None, sub_centers: int) -> None:
    if feature_dim < 1 or num_classes < 1 or sub_centers < 1:
        raise ValueError(
            f"feature_dim {feature_dim}, num_classes {num_classes} and sub_centers {sub_centers} "
            f"must be >= 1"
        )
    if scale is not None and not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")


def _check_loss(label_smoothing: float, focal_gamma: float, sample_rate: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be from 0 to below 1")
    if not 0 <= focal_gamma < math.inf:
        raise ValueError(f"focal_gamma is {focal_gamma}; it must be 0 or above")
    if label_smoothing and focal_gamma:
        raise ValueError(
            f"label_smoothing {label_smoothing} with focal_gamma {focal_gamma}: focal loss weighs "
            f"an image by the probability of its class, and smoothing wants that below 1; set one "
            f"to 0"
        )
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate is {sample_rate}; it must be above 0 and at most 1")
