"""The margin losses as their papers write them: angles by acos, logit by logit, differentiable."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from Head import HEADS

COMBINED = (1.2, 0.3, 0.2)
SUB_CENTERS = 3


def arcface(theta: Tensor, m: float | Tensor, easy: bool) -> Tensor:
    if easy:
        return torch.cos(theta + m) if theta.item() < math.pi / 2 else torch.cos(theta)
    if theta.item() + (m.item() if isinstance(m, Tensor) else m) < math.pi:
        return torch.cos(theta + m)
    return torch.cos(theta) - m * torch.sin(torch.as_tensor(m, dtype=theta.dtype))


def psi(angle: Tensor) -> Tensor:
    """SphereFace's ψ of an angle of any size."""
    k = math.floor(angle.item() / math.pi)
    return (-1) ** k * torch.cos(angle) - 2 * k


def target(head, name: str, theta: Tensor, norm: Tensor, image: int, easy: bool) -> Tensor:
    """What stands for cos θ of the image's own class."""
    m, state = HEADS[name].margin, head.method
    if name == "Combined":
        m1, m2, m3 = COMBINED
        return psi(m1 * theta + m2) - m3
    if name == "SphereFace":
        annealing = max(5.0, 1000 / (1 + 0.12 * int(state.iteration)))
        return (annealing * torch.cos(theta) + psi(4 * theta)) / (1 + annealing)
    if name == "AdaFace":
        spread = (float(state.norm_deviation) + 0.001) / 0.333
        q = max(-1.0, min(1.0, (norm.item() - float(state.norm_mean)) / spread))
        return torch.cos((theta - m * q).clamp(0, math.pi)) - (m * q + m)
    if name == "MagFace":
        a = norm.clamp(10, 110)
        return arcface(theta, 0.45 + (0.8 - 0.45) / (110 - 10) * (a - 10), easy)
    if name.startswith("Elastic"):
        m = float(state._margins[image])
        return arcface(theta, m, easy) if "Arc" in name else torch.cos(theta) - m
    return torch.cos(theta) - m if name == "CosFace" else arcface(theta, m, easy)


def logits(
    head, name: str, x: Tensor, w: Tensor, labels: Tensor, s: float, easy: bool = False
) -> Tensor:
    """N×C from embeddings N×D and class weights (C·K)×D, float64, with the head's statistics."""
    K = SUB_CENTERS if HEADS[name].sub_centers else 1
    rows = []
    for i, own in enumerate(labels.tolist()):
        norm = x[i].norm()
        if name == "Softmax":
            rows.append(torch.stack([x[i] @ row for row in w]))
            continue
        cosines = [(x[i] @ row / (norm * row.norm())).clamp(-1, 1) for row in w]
        nearest = [max(cosines[j : j + K]) for j in range(0, len(w), K)]
        theta = torch.acos(nearest[own])
        row = list(nearest)
        if name == "CurricularFace":
            threshold = math.cos(theta.item() + 0.5)
            t = float(head.method.t)
            row = [c * (t + c) if c.item() > threshold else c for c in nearest]
        row[own] = target(head, name, theta, norm, i, easy)
        rows.append((norm if name == "SphereFace" else s) * torch.stack(row))
    return torch.stack(rows)


def regulariser(name: str, x: Tensor) -> Tensor:
    """MagFace's λ_g·g(a), N; 0 for the others."""
    if name != "MagFace":
        return x.new_zeros(len(x))
    a = x.norm(dim=1).clamp(10, 110)
    return 35 * (a / 110**2 + 1 / a)


def nearest(head, x: Tensor, labels: Tensor) -> Tensor:
    """Whether the own class's cosine (Softmax's logit) is the highest: bool N."""
    w = head.weight.detach()
    if head.normalised:
        x, w = F.normalize(x.detach()), F.normalize(w)
    scores = (x @ w.T).view(len(x), -1, head.sub_centers).amax(2)  # N×C
    return scores.argmax(1) == labels
