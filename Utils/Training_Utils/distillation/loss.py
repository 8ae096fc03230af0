"""How far the embeddings of a student are from those of its teacher.

Beside the margin loss, the student learns to give an image the embedding that the teacher gives it.
Hinton et al. (https://arxiv.org/abs/1503.02531) had a network learn another one's outputs, FitNets
(https://arxiv.org/abs/1412.6550) its features, and ShrinkTeaNet (https://arxiv.org/abs/1905.10620)
the directions of face embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How far the embeddings of a batch are from the teacher's, both N×T: a scalar.

    cosine: the mean of 1 - cos(student, teacher), 0..2, which compares directions alone: the
    "angular distillation" in the code of MarginDistillation (https://arxiv.org/abs/2003.02586). It
    is half the squared distance of the L2-normalised embeddings, as ‖a - b‖² = 2 (1 - cos) for
    ‖a‖ = ‖b‖ = 1.
    l2: the mean of (student - teacher)² over images and values, of the embeddings as they are: so
    the student learns their norms too. FitNets (eq. 3) has half the sum over the values; the mean
    does not depend on T.
    """
    if kind == "l2":
        return F.mse_loss(student, teacher)
    return (1 - F.cosine_similarity(student, teacher)).mean()


class Distillation(nn.Module):
    """The loss of student embeddings N×D against those of its teacher, N×T.

    Where D is not T, a linear map of the student's embeddings is compared, which is trained too, as
    the regressor of FitNets is. It has no bias, so that a direction is mapped to a direction. The
    network itself stays as it is: the map is used in training alone. (If the teacher's embeddings
    were mapped instead, the loss would be smallest where that map is 0.)

    kind: of `distillation_loss`. teacher: the digest of its weights, for checkpoints.
    """

    def __init__(self, kind: str, feature_dim: int, teacher_dim: int, teacher: str = "") -> None:
        super().__init__()
        self.kind, self.teacher = kind, teacher
        self.projection: nn.Linear | None = None
        if feature_dim != teacher_dim:
            self.projection = nn.Linear(feature_dim, teacher_dim, bias=False)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, computed in float32 whatever autocast says."""
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.projection is not None:
                embeddings = self.projection(embeddings.to(self.projection.weight.dtype))
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            return distillation_loss(embeddings, targets.to(embeddings.dtype), self.kind)

    def saved(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {"teacher": self.teacher, "weights": self.state_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `saved`. A map that was not saved remains new."""
        if saved["weights"]:
            self.load_state_dict(saved["weights"])
