"""The softmax of a margin head, in blocks of classes, with a backward pass of its own.

For an image of class y with embedding x, and class weights W_j (ArcFace,
https://arxiv.org/abs/1801.07698, eq. 1 to 4):

    cos θ_j = x·W_j / (‖x‖·‖W_j‖)
    logit_y = s·T(cos θ_y)              T: `Method.target`, which has the margin m
    logit_j = s·N(cos θ_j), j ≠ y       N: `Method.negatives`, the identity for most methods
    log p_y = logit_y - log Σ_j exp(logit_j)

With plain tensor operations the cosines, the logits, their softmax and the gradients would each be
a matrix of N images times C classes, and reading and writing them would take longer than the
arithmetic. Here each block of classes is small enough for the processor's cache, and is finished
while it is there; only the cosines are kept for the backward pass. Products with W are divided by
the norms of its rows, so no normalised copy of W is needed.

Matrices have the classes first, C×N, so that a block of classes is contiguous. Letters of the
shapes: N images, D features, C classes of this process, K sub-centers a class, B classes in a
block. With a process group each process has some of the classes, and all have the same N
embeddings and labels; only maxima, sums and target cosines are exchanged, N values each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from Head.methods import Method

# Values in a block: what a CPU's second-level cache holds, or enough to keep a GPU busy.
BLOCK_ON_CPU = 2**18
BLOCK_ON_GPU = 2**24

_EPSILON = 1e-12  # smallest norm to divide by, as in F.normalize


@dataclass(frozen=True)
class Classes:
    """Describes the rows of the class weights.

    total: number of classes over all processes. sub_centers: K weights a class, of which the
    nearest counts; class c has rows c·K to c·K + K - 1. normalised: whether products are divided by
    the weights' norms. group: the processes that have the other classes; None: there are none.
    """

    total: int
    sub_centers: int = 1
    normalised: bool = True
    group: dist.ProcessGroup | None = None

    def inverse_norms(self, weight: Tensor) -> Tensor:
        """1 / ‖W‖ of each row, (C·K); ones where classes are not normalised."""
        if not self.normalised:
            return torch.ones_like(weight[:, 0])
        return torch.linalg.vector_norm(weight, dim=1).clamp_min_(_EPSILON).reciprocal_()


@dataclass
class Scores:
    """What a loss needs: tensors of N images each, from logits with margin and scale.

    log_sum: log Σ_j exp(logit_j). target: logit_y. mean: the mean logit over all classes if it
    was asked for, otherwise 0. correct, nearest: bool, without gradient, see `HeadLoss`.
    """

    log_sum: Tensor
    target: Tensor
    mean: Tensor
    correct: Tensor
    nearest: Tensor


def margin_scores(
    directions: Tensor,
    scales: Tensor,
    norms: Tensor,
    weight: Tensor,
    labels: Tensor,
    method: Method,
    classes: Classes,
    with_mean: bool = False,
) -> Scores:
    """Scores of N images, differentiable once in directions, scales, norms and weight.

    directions: N×D, x / ‖x‖, or x itself where classes are not normalised. scales: N, the s of
    each image, not 0. norms: N, ‖x‖, for methods that use it. weight: (C·K)×D, W.
    labels: int64 N, the index of y among this process's classes; -1 if another process has it.
    with_mean: whether to compute `Scores.mean`.
    """
    with torch.no_grad():
        inverse = classes.inverse_norms(weight)  # C·K
        cosine, rows = _own_cosines(directions, weight, inverse, labels, classes)  # N, N
        if method.training:
            method.update_state(cosine, norms)
    # From copies of the inputs to logit_y, autograd does the work: N values cost nothing.
    with torch.enable_grad():
        cos, norm, s = inputs = [x.detach().requires_grad_() for x in (cosine, norms, scales)]
        logit = s * method.target(cos, norm)  # N, s·T(cos θ_y)
    targets = _Targets(labels >= 0, rows, cosine, inputs, logit)
    negatives = _Negatives(scales.detach(), labels, cosine, method, classes)
    arguments = (directions, scales, norms, weight, inverse, targets, negatives, with_mean)
    return Scores(*_MarginSoftmax.apply(*arguments))


def _own_cosines(
    directions: Tensor, weight: Tensor, inverse: Tensor, labels: Tensor, classes: Classes
) -> tuple[Tensor, Tensor]:
    """cos θ_y, N, on every process; and the row of W that it is with, N, on the one that has y."""
    cosine, rows = directions.new_zeros(len(labels)), labels
    if len(weight):
        centers = weight.view(-1, classes.sub_centers, weight.shape[1])  # C×K×D
        own = labels.clamp_min(0)
        cosines = torch.einsum("nkd,nd->nk", centers[own], directions)
        cosines *= inverse.view(-1, classes.sub_centers)[own]  # N×K
        nearest = cosines.max(1)
        rows = own * classes.sub_centers + nearest.indices
        cosine = torch.where(labels >= 0, nearest.values, 0)
    if classes.group is not None:
        dist.all_reduce(cosine, group=classes.group)
    return cosine, rows


@dataclass
class _Targets:
    """The images' own classes. Everything is N.

    is_local: bool, whether this process has the class; only there are rows and gradients of use.
    rows: int64, the row of W. cosine: cos θ_y. inputs: cos θ_y, ‖x‖ and s, from which autograd
    has made logit.
    """

    is_local: Tensor
    rows: Tensor
    cosine: Tensor
    inputs: list[Tensor]
    logit: Tensor

    def gradients(self, logit_gradient: Tensor) -> tuple[Tensor, ...]:
        """Of cos θ_y, ‖x‖ and s, N each, from the logits' N; 0 if another process has them."""
        return torch.autograd.grad(
            self.logit,
            self.inputs,
            torch.where(self.is_local, logit_gradient, 0),
            retain_graph=True,
            materialize_grads=True,
        )


