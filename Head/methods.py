"""How each margin loss changes the cosines of a head, and what it stores between batches.

A method is one small class. `target` replaces cos θ_y, the cosine of an image to its own class, and
`negatives` replaces cos θ_j, those to the other classes; both are applied before the scale s. A
method with only a margin overrides `target` alone:

    class CosFace(Method):
        def target(self, cosine, norm):
            return cosface(cosine, self.m)

and has one row in the table `Head.HEADS`. In the first paragraph of its docstring, the first
sentence says what it does, and a link leads to its paper: `Train.py --list heads` prints both.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from Head.margin import adaface, arcface, combined, cosface, shifted_cosine, sphereface


@dataclass(frozen=True)
class HeadSettings:
    """The settings of a head; each method uses some of them. Raises ValueError out of range.

    scale: s, above 0; None: the published one; SphereFace uses ‖x‖ instead of a scale.
    margin: m; None: the published one. easy_margin: apply angular margins only where
    cos θ > 0. combined_margin: m1, m2 and m3 of Combined. sub_centers: K of SubCenterArcFace.
    label_smoothing: ε, 0 <= ε < 1. focal_gamma: γ >= 0 of focal loss; 0 is cross-entropy.
    sample_rate: share of the classes in the softmax of a step, 0 < rate <= 1, see
    `MarginHead.sample`. sample_seed: the seed of this sampling, >= 0.
    """

    scale: float | None = None
    margin: float | None = None
    easy_margin: bool = False
    combined_margin: tuple[float, ...] = (1.0, 0.3, 0.2)
    sub_centers: int = 3
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    sample_rate: float = 1.0
    sample_seed: int = 0

    def __post_init__(self) -> None:
        for name, fits, allowed in (
            ("scale", self.scale is None or self.scale > 0, "above 0"),
            ("sub_centers", self.sub_centers >= 1, "at least 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1"),
            ("focal_gamma", 0 <= self.focal_gamma < math.inf, "at least 0"),
            ("sample_rate", 0 < self.sample_rate <= 1, "above 0 and at most 1"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {allowed}")
        if self.label_smoothing and self.focal_gamma:
            raise ValueError(
                f"label_smoothing {self.label_smoothing} with focal_gamma {self.focal_gamma}: "
                f"focal loss weighs an image by the probability of its class, and smoothing wants "
                f"that below 1; set one to 0"
            )


class Method(nn.Module):
    """Changes cosines before they are multiplied by the scale; this base class does not change
    them.

    The results are differentiable in cosines and norms unless a method says otherwise.

    group: the processes over which a batch is split, if each calls the method with its own images;
    running statistics are then computed over the whole batch and are equal in all processes. None
    if the method is called with the whole batch.

    micro_batches: the number of micro-batches in a batch. Each of them updates the state; running
    statistics change as fast as they would with undivided batches.
    """

    changes_negatives = False  # True if `negatives` does anything; False saves a pass over N×C
    group: dist.ProcessGroup | None = None
    micro_batches = 1

    def __init__(self, settings: HeadSettings | None = None) -> None:
        super().__init__()
        settings = settings or HeadSettings()
        self.m = settings.margin
        self.easy_margin = settings.easy_margin

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        """The values N that replace cos θ_y, from cosines N and the embeddings' norms ‖x‖, N."""
        return cosine

    def negatives(self, cosines: Tensor, target_cosine: Tensor) -> Tensor:
        """The values that replace cos θ_j of the other classes, in the shape of cosines.

        target_cosine: cos θ_y of the same images, in a shape that broadcasts against cosines; no
        gradient passes through it.
        """
        return cosines

    def regulariser(self, norm: Tensor) -> Tensor | None:
        """The term N that is added to the images' losses, from the norms N; None for no term."""
        return None

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        """Update running statistics with a training batch or micro-batch: N cosines, N norms.

        Called without gradient, before `target` and `negatives` of the same batch. It is not called
        again before the batch's backward pass, which calls `negatives` once more.
        """


class Softmax(Method):
    """w·x with nothing normalised and no margin. Goodfellow, Bengio, Courville: "Deep Learning",
    section 6.2.2.3, https://www.deeplearningbook.org."""


class ArcFace(Method):
    """cos(θ + m). ArcFace, https://arxiv.org/abs/1801.07698."""

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return arcface(cosine, self.m, self.easy_margin)


