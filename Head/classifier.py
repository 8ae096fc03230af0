"""Losses of an image from its scores over the classes.

The classification head: it owns the class weights, and applies a margin and the scale s.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from Head.methods import Method
from Head.sampling import ClassSample, sample_classes
from Head.softmax import Classes, Scores, margin_scores


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


class HeadLoss(NamedTuple):
    """The loss of N images, and whether each was classified correctly; ties count as correct.

    loss: the batch's mean, a scalar.
    correct: bool N, whether the logit of the image's own class, with the margin, is the highest.
    nearest: bool N, whether its cosine to its own class, without the margin, is the highest: the
        training accuracy as people read it. Of sub-centers the nearest counts; of a head that is
        not normalised, the logit.
    """

    loss: Tensor
    correct: Tensor
    nearest: Tensor


class MarginHead(nn.Module):
    """Logits s·cos θ_j, with a method that changes cosines: s·target(cos θ_y), s·others(cos θ_j).

    feature_dim: D. num_classes: C. scale: s > 0; None takes each embedding's own norm.
    sub_centers: K weights a class, of which the nearest counts.
    normalised: False leaves weights and embeddings as long as they are: a plain linear classifier.
    label_smoothing, focal_gamma: ε and γ of the loss, both 0 unless they are set.
    sample_rate, sample_seed: the share of the classes that `sample` draws, all unless it is set.
    local_classes: the classes, of 0..C-1, that this process has; None: all.
    weight: (C here)·K × D, Glorot's uniform initialisation as the lineage trains.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        scale: float | None,
        method: Method,
        sub_centers: int = 1,
        normalised: bool = True,
        local_classes: range | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = scale
        self.method = method
        self.sub_centers = sub_centers
        self.normalised = normalised
        self.label_smoothing = 0.0
        self.focal_gamma = 0.0
        self.sample_rate = 1.0
        self.sample_seed = 0
        self.group: dist.ProcessGroup | None = None  # the processes that have the other classes
        self._sampled: ClassSample | None = None
        self.local_classes = range(num_classes) if local_classes is None else local_classes
        total = num_classes * sub_centers
        self.weight = nn.Parameter(_initial_rows(self.local_rows, total, feature_dim))

    @property
    def local_rows(self) -> range:
        """The rows, of the whole C·K × D table, that `weight` has."""
        classes = self.local_classes
        return range(classes.start * self.sub_centers, classes.stop * self.sub_centers)

    def sample(self, labels: Tensor, step: int) -> None:
        """Draw the classes of a step, which `loss` is then restricted to, and which train.

        labels: all that `loss` will be called with until the weights change, however many times.
        step: the step's number; the classes depend on it, the seed and the labels alone.
        """
        if self.sample_rate < 1:
            seed = (self.sample_seed, step, self.local_classes.start)
            labels = self._local_labels(labels)
            classes = sample_classes(len(self.local_classes), self.sample_rate, labels, seed)
            self._sampled = ClassSample(self.weight, classes, self.sub_centers)

    @contextmanager
    def weight_to_update(self, optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
        """Gives the weights that `loss` gave a gradient, which are the optimiser's in here; a
        sample of them is over after it."""
        if self._sampled is None:
            yield self.weight
            return
        with self._sampled.swapped_in(optimizer) as weight:
            yield weight
        self._sampled = None

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
                self.method.update_state(cosine.detach()[:, 0], norms.detach())
            targets = self.method.target(cosine[:, 0], norms)[:, None]
            others = self.method.negatives(cosines, cosine.detach())
            return scales[:, None] * others.scatter(1, labels[:, None], targets)

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The loss of embeddings N×D with labels N, as from `forward`'s logits, with what the
        method adds to it.

        Where `sample` has drawn classes, the softmax runs over these alone.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            directions, scales, norms = self._inputs(embeddings)
            scores = self._scores(directions, scales, norms, labels)
            loss = cross_entropy(scores, self.label_smoothing)
            if self.focal_gamma:
                loss = focal(loss, self.focal_gamma)
            penalty = self.method.regulariser(norms)
            if penalty is not None:
                loss = loss + self._counted_once(penalty)
            return HeadLoss(loss.mean(), scores.correct, scores.nearest)

    def _scores(self, directions: Tensor, scales: Tensor, norms: Tensor, labels: Tensor) -> Scores:
        weight, total = self.weight, self.num_classes
        labels = self._local_labels(labels)
        if self._sampled is not None:
            weight, total = self._sampled.weight, self._total_sampled()
            labels = self._sampled.numbers(labels)
        return margin_scores(
            directions,
            scales,
            norms,
            weight,
            labels,
            self.method,
            Classes(total, self.sub_centers, self.normalised, self.group),
            with_mean=self.label_smoothing > 0,
        )

    def _counted_once(self, penalty: Tensor) -> Tensor:
        """N penalties whose gradients, summed over the group's processes, are those of one."""
        return penalty

    def _local_labels(self, labels: Tensor) -> Tensor:
        """Numbers among the local classes; -1 where it is not one of them."""
        return labels

    def _total_sampled(self) -> int:
        return len(self._sampled.classes)

    def _inputs(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """directions N×D, scales N and norms N of a batch."""
        embeddings = embeddings.to(self.weight.dtype)
        # An embedding of 0 has no direction; its norm must not be divided by either.
        norms = torch.linalg.vector_norm(embeddings, dim=1).clamp_min(1e-12)
        scales = norms if self.scale is None else torch.full_like(norms, self.scale)
        directions = embeddings / norms[:, None] if self.normalised else embeddings
        return directions, scales, norms


_DRAWN_AT_ONCE = 2**22  # numbers


def _initial_rows(rows: range, total: int, dim: int) -> Tensor:
    """Some rows of the total×dim matrix that `nn.init.xavier_uniform_` would make.

    The whole matrix is drawn, a part at a time, so that the rows, and what is drawn after them, are
    the same however the rows are split over processes. It takes a second for half a million rows
    of 512 numbers.
    """
    bound = math.sqrt(3.0) * math.sqrt(2.0 / (total + dim))
    weight = torch.empty(len(rows), dim)
    step = max(1, _DRAWN_AT_ONCE // dim)
    for start in range(0, total, step):
        drawn = torch.empty(min(step, total - start), dim).uniform_(-bound, bound)
        first, last = max(start, rows.start), min(start + len(drawn), rows.stop)
        if first < last:
            weight[first - rows.start : last - rows.start] = drawn[first - start : last - start]
    return weight
