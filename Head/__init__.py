"""Heads by name: classifiers that turn embeddings and labels into logits and their loss.

Files, in the order to read them:

margin.py      the margins as pure functions of cos θ, such as ArcFace's cos(θ + m)
methods.py     one class for each method: its margin, and what it remembers between batches
classifier.py  the head: the class weights, the logits, the loss of a batch
softmax.py     the loss's softmax in blocks of classes, with its backward pass
sampling.py    a random share of the classes for each step (Partial FC)
sharded.py     a head whose classes are split over processes

A new head is a subclass of `Method` and a row in `HEADS`; its docstring's first paragraph describes
it and names its paper.
"""

import difflib
import math
from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from Head.classifier import MarginHead
from Head.methods import (
    AdaFace,
    ArcFace,
    Combined,
    CosFace,
    CurricularFace,
    ElasticArcFace,
    ElasticArcFacePlus,
    ElasticCosFace,
    ElasticCosFacePlus,
    HeadSettings,
    MagFace,
    Method,
    Softmax,
    SphereFace,
    SubCenterArcFace,
)
from Head.sharded import ShardedHead

__all__ = [
    "HEADS",
    "HeadKind",
    "HeadSettings",
    "build_head",
    "wrong_combined_margin",
    "wrong_margin",
]


@dataclass(frozen=True)
class HeadKind:
    """A row of the table of heads.

    method: what it does to the cosines. margin: the published m. lowest <= m < below.
    scale: the published s; None: each embedding's own norm. scalable: whether s can be another.
    normalised: whether weights and embeddings are L2-normalised. sub_centers: whether a class has
    several weights, of which the nearest counts.
    """

    method: type[Method]
    margin: float = 0.0
    lowest: float = 0.0
    below: float = math.inf
    scale: float | None = 64.0
    scalable: bool = True
    normalised: bool = True
    sub_centers: bool = False


HEADS: dict[str, HeadKind] = {
    "ArcFace": HeadKind(ArcFace, 0.5, below=math.pi),
    "CosFace": HeadKind(CosFace, 0.35),
    "Softmax": HeadKind(Softmax, scale=1.0, scalable=False, normalised=False),
    "SphereFace": HeadKind(SphereFace, 4.0, lowest=1.0, scale=None, scalable=False),
    "Combined": HeadKind(Combined),
    "CurricularFace": HeadKind(CurricularFace, 0.5, below=math.pi),
    "AdaFace": HeadKind(AdaFace, 0.4, below=math.pi),
    "MagFace": HeadKind(MagFace, 0.45, below=math.pi / MagFace.GROWTH),
    "SubCenterArcFace": HeadKind(SubCenterArcFace, 0.5, below=math.pi, sub_centers=True),
    "ElasticArcFace": HeadKind(ElasticArcFace, 0.5, below=math.pi),
    "ElasticCosFace": HeadKind(ElasticCosFace, 0.35),
    "ElasticArcFacePlus": HeadKind(ElasticArcFacePlus, 0.5, below=math.pi),
    "ElasticCosFacePlus": HeadKind(ElasticCosFacePlus, 0.35),
}


def build_head(
    name: str,
    feature_dim: int,
    num_classes: int,
    scale: float | None = None,
    margin: float | None = None,
    group: dist.ProcessGroup | None = None,
    **settings: Any,
) -> MarginHead:
    """Build a head with fresh weights.

    name: a key of `HEADS`. feature_dim: D, the embedding's size. num_classes: C.
    scale: s; None takes the published one. Softmax and SphereFace have none.
    margin: m; None takes the published one. Softmax and Combined have none.
    group: processes to split the classes over, as `ShardedHead` does; None: no split.
    settings: further fields of `HeadSettings`.

    The module has `weight` C×D (C·K × D with sub-centers), and maps (embeddings N×D, labels N) to
    logits N×C with scale and margin applied; its `loss(embeddings, labels)` is the loss of these,
    in less time and memory. Raises ValueError for an unknown name or a value out of range.
    """
    if name not in HEADS:
        near = difflib.get_close_matches(name, HEADS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"head is {name!r}; {hint}Known: {', '.join(HEADS)}")
    if feature_dim < 1 or num_classes < 1:
        raise ValueError(
            f"feature_dim {feature_dim} and num_classes {num_classes} must be at least 1"
        )
    given = HeadSettings(scale, margin, **settings)
    if wrong := wrong_margin(name, margin) or wrong_combined_margin(given.combined_margin):
        raise ValueError(f"margin is {margin}, combined_margin {given.combined_margin}: {wrong}")
    kind = HEADS[name]
    used = replace(
        given,
        scale=kind.scale if scale is None or not kind.scalable else scale,
        margin=kind.margin if margin is None else margin,
        sub_centers=given.sub_centers if kind.sub_centers else 1,
    )
    method = kind.method(used)
    if group is None:
        return MarginHead(feature_dim, num_classes, method, used, kind.normalised)
    return ShardedHead(feature_dim, num_classes, method, used, kind.normalised, group)


def wrong_margin(name: str, margin: float | None) -> str:
    """Why m can't be used with the head of this name; "" where it can."""
    kind = HEADS[name]
    if margin is None or kind.lowest <= margin < kind.below:
        return ""
    if kind.lowest:
        published = f"none takes the published {kind.margin:g}"
        return f"{name}'s is a factor of at least {kind.lowest:g}; {published}."
    if kind.below == math.inf:
        return f"{name}'s is a number of at least 0."
    limit = "π" if kind.below == math.pi else f"{kind.below:.3f}"
    return f"{name}'s is an angle below {limit}, at least 0."


def wrong_combined_margin(margins: tuple[float, ...]) -> str:
    """Why (m1, m2, m3) can't be used; "" where they can."""
    if len(margins) == 3 and all(map(math.isfinite, margins)):
        factor, angle, difference = margins
        if factor > 0 and 0 <= angle < math.pi and difference >= 0:
            return ""
    return "it is m1,m2,m3 of cos(m1·θ + m2) - m3: a factor above 0, an angle below π, at least 0."