class SubCenterArcFace(ArcFace):
    """ArcFace with K weights a class, of which the nearest counts. So mislabelled images gather at
    another weight than the rest. Sub-center ArcFace, ECCV 2020,
    https://doi.org/10.1007/978-3-030-58621-8_43."""


class CosFace(Method):
    """cos θ - m. CosFace, https://arxiv.org/abs/1801.09414."""

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return cosface(cosine, self.m)


class Combined(Method):
    """cos(m1·θ + m2) - m3. ArcFace, https://arxiv.org/abs/1801.07698, eq. 4."""

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.margins = settings.combined_margin

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        m1, m2, m3 = self.margins
        return combined(cosine, m1, m2, m3)


class SphereFace(Method):
    """Multiplicative angular margin, with an annealing that begins with almost no margin.
    SphereFace, https://arxiv.org/abs/1704.08063, eq. 7.

    λ = max(5, 1000 / (1 + 0.12·iteration)) as
    in the authors' training script. The scale is the embedding's own norm.

    m: see `margin.sphereface`. iteration: number of batches trained on, a buffer.
    """

    BASE, GAMMA, POWER, LOWEST = 1000.0, 0.12, 1.0, 5.0

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self._micro_batches_done = 0  # of the current batch
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        annealing = self.BASE * (1 + self.GAMMA * self.iteration.to(cosine)) ** -self.POWER
        return sphereface(cosine, self.m, annealing.clamp_min(self.LOWEST))

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        if self._micro_batches_done == 0:
            self.iteration += 1
        self._micro_batches_done = (self._micro_batches_done + 1) % self.micro_batches


class CurricularFace(ArcFace):
    """ArcFace that gives hard negatives more weight as training proceeds. CurricularFace,
    https://arxiv.org/abs/2004.00288, section 3: cos θ_j·(t + cos θ_j) where cos θ_j > cos(θ_y + m).

    t: running mean of the target cosines, a buffer: t = 0.01·mean + 0.99·t, eq. 9.
    """

    changes_negatives = True
    MOMENTUM = 0.01

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.register_buffer("t", torch.zeros(()))

    def negatives(self, cosines: Tensor, target_cosine: Tensor) -> Tensor:
        hard = cosines > shifted_cosine(target_cosine, self.m)
        return torch.where(hard, cosines * (self.t + cosines), cosines)

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        mean, _ = batch_mean(target_cosine, self.group)
        self.t.lerp_(mean, micro_batch_momentum(self.MOMENTUM, self.micro_batches))


class AdaFace(Method):
    """A margin that depends on the image's quality, which is estimated by the embedding's norm.
    AdaFace, https://arxiv.org/abs/2204.00964, section 3.

    q = (norm - mean) / (deviation / h),
    clamped to -1..1, without gradient. As in the authors' code, norms are first clamped to
    0.001..100; mean and deviation start at 20 and 100, and are running means of the batches' values
    with momentum 0.01.

    norm_mean, norm_deviation: buffers. A batch of one image does not change the deviation.
    """

    H, MOMENTUM, EPSILON = 0.333, 0.01, 1e-3

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self.register_buffer("norm_mean", torch.tensor(20.0))
        self.register_buffer("norm_deviation", torch.tensor(100.0))

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        difference = norm.detach().clamp(0.001, 100) - self.norm_mean
        quality = (difference / (self.norm_deviation + self.EPSILON) * self.H).clamp(-1, 1)
        return adaface(cosine, self.m, quality)

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        norm = norm.clamp(0.001, 100)
        mean, count = batch_mean(norm, self.group)
        square, _ = batch_mean((norm - mean) ** 2, self.group)
        deviation = (square * count / (count - 1).clamp_min(1)).sqrt()
        momentum = micro_batch_momentum(self.MOMENTUM, self.micro_batches)
        self.norm_mean.lerp_(mean, momentum)
        deviation = torch.where(count > 1, deviation, self.norm_deviation)
        self.norm_deviation.lerp_(deviation, momentum)


