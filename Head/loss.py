"""Losses of an image from its scores over the classes."""

import torch
from torch import Tensor

from Head.margin_softmax import Scores


def cross_entropy(scores: Scores, label_smoothing: float = 0.0) -> Tensor:
    """-log p_y of N images; with smoothing ε the target is 1 - ε + ε/C, and ε/C for each other
    class (https://arxiv.org/abs/1512.00567, section 7), for which scores need their mean."""
    loss = scores.log_sum - scores.target
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (scores.log_sum - scores.mean)
    return loss


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """(1 - p)^γ·(-log p) of N images' cross-entropies, each from its own p = exp(-cross-entropy).

    Focal loss without class weights, https://arxiv.org/abs/1708.02002, eq. 4; γ >= 0.
    """
    # At p = 1 the power of 0 has no finite slope for γ < 1.
    other = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
    return other**gamma * cross_entropy
