"""The head: a classifier that owns the class weights W, its logits, and the loss of a batch.

logit_y = s·T(cos θ_y) and logit_j = s·N(cos θ_j), where T and N are a method's (`Head.methods`).
`forward` computes all N×C logits, and is short enough to read as their definition. Training uses
`loss`, which computes their cross-entropy without that matrix (`Head.softmax`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from Head.methods import HeadSettings, Method
from Head.sampling import ClassSample, sample_classes
from Head.softmax import Classes, Scores, margin_scores

_EPSILON = 1e-12  # smallest norm to divide by, as in F.normalize
_DRAWN_AT_ONCE = 2**22  # values


class HeadLoss(NamedTuple):
    """The loss of N images, and whether each was classified correctly; ties count as correct.

    loss: the batch's mean, a scalar.
    correct: bool N, whether the logit of the image's own class, with the margin, is the highest.
    nearest: bool N, whether its cosine to its own class, without the margin, is the highest: the
        training accuracy in its usual sense. With sub-centers the nearest one counts; in a head
        that is not normalised, the logit counts.
    """

    loss: Tensor
    correct: Tensor
    nearest: Tensor


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


class MarginHead(nn.Module):
    """A linear classifier of cosines whose method has a margin; `build_head` makes one by name.

    feature_dim: D. num_classes: C. method: T and N, see above.
    settings: s (None: each embedding's own norm), K, ε, γ and how classes are sampled.
    normalised: False leaves weights and embeddings as they are: a plain linear classifier.
    local_classes: the classes, of 0..C-1, that this process has; None: all.
    weight: (local classes)·K × D, with Glorot's uniform initialisation, as in the lineage.
    """

    def __init__(
        self,
        feature_dim: int,
        num_classes: int,
        method: Method,
        settings: HeadSettings,
        normalised: bool = True,
        local_classes: range | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.method = method
        self.normalised = normalised
        self.scale = settings.scale
        self.sub_centers = settings.sub_centers
        self.label_smoothing = settings.label_smoothing
        self.focal_gamma = settings.focal_gamma
        self.sample_rate = settings.sample_rate
        self.sample_seed = settings.sample_seed
        self.group: dist.ProcessGroup | None = None  # the processes that have the other classes
        self.local_classes = range(num_classes) if local_classes is None else local_classes
        self._sampled: ClassSample | None = None
        total = num_classes * self.sub_centers
        self.weight = nn.Parameter(_initial_rows(self.local_rows, total, feature_dim))

    @property
    def local_rows(self) -> range:
        """The rows of the whole C·K × D matrix that `weight` has."""
        classes = self.local_classes
        return range(classes.start * self.sub_centers, classes.stop * self.sub_centers)

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
            target = self.method.target(cosine[:, 0], norms)[:, None]  # N×1
            negatives = self.method.negatives(cosines, cosine.detach())  # N×C
            return scales[:, None] * negatives.scatter(1, labels[:, None], target)

    def loss(self, embeddings: Tensor, labels: Tensor) -> HeadLoss:
        """The loss of embeddings N×D with labels N, as from `forward`'s logits, with the method's
        regulariser.

        If `sample` has drawn classes, the softmax is over these alone. Raises IndexError on the CPU
        for a label outside of 0..C-1; on a GPU this check would wait for the device.
        """
        if self.weight.device.type == "cpu" and len(labels):
            lowest, highest = labels.numpy().min(), labels.numpy().max()
            if lowest < 0 or highest >= self.num_classes:
                raise IndexError(
                    f"labels from {lowest} to {highest}, for a head of {self.num_classes:,} "
                    f"classes, 0 to {self.num_classes - 1:,}"
                )
        with torch.autocast(embeddings.device.type, enabled=False):
            directions, scales, norms = self._inputs(embeddings)
            weight, total, labels = self.weight, self.num_classes, self._local_labels(labels)
            if self._sampled is not None:
                weight, total = self._sampled.weight, self._total_sampled()
                labels = self._sampled.indices_of(labels)
            scores = margin_scores(
                directions,
                scales,
                norms,
                weight,
                labels,
                self.method,
                Classes(total, self.sub_centers, self.normalised, self.group),
                with_mean=self.label_smoothing > 0,
            )
            loss = cross_entropy(scores, self.label_smoothing)  # N
            if self.focal_gamma:
                loss = focal(loss, self.focal_gamma)
            regulariser = self.method.regulariser(norms)
            if regulariser is not None:
                loss = loss + self._own_gradient(regulariser)
            return HeadLoss(loss.mean(), scores.correct, scores.nearest)

    def sample(self, labels: Tensor, step: int) -> None:
        """Draw the classes of a step: `loss` is then restricted to them, and only they are trained.

        labels: of all images that `loss` is called with until the weights change.
        step: the step's number; the classes depend on it, the seed and the labels alone.
        """
        if self.sample_rate < 1:
            seed = (self.sample_seed, step, self.local_classes.start)
            labels = self._local_labels(labels)
            classes = sample_classes(len(self.local_classes), self.sample_rate, labels, seed)
            self._sampled = ClassSample(self.weight, classes, self.sub_centers)

    @contextmanager
    def weight_to_update(self, optimizer: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
        """Yield the weights that have a gradient from `loss`; inside the block the optimizer
        updates them. If they are a sample, it is written back to `weight` after the block, and
        discarded."""
        if self._sampled is None:
            yield self.weight
            return
        with self._sampled.swapped_in(optimizer) as weight:
            yield weight
        self._sampled = None

    def _inputs(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """directions N×D, scales s N and norms ‖x‖ N of a batch."""
        embeddings = embeddings.to(self.weight.dtype)
        # An embedding of 0 has no direction; its norm must not be divided by either.
        norms = torch.linalg.vector_norm(embeddings, dim=1).clamp_min(_EPSILON)
        scales = norms if self.scale is None else torch.full_like(norms, self.scale)
        directions = embeddings / norms[:, None] if self.normalised else embeddings
        return directions, scales, norms

    # `ShardedHead`, whose classes are split over processes, overrides these methods:

    def _local_labels(self, labels: Tensor) -> Tensor:
        """Indices N among the local classes; -1 where a label is not one of them."""
        return labels

    def _total_sampled(self) -> int:
        """How many classes are sampled, in all processes."""
        return len(self._sampled.classes)

    def _own_gradient(self, regulariser: Tensor) -> Tensor:
        """The regulariser N, with a gradient for the images of this process only."""
        return regulariser


def _initial_rows(rows: range, total: int, dim: int) -> Tensor:
    """Some rows of the total×dim matrix that `nn.init.xavier_uniform_` would make.

    The whole matrix is drawn, block by block, so that the rows, and all later random numbers, do
    not depend on how the rows are split over processes. It takes a second for half a million rows
    of 512 values.
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