@dataclass
class _Negatives:
    """The classes j ≠ y, a block at a time.

    scales: N. labels: N, -1 if another process has the class. target_cosine: N.
    """

    scales: Tensor
    labels: Tensor
    target_cosine: Tensor
    method: Method
    classes: Classes

    def blocks(self, weight: Tensor) -> Iterator[slice]:
        """Rows of W, (B·K) at a time, with a class's sub-centers in one block."""
        values = BLOCK_ON_CPU if weight.device.type == "cpu" else BLOCK_ON_GPU
        K = self.classes.sub_centers
        step = max(1, values // (len(self.labels) * K)) * K
        for start in range(0, len(weight), step):
            yield slice(start, min(start + step, len(weight)))

    def nearest(self, cosines: Tensor) -> Tensor:
        """B×N cosines of the nearest sub-centers, from (B·K)×N."""
        K = self.classes.sub_centers
        return cosines if K == 1 else cosines.view(-1, K, cosines.shape[1]).amax(1)

    def changed(self, nearest: Tensor) -> Tensor:
        """N(cos θ_j), B×N, from B×N."""
        return self.method.negatives(nearest, self.target_cosine)

    def logits(self, cosines: Tensor) -> Tensor:
        """B×N logits s·N(cos θ_j), also at the targets, from (B·K)×N cosines; a new tensor."""
        return self.changed(self.nearest(cosines)) * self.scales

    def fill_targets(self, logits: Tensor, rows: slice, value: float) -> Tensor:
        """Overwrite the targets' places in B×N logits with a value; returns the same tensor."""
        index = self.labels - rows.start // self.classes.sub_centers  # N, within the block
        elsewhere = (index < 0) | (index >= len(logits))
        # Nothing may wait for the device, so all N are written; those elsewhere keep their value.
        index = index.clamp(0, len(logits) - 1)[None]  # 1×N
        values = torch.where(elsewhere, logits.gather(0, index), value)
        return logits.scatter_(0, index, values)

    def gradient(self, cosines: Tensor, gradient: Tensor) -> Tensor:
        """(B·K)×N gradient of the cosines, from the B×N logits', which it may overwrite."""
        gradient = gradient.mul_(self.scales)
        if self.method.changes_negatives:
            with torch.enable_grad():
                nearest = self.nearest(cosines).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self.changed(nearest), nearest, gradient)
        K = self.classes.sub_centers
        if K == 1:
            return gradient
        by_center = cosines.view(len(gradient), K, -1)  # B×K×N
        result, highest = torch.empty_like(by_center), by_center.amax(1)
        # A loop over the centers, because argmax over them takes ten times as long on a CPU.
        for center in range(K):
            nearest = by_center[:, center] == highest
            torch.mul(gradient, nearest, out=result[:, center])
            gradient = gradient * ~nearest  # of equally near centers, the first gets the gradient
        return result.view_as(cosines)


