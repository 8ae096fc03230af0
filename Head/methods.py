"""What the processes of a group have, put together on each of them.

What a method does to the cosines of a head: the part of a margin loss that may have state.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from Head.margin import adaface, arcface, shifted_cosine, sphereface


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in order of their ranks, as many from each; without a group, the
    rows themselves. No gradient passes through it."""
    if group is None:
        return rows
    rows = rows.contiguous()
    every = rows.new_empty((group.size() * len(rows), *rows.shape[1:]))
    dist.all_gather(list(every.chunk(group.size())), rows, group=group)
    return every


class Method(nn.Module):
    """Changes cosines θ before they are multiplied with the scale; this one leaves them alone.

    Everything in it is differentiable in cosines and norms, except where a method says otherwise.

    group: the processes that share a batch out among them, where each calls the method with the
    part it has; running statistics are then those of the whole batch, alike on each. None where
    the method is called with the whole batch.

    micro_batches: how many each batch is split into, each of which updates the state; running
    statistics follow the whole batches as fast as they would without.
    """

    changes_negatives = False  # whether `others` does anything: saves a pass over N×C where not
    group: dist.ProcessGroup | None = None
    micro_batches = 1

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """What stands in place of the targets' cos θ_y: N from cosines N, embedding norms N."""
        return cosine

    def negatives(self, cosines: Tensor, target_cosine: Tensor) -> Tensor:
        """What stands in place of the other classes' cos θ_j, of the shape of cosines.

        target_cosine: cos θ_y of the same images, in a shape that broadcasts against cosines; no
        gradient passes through it.
        """
        return cosines

    def regulariser(self, norm: Tensor) -> Tensor | None:
        """What is added to each image's loss, N from the embeddings' norms N; None: nothing."""
        return None

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        """Take a training batch, or a part of it, into running statistics: N cosines, N norms,
        without gradient.

        Called before `target` and `others` of the same batch, and not again before its backward
        pass, which calls `others` once more.
        """


