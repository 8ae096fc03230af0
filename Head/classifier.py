"""The classification head: it owns the class weights, and applies a margin and the scale s."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Head.class_blocks import Classes
from Head.loss import cross_entropy, focal
from Head.margin_softmax import Scores, margin_scores
from Head.methods import Method


@dataclass
class HeadLoss:
    """loss: the batch's mean, a scalar. correct: bool N, whether the target's logit, margin and
    all, is the highest."""

    loss: Tensor
    correct: Tensor


class MarginHead(nn.Module):
    """Logits s·cos θ_j, with a method that changes cosines: s·target(cos θ_y), s·others(cos θ_j).

    feature_dim: D. num_classes: C. scale: s > 0; None takes each embedding's own norm.
    sub_centers: K weights a class, of which the nearest counts.
    normalised: False leaves weights and embeddings as long as they are: a plain linear classifier.
    label_smoothing, focal_gamma: ε and γ of the loss, both 0 unless they are set.
    weight: C·K × D, Glorot's uniform initialisation as the lineage trains.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        scale: float | None,
        method: Method,
        sub_centers: int = 1,
        normalised: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = scale
        self.method = method
        self.sub_centers = sub_centers
        self.normalised = normalised
        self.label_smoothing = 0.0
        self.focal_gamma = 0.0
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, feature_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Map embeddings N×D and labels N (int64, 0..C-1) to logits N×C in the weight's dtype.

        Computed in float32 (the weight's dtype) whatever autocast says: at s = 64 half precision
        would round the logits to steps of 1/32. To train, `loss` needs less time and memory.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            directions, scales, norms = self._inputs(embeddings)
            weight = F.normalize(self.weight) if self.normalised else self.weight
            cosines = F.linear(directions, weight)  # N×CK
            cosines = cosines.view(len(cosines), -1, self.sub_centers).amax(2)  # N×C
            cosine = cosines.gather(1, labels[:, None])  # N×1
            if self.training:
                self.method.observe(cosine.detach()[:, 0], norms.detach())
            targets = self.method.target(cosine[:, 0], norms)[:, None]
            others = self.method.others(cosines, cosine.detach())
            return scales[:, None] * others.scatter(1, labels[:, None], targets)

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The loss of embeddings N×D with labels N, as from `forward`'s logits."""
        with torch.autocast(embeddings.device.type, enabled=False):
            scores = self._scores(embeddings, labels)
            loss = cross_entropy(scores, self.label_smoothing)
            if self.focal_gamma:
                loss = focal(loss, self.focal_gamma)
            return HeadLoss(loss.mean(), scores.target.detach() >= scores.top)

    def _scores(self, embeddings: Tensor, labels: Tensor) -> Scores:
        classes = Classes(self.num_classes, self.sub_centers, self.normalised)
        return margin_scores(
            *self._inputs(embeddings),
            self.weight,
            labels,
            self.method,
            classes,
            with_mean=self.label_smoothing > 0,
        )

    def _inputs(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """directions N×D, scales N and norms N of a batch."""
        embeddings = embeddings.to(self.weight.dtype)
        # An embedding of 0 has no direction; its norm must not be divided by either.
        norms = torch.linalg.vector_norm(embeddings, dim=1).clamp_min(1e-12)
        scales = norms if self.scale is None else torch.full_like(norms, self.scale)
        directions = embeddings / norms[:, None] if self.normalised else embeddings
        return directions, scales, norms