class _MarginSoftmax(torch.autograd.Function):
    """From directions N×D, scales N, norms N and weight (C·K)×D to the fields of `Scores`."""

    @staticmethod
    def forward(
        ctx: Any,
        directions: Tensor,
        scales: Tensor,
        norms: Tensor,
        weight: Tensor,
        inverse: Tensor,
        targets: _Targets,
        negatives: _Negatives,
        with_mean: bool,
    ) -> tuple[Tensor, ...]:
        method, group = negatives.method, negatives.classes.group
        target = targets.logit.detach()
        cosines = directions.new_empty(len(weight), len(directions))  # (C·K)×N
        log_sum = torch.where(targets.is_local, target, -torch.inf)  # N, as are the next three
        total = torch.zeros_like(log_sum)  # Σ_j≠y logit_j
        top = torch.full_like(log_sum, -torch.inf)  # max_j≠y logit_j
        plain_top = top.clone() if method.changes_negatives else top  # max_j≠y s·cos θ_j
        for rows in negatives.blocks(weight):
            torch.mm(weight[rows], directions.T, out=cosines[rows])
            cosines[rows] *= inverse[rows, None]
            logits = negatives.logits(cosines[rows])  # B×N
            if with_mean:
                total += negatives.fill_targets(logits, rows, 0.0).sum(0)
            negatives.fill_targets(logits, rows, -torch.inf)
            highest = logits.amax(0)  # N
            torch.maximum(top, highest, out=top)
            if method.changes_negatives:
                plain = negatives.nearest(cosines[rows]) * scales  # B×N, a new tensor
                negatives.fill_targets(plain, rows, -torch.inf)
                torch.maximum(plain_top, plain.amax(0), out=plain_top)
            log_sum = torch.logaddexp(log_sum, _log_sum_exp(logits, highest))
        if group is not None:
            log_sum = _over_processes(log_sum, total, group)
            for highest in (top, plain_top) if method.changes_negatives else (top,):
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)

        ctx.save_for_backward(directions, scales, weight, inverse, cosines, log_sum)
        ctx.targets, ctx.negatives = targets, negatives
        mean = (total + target) / negatives.classes.total if with_mean else total
        correct, nearest = target >= top, targets.cosine * scales >= plain_top
        ctx.mark_non_differentiable(correct, nearest)
        return log_sum, target.clone(), mean, correct, nearest

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_sum_grad: Tensor, target_grad: Tensor, mean_grad: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        directions, scales, weight, inverse, cosines, log_sum = ctx.saved_tensors
        targets, negatives = ctx.targets, ctx.negatives
        normalised = negatives.classes.normalised
        with torch.autocast(directions.device.type, enabled=False):
            each = mean_grad / negatives.classes.total  # N
            p = torch.exp(targets.logit.detach() - log_sum)  # N, p_y
            cosine_grad, norms_grad, scales_grad = targets.gradients(
                target_grad + each + log_sum_grad * p
            )
            directions_grad = torch.zeros_like(directions)  # N×D
            weight_grad = torch.empty_like(weight)  # (C·K)×D
            for rows in negatives.blocks(weight):
                logits = negatives.logits(cosines[rows])  # B×N
                gradient = (logits - log_sum).exp_().mul_(log_sum_grad).add_(each)  # from p_j
                negatives.fill_targets(gradient, rows, 0.0)
                if ctx.needs_input_grad[1]:
                    scales_grad += (gradient * logits).sum(0) / scales
                gradient = negatives.gradient(cosines[rows], gradient)  # (B·K)×N
                along = (gradient * cosines[rows]).sum(1)  # B·K
                gradient *= inverse[rows, None]
                directions_grad.addmm_(gradient.T, weight[rows])
                torch.mm(gradient, directions, out=weight_grad[rows])
                if normalised:  # a change along a weight does not change its cosine
                    along *= inverse[rows] ** 2
                    weight_grad[rows].addcmul_(along[:, None], weight[rows], value=-1)
            if len(weight):  # the same for the targets, each with one row of W
                own, own_inverse = weight[targets.rows], inverse[targets.rows]  # N×D, N
                by_row = (cosine_grad * own_inverse)[:, None]  # N×1
                directions_grad += by_row * own
                along = targets.cosine * own_inverse if normalised else own_inverse * 0
                towards = by_row * (directions - along[:, None] * own)  # N×D
                weight_grad.index_add_(0, targets.rows, towards)
        return directions_grad, scales_grad, norms_grad, weight_grad, None, None, None, None


def _log_sum_exp(logits: Tensor, highest: Tensor) -> Tensor:
    """log Σ exp, N, over B×N logits, which are overwritten, given their maxima N; -inf of none."""
    highest = highest.clamp_min(torch.finfo(logits.dtype).min)
    return logits.sub_(highest).exp_().sum(0).log_() + highest


def _over_processes(log_sum: Tensor, total: Tensor, group: dist.ProcessGroup) -> Tensor:
    """log_sum, N, over the classes of all processes; total, N, is summed in place."""
    highest = log_sum.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    sums = torch.stack((torch.exp(log_sum - highest), total))
    dist.all_reduce(sums, group=group)
    total.copy_(sums[1])
    return sums[0].log() + highest