class TargetMargin(Method):
    """A margin that is a pure function of the target cosine."""

    def __init__(self, margin: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.margin = margin

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return self.margin(cosine)


class SphereFace(Method):
    """Multiplicative angular margin, with an annealing that begins with next to none.

    SphereFace, https://arxiv.org/abs/1704.08063, eq. 7; λ = max(5, 1000 / (1 + 0.12·iteration)) as
    in the authors' training script. It goes with the embedding's own norm as scale.

    m: see `margin.sphereface`. iteration: batches that were trained on, a buffer.
    """

    BASE, GAMMA, POWER, LOWEST = 1000.0, 0.12, 1.0, 5.0

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m
        self._observed = 0  # parts of the batch under way
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        annealing = self.BASE * (1 + self.GAMMA * self.iteration.to(cosine)) ** -self.POWER
        return sphereface(cosine, self.m, annealing.clamp_min(self.LOWEST))

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        if self._observed == 0:
            self.iteration += 1
        self._observed = (self._observed + 1) % self.micro_batches


class CurricularFace(Method):
    """ArcFace whose hard other classes count for more as training gets on: cos θ_j·(t + cos θ_j)
    where cos θ_j > cos(θ_y + m). CurricularFace, https://arxiv.org/abs/2004.00288, section 3.

    t: running mean of the target cosines, a buffer: t = 0.01·mean + 0.99·t, eq. 9.
    """

    changes_negatives = True
    MOMENTUM = 0.01

    def __init__(self, m: float, easy_margin: bool = False) -> None:
        super().__init__()
        self.m = m
        self.easy_margin = easy_margin
        self.register_buffer("t", torch.zeros(()))

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return arcface(cosine, self.m, self.easy_margin)

    def negatives(self, cosines: Tensor, target_cosine: Tensor) -> Tensor:
        hard = cosines > shifted_cosine(target_cosine, self.m)
        return torch.where(hard, cosines * (self.t + cosines), cosines)

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        mean, _ = batch_mean(target_cosine, self.group)
        self.t.lerp_(mean, of_part(self.MOMENTUM, self.micro_batches))


class AdaFace(Method):
    """Margin by image quality, which the norm of the embedding stands for.

    AdaFace, https://arxiv.org/abs/2204.00964, section 3: q = (norm - mean) / (deviation / h),
    kept within -1..1, without gradient. As in the authors' code, norms are cut to 0.001..100
    before, mean and deviation begin with 20 and 100, and follow the batches' by 0.01 a batch.

    norm_mean, norm_deviation: buffers. A batch of one image has no deviation, and changes none.
    """

    H, MOMENTUM, EPSILON = 0.333, 0.01, 1e-3

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_deviation", torch.tensor(100.0))

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        away = self._cut(norm.detach()) - self.norm_mean
        quality = (away / (self.norm_deviation + self.EPSILON) * self.H).clamp(-1, 1)
        return adaface(cosine, self.m, quality)

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        norm = self._cut(norm)
        mean, count = batch_mean(norm, self.group)
        square, _ = batch_mean((norm - mean) ** 2, self.group)
        deviation = (square * count / (count - 1).clamp_min(1)).sqrt()
        momentum = of_part(self.MOMENTUM, self.micro_batches)
        self.norm_mean.lerp_(mean, momentum)
        deviation = torch.where(count > 1, deviation, self.norm_deviation)
        self.norm_deviation.lerp_(deviation, momentum)

    @staticmethod
    def _cut(norm: Tensor) -> Tensor:
        return norm.clamp(0.001, 100)


class MagFace(Method):
    """ArcFace whose margin grows with the embedding's norm a, and a regulariser that rewards norm.

    MagFace, https://arxiv.org/abs/2103.06627, section 3: m(a) is linear from l_m = 0.45 at
    l_a = 10 to u_m = 0.8 at u_a = 110; λ_g·g(a) = 35·(a / u_a² + 1 / a) is added to the loss; a is
    cut to l_a..u_a in both. Margins and regulariser have gradients in a.

    m: l_m; u_m keeps its published ratio to it. easy_margin: the authors' code has it on.
    """

    LOW, HIGH, GROWTH, WEIGHT = 10.0, 110.0, 0.8 / 0.45, 35.0  # l_a, u_a, u_m / l_m, λ_g

    def __init__(self, m: float, easy_margin: bool = False) -> None:
        super().__init__()
        self.m = m
        self.easy_margin = easy_margin

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        share = (self._cut(norm) - self.LOW) / (self.HIGH - self.LOW)  # 0..1
        return arcface(cosine, self.m * (1 + (self.GROWTH - 1) * share), self.easy_margin)

    def regulariser(self, norm: Tensor) -> Tensor:
        norm = self._cut(norm)
        return self.WEIGHT * (norm / self.HIGH**2 + 1 / norm)

    def _cut(self, norm: Tensor) -> Tensor:
        return norm.clamp(self.LOW, self.HIGH)


class ElasticFace(Method):
    """A margin drawn anew for each image and batch, from a normal distribution around m.

    ElasticFace, https://arxiv.org/abs/2109.09416, section III. Out of training the margin is m.

    margin: ArcFace's or CosFace's, of cosines N and margins N. deviation: σ.
    plus: ElasticFace+ of the same section: of a batch's margins, the largest goes to the image
    farthest from its class, and so on.

    The draws follow from torch's seed when this is built and a count of batches, which is in the
    state dict: a resumed run goes on with them. In a group, processes must have as many images.
    """

    def __init__(
        self,
        margin: Callable[[Tensor, float | Tensor], Tensor],
        m: float,
        deviation: float,
        plus: bool = False,
    ) -> None:
        super().__init__()
        self.margin = margin
        self.m = m
        self.deviation = deviation
        self.plus = plus
        self._seed = torch.initial_seed() % 2**63
        self._batches = 0
        self._margins: Tensor | None = None

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        drawn = self._margins if self.training else None
        return self.margin(cosine, self.m if drawn is None else drawn)

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        count = len(target_cosine)
        rank, processes = 0, 1
        if self.group is not None:
            rank, processes = self.group.rank(), self.group.size()
        generator = np.random.default_rng((self._seed, self._batches))
        # All processes draw the same margins, those of the whole batch, and each takes its own.
        drawn = generator.normal(self.m, self.deviation, processes * count)
        margins = torch.from_numpy(drawn).to(target_cosine.dtype)
        margins = margins.to(target_cosine.device, non_blocking=True)
        if self.plus:
            nearest_first = gather_rows(target_cosine, self.group).argsort(descending=True)
            margins = margins.index_copy(0, nearest_first, margins.sort().values)
        self._margins = margins[rank * count : (rank + 1) * count]
        self._batches += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor((self._seed, self._batches))

    def set_extra_state(self, state: Tensor) -> None:
        self._seed, self._batches = state.tolist()


def of_part(momentum: float, parts: int) -> float:
    """The momentum that, applied `parts` times, leaves as much of the old value as this one does
    once."""
    return 1 - (1 - momentum) ** (1 / parts)


def batch_mean(values: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and number of the values on all processes of a group, scalar tensors, alike on each.

    Summed where they are, so that processes may have different numbers of values.
    """
    sums = torch.stack((values.sum(), torch.ones_like(values).sum()))
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums[0] / sums[1], sums[1]
