"""Margins as pure functions of the target cosine.

Each takes cos θ, the cosine between an embedding and the weight of its own class (float, any
shape, -1..1), and returns what stands in its place in the logits, before the scale s.
"""

import math

import torch
from torch import Tensor


def arcface(cosine: Tensor, m: float, easy_margin: bool = False) -> Tensor:
    """Additive angular margin, cos(θ + m). ArcFace, https://arxiv.org/abs/1801.07698, eq. 3.

    m: in radians, 0 <= m < π. Past θ = π - m, where cos(θ + m) would rise again, the lineage's
    continuation cos θ - m·sin m is used; with `easy_margin` the margin is applied only where
    cos θ > 0, and cos θ is kept elsewhere.

    The derivative with respect to cos θ, sin(θ + m) / sin θ, has no limit at θ = 0, where the
    logit is a cone over the embedding's directions: its gradient there is the cone's centre. The
    clamp makes exactly that of it (sin θ passes no gradient at the pole), so that the gradient
    on the embedding, the product with d cos θ = 0, is 0 and not 0·∞ = NaN. Close to a pole float32
    holds cos θ too coarsely for its angle: below θ = 0.001 the gradient is finite, but few of its
    digits are right.
    """
    # (1 - c)(1 + c) keeps the digits that 1 - c² loses near the poles.
    sine_squared = (1.0 - cosine) * (1.0 + cosine)
    sine = sine_squared.clamp_min(torch.finfo(cosine.dtype).tiny).sqrt()
    shifted = cosine * math.cos(m) - sine * math.sin(m)  # cos(θ + m)
    if easy_margin:
        return torch.where(cosine > 0, shifted, cosine)
    return torch.where(cosine > math.cos(math.pi - m), shifted, cosine - m * math.sin(m))


def cosface(cosine: Tensor, m: float) -> Tensor:
    """Additive cosine margin, cos θ - m. CosFace, https://arxiv.org/abs/1801.09414, eq. 4."""
    return cosine - m