class MagFace(Method):
    """ArcFace whose margin grows with the embedding's norm a, and a regulariser that rewards norm.
    MagFace, https://arxiv.org/abs/2103.06627, section 3.

    m(a) is linear from l_m = 0.45 at
    l_a = 10 to u_m = 0.8 at u_a = 110; λ_g·g(a) = 35·(a / u_a² + 1 / a) is added to the loss; a is
    clamped to l_a..u_a in both. Margins and regulariser have gradients in a.

    m: l_m; u_m keeps its published ratio to it. easy_margin: the authors' code has it on.
    """

    LOW, HIGH, GROWTH, WEIGHT = 10.0, 110.0, 0.8 / 0.45, 35.0  # l_a, u_a, u_m / l_m, λ_g

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        share = (norm.clamp(self.LOW, self.HIGH) - self.LOW) / (self.HIGH - self.LOW)  # 0..1
        return arcface(cosine, self.m * (1 + (self.GROWTH - 1) * share), self.easy_margin)

    def regulariser(self, norm: Tensor) -> Tensor:
        norm = norm.clamp(self.LOW, self.HIGH)
        return self.WEIGHT * (norm / self.HIGH**2 + 1 / norm)


class ElasticFace(Method):
    """Draws a new margin for each image and batch, from a normal distribution around m.

    ElasticFace, https://arxiv.org/abs/2109.09416, section III. In evaluation mode the margin is m.

    DEVIATION: σ. PLUS: ElasticFace+ of the same section: the largest margin of a batch goes to the
    image farthest from its class, and so on.

    The draws follow from torch's seed at construction and the number of batches so far, which are
    in the state_dict: a resumed run draws the same. In a group, processes must have equally many
    images.
    """

    DEVIATION = 0.05
    PLUS = False

    def __init__(self, settings: HeadSettings) -> None:
        super().__init__(settings)
        self._seed = torch.initial_seed() % 2**63
        self._batches = 0
        self._margins: Tensor | None = None

    @property
    def margins(self) -> Tensor | float:
        """The margins of the current batch, N; m in evaluation mode."""
        return self._margins if self.training and self._margins is not None else self.m

    def update_state(self, target_cosine: Tensor, norm: Tensor) -> None:
        count = len(target_cosine)
        rank, world_size = 0, 1
        if self.group is not None:
            rank, world_size = self.group.rank(), self.group.size()
        generator = np.random.default_rng((self._seed, self._batches))
        # All processes draw the same margins, those of the whole batch, and each takes its own.
        drawn = generator.normal(self.m, self.DEVIATION, world_size * count)
        margins = torch.from_numpy(drawn).to(target_cosine.dtype)
        if target_cosine.is_cuda:  # a copy from other memory waits for all that the GPU has to do
            margins = margins.pin_memory()
        margins = margins.to(target_cosine.device, non_blocking=True)
        if self.PLUS:
            nearest_first = gather_rows(target_cosine, self.group).argsort(descending=True)
            margins = margins.index_copy(0, nearest_first, margins.sort().values)
        self._margins = margins[rank * count : (rank + 1) * count]
        self._batches += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor((self._seed, self._batches))

    def set_extra_state(self, state: Tensor) -> None:
        self._seed, self._batches = state.tolist()


class ElasticArcFace(ElasticFace):
    """ArcFace with a margin drawn for each image. ElasticFace, https://arxiv.org/abs/2109.09416."""

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return arcface(cosine, self.margins, self.easy_margin)


class ElasticCosFace(ElasticFace):
    """CosFace with a margin drawn for each image. ElasticFace, https://arxiv.org/abs/2109.09416."""

    def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        return cosface(cosine, self.margins)


class ElasticArcFacePlus(ElasticArcFace):
    """ElasticArcFace with the largest margin of a batch for its hardest image. ElasticFace+,
    https://arxiv.org/abs/2109.09416."""

    DEVIATION, PLUS = 0.0175, True


class ElasticCosFacePlus(ElasticCosFace):
    """ElasticCosFace with the largest margin of a batch for its hardest image. ElasticFace+,
    https://arxiv.org/abs/2109.09416."""

    DEVIATION, PLUS = 0.02, True


def micro_batch_momentum(momentum: float, micro_batches: int) -> float:
    """The momentum for each micro-batch that changes a running mean as much in a whole batch as
    `momentum` would, applied once."""
    return 1 - (1 - momentum) ** (1 / micro_batches)


def batch_mean(values: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and number of the values of all processes of a group: scalar tensors, equal on each.

    Sums are exchanged, so processes may have different numbers of values.
    """
    sums = torch.stack((values.sum(), torch.ones_like(values).sum()))
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums[0] / sums[1], sums[1]


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes in order of rank, equally many from each; without a group, the rows
    themselves. No gradient passes through it."""
    if group is None:
        return rows
    rows = rows.contiguous()
    every = rows.new_empty((group.size() * len(rows), *rows.shape[1:]))
    dist.all_gather(list(every.chunk(group.size())), rows, group=group)
    return every
