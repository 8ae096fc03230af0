"""The softmax of a margin head, in blocks of classes, with a backward pass of its own.

For an image of class y with embedding x, and class weights W_j (ArcFace,
https://arxiv.org/abs/1801.07698, eq. 1 to 4):

    cos θ_j = x·W_j / (‖x‖·‖W_j‖)
    logit_y = s·T(cos θ_y)              T: `Method.target`, which has the margin m
    logit_j = s·N(cos θ_j), j ≠ y       N: `Method.negatives`, the identity for most methods
    log p_y = logit_y - log Σ_j exp(logit_j)

With plain tensor operations the cosines, the logits, their softmax and the gradients would each be
a matrix of N images times C classes, and reading and writing them would take longer than the
arithmetic. Here only the cosines are such a matrix, because the backward pass needs them; all else
is computed for a block of classes at a time, in one buffer. On a CPU a block fits into the
processor's cache, and is finished while it is there, by one thread; on a GPU, where each operation
must be launched, blocks are as large as memory allows. Products with W are divided by the norms of
its rows, so no normalised copy of W is needed. On a GPU they are computed in TF32 where PyTorch's
`torch.backends.cuda.matmul` allows it; everything else is float32.

Matrices have the classes first, C×N, so that a block of classes is contiguous. Letters of the
shapes: N images, D features, C classes of this process, K sub-centers a class, B classes in a
block. With a process group each process has some of the classes, and all have the same N
embeddings and labels; only maxima, sums and target cosines are exchanged, N values each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from Head.methods import Method

# Values in a block: what a CPU's second-level cache holds; on a GPU 128 MiB, so that few launches
# are needed.
BLOCK_ON_CPU = 2**18
BLOCK_ON_GPU = 2**25

# On a CPU, threads compute spans of classes: at least so many, so that a thread whose core is busy
# otherwise can compute fewer of them, but none with fewer values than this.
SPANS, LEAST_IN_A_SPAN = 16, 2**16

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
        # Not a matrix product, which TF32 would round: the margin is applied to these.
        cosines = (centers[own] * directions[:, None]).sum(2)
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
class _Block:
    """Logits of B classes, between a first and a last row for the targets of other blocks.

    buffer: (B + 2)×N. index: int64 1×N, the buffer's row of each image's target.
    """

    buffer: Tensor
    index: Tensor

    def scaled(self, cosines: Tensor, scales: Tensor) -> Tensor:
        """B×N cosines times N scales, in the buffer."""
        return torch.mul(cosines, scales, out=self.buffer[1:-1])

    def fill_targets(self, value: float) -> None:
        """Overwrite the targets' logits. Those of other blocks are written, too, into the first or
        the last row: to choose those of this block, the device would have to be waited for."""
        self.buffer.scatter_(0, self.index, value)


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

    def spans(self, weight: Tensor) -> list[range]:
        """The classes, as the ranges that `_in_threads` computes; at least one, perhaps empty."""
        classes = len(weight) // self.classes.sub_centers
        count = len(weight) * len(self.labels) // LEAST_IN_A_SPAN
        threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        count = min(count, max(SPANS, threads))
        if threads == 1 or count < 2:
            return [range(classes)]
        each = -(-classes // count)
        return [range(classes)[i : i + each] for i in range(0, classes, each)]

    def blocks(self, span: range, weight: Tensor) -> Iterator[tuple[slice, _Block]]:
        """A number of the span's classes at a time: their rows of W, (B·K), and the block for
        their logits."""
        K, images = self.classes.sub_centers, len(self.labels)
        values = BLOCK_ON_CPU if weight.device.type == "cpu" else BLOCK_ON_GPU
        step = max(1, min(values // (images * K), len(span)))
        buffer = weight.new_empty(step + 2, images)
        for first in span[::step]:
            B = min(step, span.stop - first)
            index = (self.labels + (1 - first)).clamp_(0, B + 1)[None]
            yield slice(first * K, (first + B) * K), _Block(buffer[: B + 2], index)

    def nearest(self, cosines: Tensor) -> Tensor:
        """B×N cosines of the nearest sub-centers, from (B·K)×N."""
        K = self.classes.sub_centers
        return cosines if K == 1 else cosines.view(-1, K, cosines.shape[1]).amax(1)

    def changed(self, nearest: Tensor) -> Tensor:
        """N(cos θ_j), B×N, from B×N."""
        return self.method.negatives(nearest, self.target_cosine)

    def gradient(self, cosines: Tensor, gradient: Tensor) -> Tensor:
        """(B·K)×N gradient of the cosines, from the B×N gradient of N(cos θ_j), which it may
        overwrite."""
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

        def sums(span: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            log_sum = torch.full_like(target, -torch.inf)  # N, as are the next three
            total = torch.zeros_like(target)  # Σ_j≠y logit_j
            top = log_sum.clone()  # max_j≠y logit_j
            plain_top = top.clone() if method.changes_negatives else top  # max_j≠y s·cos θ_j
            for rows, block in negatives.blocks(span, weight):
                torch.mm(weight[rows], directions.T, out=cosines[rows])
                cosines[rows] *= inverse[rows, None]
                nearest = negatives.nearest(cosines[rows])  # B×N
                logits = block.scaled(negatives.changed(nearest), scales)
                if with_mean:
                    block.fill_targets(0.0)
                    total += logits.sum(0)
                block.fill_targets(-torch.inf)
                highest = logits.amax(0)  # N
                torch.maximum(top, highest, out=top)
                log_sum = torch.logaddexp(log_sum, _log_sum_exp(logits, highest))
                if method.changes_negatives:
                    plain = block.scaled(nearest, scales)
                    block.fill_targets(-torch.inf)
                    torch.maximum(plain_top, plain.amax(0), out=plain_top)
            return log_sum, total, top, plain_top

        by_span = zip(*_in_threads(sums, negatives.spans(weight)), strict=True)
        log_sums, totals, tops, plain_tops = map(torch.stack, by_span)  # spans×N
        own = torch.where(targets.is_local, target, -torch.inf)[None]
        log_sum, total = torch.cat((own, log_sums)).logsumexp(0), totals.sum(0)  # N, N
        top = tops.amax(0)  # N
        plain_top = plain_tops.amax(0) if method.changes_negatives else top  # N
        if group is not None:
            log_sum = _over_processes(log_sum, total, group)
            for highest in (top, plain_top) if method.changes_negatives else (top,):
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)

        ctx.save_for_backward(directions, scales, weight, inverse, cosines, log_sum)
        ctx.targets, ctx.negatives, ctx.with_mean = targets, negatives, with_mean
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
            weight_grad = torch.empty_like(weight)  # (C·K)×D

            def sums(span: range) -> tuple[Tensor, Tensor]:
                directions_grad = torch.zeros_like(directions)  # N×D
                scales_grad = torch.zeros_like(scales)  # N
                for rows, block in negatives.blocks(span, weight):
                    changed = negatives.changed(negatives.nearest(cosines[rows]))  # B×N
                    gradient = block.scaled(changed, scales).sub_(log_sum).exp_()  # p_j
                    # Of N(cos θ_j): the logits' gradient times s.
                    gradient *= log_sum_grad * scales
                    if ctx.with_mean:
                        gradient += each * scales
                    block.fill_targets(0.0)
                    if ctx.needs_input_grad[1]:
                        scales_grad += (gradient * changed).sum(0) / scales
                    gradient = negatives.gradient(cosines[rows], gradient)  # (B·K)×N
                    along = (gradient * cosines[rows]).sum(1)  # B·K
                    gradient *= inverse[rows, None]
                    directions_grad.addmm_(gradient.T, weight[rows])
                    torch.mm(gradient, directions, out=weight_grad[rows])
                    if normalised:  # a change along a weight does not change its cosine
                        along *= inverse[rows] ** 2
                        weight_grad[rows].addcmul_(along[:, None], weight[rows], value=-1)
                return directions_grad, scales_grad

            (directions_grad, others), *rest = _in_threads(sums, negatives.spans(weight))
            for directions_part, scales_part in rest:
                directions_grad += directions_part
                others += scales_part
            scales_grad = scales_grad + others
            if len(weight):  # the same for the targets, each with one row of W
                own, own_inverse = weight[targets.rows], inverse[targets.rows]  # N×D, N
                by_row = (cosine_grad * own_inverse)[:, None]  # N×1
                directions_grad += by_row * own
                along = targets.cosine * own_inverse if normalised else own_inverse * 0
                towards = by_row * (directions - along[:, None] * own)  # N×D
                weight_grad.index_add_(0, targets.rows, towards)
        return directions_grad, scales_grad, norms_grad, weight_grad, None, None, None, None


_Sums = TypeVar("_Sums")


def _in_threads(sums: Callable[[range], _Sums], spans: list[range]) -> list[_Sums]:
    """What `sums` returns for each span, in order.

    PyTorch's threads share the spans. If they shared each operation instead, all of them would wait
    for the slowest after each: a hundred times a step for a thread whose core is busy otherwise.
    """
    if len(spans) == 1:
        return [sums(spans[0])]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "head", torch.set_num_threads, (1,)) as pool:
            return list(pool.map(torch.no_grad()(sums), spans))
    finally:
        torch.set_num_threads(threads)  # threads started later inherit the last setting


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
