"""Margins as pure functions of the target cosine.

Each takes cos θ, the cosine between an embedding and the weight of its own class (float, any
shape, -1..1), and returns a tensor of the same shape that replaces it in the logits, before the
scale s. A margin m is a number, or a tensor of the cosine's shape where each image has its own.

Values and derivatives are finite even for cosines of exactly ±1, where d θ / d cos θ is infinite:
see `arcface`.
"""

import math

import torch
from torch import Tensor


def arcface(cosine: Tensor, m: float | Tensor, easy_margin: bool = False) -> Tensor:
    """Additive angular margin, cos(θ + m). ArcFace, https://arxiv.org/abs/1801.07698, eq. 3.

    m: in radians, 0 <= m < π. Past θ = π - m, where cos(θ + m) would rise again, the lineage's
    continuation cos θ - m·sin m is used; with `easy_margin` the margin is applied only where
    cos θ > 0, and cos θ is kept elsewhere.

    The derivative with respect to cos θ, sin(θ + m) / sin θ, is infinite at θ = 0. Because of the
    clamp in `_sine`, sin θ has no gradient there, so the gradient of the embedding, which is the
    product with d cos θ = 0, is 0 and not 0·∞ = NaN. Close to θ = 0 or π, float32 stores cos θ too
    coarsely to give its angle: below θ = 0.001 the gradient is finite, but only a few of its
    digits are right.
    """
    shifted = shifted_cosine(cosine, m)
    if easy_margin:
        return torch.where(cosine > 0, shifted, cosine)
    cos_m, sin_m = _cosine_and_sine(m)
    return torch.where(cosine > -cos_m, shifted, cosine - m * sin_m)  # cos θ > cos(π - m)


def cosface(cosine: Tensor, m: float | Tensor) -> Tensor:
    """Additive cosine margin, cos θ - m. CosFace, https://arxiv.org/abs/1801.09414, eq. 4."""
    return cosine - m


def sphereface(cosine: Tensor, m: float, annealing: float | Tensor = 0.0) -> Tensor:
    """Multiplicative margin, (λ·cos θ + ψ(mθ)) / (1 + λ).

    SphereFace, https://arxiv.org/abs/1704.08063, eq. 7, and its appendix on λ.

    m: m >= 1; the paper's are whole numbers. annealing: λ >= 0.
    """
    return (annealing * cosine + _falling_cosine(m * angle(cosine))) / (1 + annealing)


def combined(cosine: Tensor, m1: float, m2: float, m3: float) -> Tensor:
    """All three margins, cos(m1·θ + m2) - m3. ArcFace, https://arxiv.org/abs/1801.07698, eq. 4.

    m1 > 0, 0 <= m2 < π in radians. Where the angle m1·θ + m2 passes π and its cosine would rise
    again, SphereFace's continuation ψ is used. (The authors' code lets it rise.)
    """
    return _falling_cosine(m1 * angle(cosine) + m2) - m3


def adaface(cosine: Tensor, m: float, quality: Tensor) -> Tensor:
    """Margin of the image's quality, cos(θ - m·q) - (m + m·q).

    AdaFace, https://arxiv.org/abs/2204.00964, section 3.

    quality: q, the standardised norm, -1..1. The angle is clamped to 0..π, as in the authors' code:
    otherwise the logit of a good image would fall as the image approaches its class.
    """
    return torch.cos((angle(cosine) - m * quality).clamp(0, math.pi)) - (m + m * quality)


def shifted_cosine(cosine: Tensor, m: float | Tensor) -> Tensor:
    """cos(θ + m), without a continuation past π."""
    cos_m, sin_m = _cosine_and_sine(m)
    return cosine * cos_m - _sine(cosine) * sin_m


def angle(cosine: Tensor) -> Tensor:
    """θ in radians, 0..π, with a slope of 0 where the true one is infinite, at 0 and π."""
    return torch.atan2(_sine(cosine), cosine)


def _sine(cosine: Tensor) -> Tensor:
    # Near c = ±1, (1 - c)(1 + c) is more precise than 1 - c².
    sine_squared = (1.0 - cosine) * (1.0 + cosine)
    return sine_squared.clamp_min(torch.finfo(cosine.dtype).tiny).sqrt()


def _falling_cosine(angle: Tensor) -> Tensor:
    """ψ: cos φ for φ up to π, then (-1)^k·cos φ - 2k with k = ⌊φ / π⌋, which continues to fall
    without a jump. SphereFace, https://arxiv.org/abs/1704.08063, below eq. 7."""
    half_turns = torch.floor(angle.detach() / math.pi)
    return (1 - 2 * half_turns.remainder(2)) * torch.cos(angle) - 2 * half_turns


def _cosine_and_sine(m: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    return (m.cos(), m.sin()) if isinstance(m, Tensor) else (math.cos(m), math.sin(m))
