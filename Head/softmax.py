"""The parts of a margin head's softmax: the other classes, in blocks, and the targets.

Softmax over the logits of a margin head, without ever holding more than one N×C matrix.

Logits are s_i·cos θ_ij, with what the method makes of the cosines. As plain tensor operations,
logits, their margin, their softmax and the gradients are each a matrix of that size, and so much
memory traffic that the arithmetic waits for it. Here the cosines are computed in blocks of classes
small enough for the processor's cache, each block is finished while it is there, and only the
cosines are kept for the backward pass. The class weights are normalised by dividing their
products, so there is no second copy of them either.

Everything is stored with classes first, C×N: a block of classes is then contiguous.

With a process group, each process has some of the classes, and all have the same N embeddings and
labels; maxima, sums and target cosines are exchanged, N numbers each.
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

# Numbers in a block: what a CPU's second-level cache holds, or enough to keep a GPU busy.
BLOCK_ON_CPU = 2**18
BLOCK_ON_GPU = 2**24

_EPSILON = 1e-12  # smallest norm to divide by, as in F.normalize


@dataclass(frozen=True)
class Classes:
    """How the rows of the class weights are to be read.

    total: C, the classes over all processes. sub_centers: K weights a class, of which the nearest
    counts; class c has rows c·K to c·K + K - 1. normalised: whether products are divided by the
    weights' norms. group: the processes that have the other classes; None: there are none.
    """

    total: int
    sub_centers: int = 1
    normalised: bool = True
    group: dist.ProcessGroup | None = None

    def inverse_norms(self, weight: Tensor) -> Tensor:
        """What the products with each row are multiplied with."""
        if not self.normalised:
            return torch.ones_like(weight[:, 0])
        return torch.linalg.vector_norm(weight, dim=1).clamp_min_(_EPSILON).reciprocal_()


class Targets:
    """The N targets' logits, on every process, and their gradients, on the process that has them.

    is_local: bool N, whether this process has the class. cosine, logit: N.
    """

    def __init__(
        self,
        directions: Tensor,
        scales: Tensor,
        norms: Tensor,
        weight: Tensor,
        inverse: Tensor,
        labels: Tensor,
        method: Method,
        classes: Classes,
    ) -> None:
        self.is_local = labels >= 0
        self.cosine = directions.new_zeros(len(labels))
        self._normalised = classes.normalised
        if len(weight):
            centers = weight.view(-1, classes.sub_centers, weight.shape[1])
            own = labels.clamp_min(0)
            products = torch.einsum("nkd,nd->nk", centers[own], directions)
            products *= inverse.view(-1, classes.sub_centers)[own]
            nearest = products.max(1)
            self._rows = own * classes.sub_centers + nearest.indices
            self.cosine = torch.where(self.is_local, nearest.values, 0)
        if classes.group is not None:
            dist.all_reduce(self.cosine, group=classes.group)
        if method.training:
            method.update_state(self.cosine, norms.detach())
        with torch.enable_grad():  # N numbers: autograd's own way costs nothing here
            self._inputs = [x.detach().requires_grad_() for x in (self.cosine, norms, scales)]
            cosine, norm, scale = self._inputs
            self._logit = scale * method.target(cosine, norm)
        self.logit = self._logit.detach()

    def gradients(self, logit_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of cosine, norm and scale, N each, from the logits'; 0 where another process has them."""
        return torch.autograd.grad(
            self._logit,
            self._inputs,
            torch.where(self.is_local, logit_gradient, 0),
            retain_graph=True,
            materialize_grads=True,
        )

    def add_gradients(
        self,
        cosine_gradient: Tensor,
        directions: Tensor,
        weight: Tensor,
        inverse: Tensor,
        directions_gradient: Tensor,
        weight_gradient: Tensor,
    ) -> None:
        """Pass the cosines' gradient on to the embeddings and to the targets' class weights."""
        if not len(weight):
            return
        own = weight[self._rows]  # N×D
        by_row = (cosine_gradient * inverse[self._rows])[:, None]
        directions_gradient += by_row * own
        along = self.cosine * inverse[self._rows] if self._normalised else self.cosine.new_zeros(())
        weight_gradient.index_add_(0, self._rows, by_row * (directions - along.unsqueeze(-1) * own))


class OtherClasses:
    """Logits of the classes that are not the target, and their gradients, a block at a time.

    scales: N. labels: N, -1 where another process has the class. target_cosine: N.
    """

    def __init__(
        self,
        scales: Tensor,
        labels: Tensor,
        target_cosine: Tensor,
        method: Method,
        classes: Classes,
    ) -> None:
        self._scales = scales
        self._labels = labels
        self._target_cosine = target_cosine
        self._method = method
        self._sub_centers = classes.sub_centers

    def blocks(self, weight: Tensor) -> Iterator[slice]:
        """Rows of the class weights, with a class's sub-centers in one block."""
        numbers = BLOCK_ON_CPU if weight.device.type == "cpu" else BLOCK_ON_GPU
        step = max(1, numbers // (len(self._labels) * self._sub_centers)) * self._sub_centers
        for start in range(0, len(weight), step):
            yield slice(start, min(start + step, len(weight)))

    def logits(self, cosines: Tensor) -> Tensor:
        """B×N logits, the targets' among them, from (B·K)×N cosines; a new tensor."""
        return self._changed(self._nearest(cosines)) * self._scales

    def plain_logits(self, cosines: Tensor) -> Tensor:
        """B×N logits s·cos θ_j as they are without a method, from (B·K)×N cosines; a new tensor."""
        return self._nearest(cosines) * self._scales

    def fill_targets(self, logits: Tensor, rows: slice, value: float) -> Tensor:
        """Put a value in place of the targets, in place; returns logits."""
        first, count = rows.start // self._sub_centers, len(logits)
        number = self._labels - first
        elsewhere = (number < 0) | (number >= count)
        # Nothing may wait for the device, so all N are written: those elsewhere as they were.
        number = number.clamp(0, count - 1)[None]
        values = torch.where(elsewhere, logits.gather(0, number), value)
        return logits.scatter_(0, number, values)

    def gradient(self, cosines: Tensor, logits_gradient: Tensor) -> Tensor:
        """(B·K)×N gradient of the cosines from the B×N logits', which it may overwrite."""
        gradient = logits_gradient.mul_(self._scales)
        if self._method.changes_negatives:
            with torch.enable_grad():
                nearest = self._nearest(cosines).detach().requires_grad_()
                (gradient,) = torch.autograd.grad(self._changed(nearest), nearest, gradient)
        if self._sub_centers == 1:
            return gradient
        of_class = cosines.view(len(gradient), self._sub_centers, -1)  # B×K×N
        of_nearest, highest = torch.empty_like(of_class), of_class.amax(1)
        # One center after the other: on a CPU, argmax over them takes ten times as long.
        for center in range(self._sub_centers):
            nearest = of_class[:, center] == highest
            torch.mul(gradient, nearest, out=of_nearest[:, center])
            gradient = gradient * ~nearest  # of equally near ones, the first has it all
        return of_nearest.view_as(cosines)

    def _nearest(self, cosines: Tensor) -> Tensor:
        if self._sub_centers == 1:
            return cosines
        return cosines.view(-1, self._sub_centers, cosines.shape[1]).amax(1)

    def _changed(self, cosines: Tensor) -> Tensor:
        return self._method.negatives(cosines, self._target_cosine)


@dataclass
class Scores:
    """Of each image, N numbers each, with margin and scale applied.

    log_sum: log Σ_j exp(logit_j). target: the target class's logit. mean: over all classes, where
    it was asked for, else 0. correct, nearest: bool, see `Head.classifier.HeadLoss`.
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
    """Scores of N embeddings, differentiable once in directions, scales, norms and weight.

    directions: N×D, of length 1 where classes are normalised. scales: N, the s of each image, not
    0. norms: N, the embeddings' own, for methods that use them. weight: (C here)·K × D.
    labels: int64 N, the target's number among this process's classes; -1 where another has it.
    """
    arguments = (directions, scales, norms, weight, labels, method, classes, with_mean)
    return Scores(*_MarginScores.apply(*arguments))


class _MarginScores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        directions: Tensor,
        scales: Tensor,
        norms: Tensor,
        weight: Tensor,
        labels: Tensor,
        method: Method,
        classes: Classes,
        with_mean: bool,
    ) -> tuple[Tensor, ...]:
        inverse = classes.inverse_norms(weight)
        targets = Targets(directions, scales, norms, weight, inverse, labels, method, classes)
        others = OtherClasses(scales, labels, targets.cosine, method, classes)

        cosines = directions.new_empty(len(weight), len(directions))  # (C·K)×N
        log_sum = torch.where(targets.is_local, targets.logit, -torch.inf)
        total = torch.zeros_like(log_sum)
        top = torch.full_like(log_sum, -torch.inf)  # highest logit of the other classes
        plain_top = top.clone() if method.changes_negatives else top  # the same, of s·cos θ_j
        for rows in others.blocks(weight):
            torch.mm(weight[rows], directions.T, out=cosines[rows])
            cosines[rows] *= inverse[rows, None]
            logits = others.logits(cosines[rows])
            if with_mean:
                total += others.fill_targets(logits, rows, 0.0).sum(0)
            others.fill_targets(logits, rows, -torch.inf)
            highest = logits.amax(0)
            torch.maximum(top, highest, out=top)
            if method.changes_negatives:
                plain = others.fill_targets(others.plain_logits(cosines[rows]), rows, -torch.inf)
                torch.maximum(plain_top, plain.amax(0), out=plain_top)
            log_sum = torch.logaddexp(log_sum, _log_sum_exp(logits, highest))
        if classes.group is not None:
            log_sum = _over_processes(log_sum, total, classes.group)
            for highest in (top, plain_top) if method.changes_negatives else (top,):
                dist.all_reduce(highest, dist.ReduceOp.MAX, group=classes.group)

        ctx.save_for_backward(directions, scales, weight, inverse, cosines, log_sum)
        ctx.targets, ctx.others, ctx.classes = targets, others, classes
        correct = targets.logit >= top
        nearest = targets.cosine * scales >= plain_top
        ctx.mark_non_differentiable(correct, nearest)
        mean = (total + targets.logit) / classes.total if with_mean else total
        return log_sum, targets.logit.clone(), mean, correct, nearest

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_sum_grad: Tensor, logit_grad: Tensor, mean_grad: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        directions, scales, weight, inverse, cosines, log_sum = ctx.saved_tensors
        targets, others = ctx.targets, ctx.others
        with torch.autocast(directions.device.type, enabled=False):
            each = mean_grad / ctx.classes.total
            share = torch.exp(targets.logit - log_sum)
            cosine_grad, norms_grad, scales_grad = targets.gradients(
                logit_grad + each + log_sum_grad * share
            )
            directions_grad = torch.zeros_like(directions)
            weight_grad = torch.empty_like(weight)
            for rows in others.blocks(weight):
                logits = others.logits(cosines[rows])
                gradient = (logits - log_sum).exp_().mul_(log_sum_grad).add_(each)
                others.fill_targets(gradient, rows, 0.0)
                if ctx.needs_input_grad[1]:
                    scales_grad += (gradient * logits).sum(0) / scales
                gradient = others.gradient(cosines[rows], gradient)
                along = (gradient * cosines[rows]).sum(1)
                gradient *= inverse[rows, None]
                directions_grad.addmm_(gradient.T, weight[rows])
                torch.mm(gradient, directions, out=weight_grad[rows])
                if ctx.classes.normalised:  # what runs along a weight changes no cosine
                    along *= inverse[rows] ** 2
                    weight_grad[rows].addcmul_(along[:, None], weight[rows], value=-1)
            targets.add_gradients(
                cosine_grad, directions, weight, inverse, directions_grad, weight_grad
            )
        return directions_grad, scales_grad, norms_grad, weight_grad, None, None, None, None


def _log_sum_exp(logits: Tensor, highest: Tensor) -> Tensor:
    """log Σ exp over B×N logits, which are overwritten, given their maxima; -inf of nothing."""
    highest = highest.clamp_min(torch.finfo(logits.dtype).min)
    return logits.sub_(highest).exp_().sum(0).log_() + highest


def _over_processes(log_sum: Tensor, total: Tensor, group: dist.ProcessGroup) -> Tensor:
    """log_sum over the classes of all processes; total is summed in place."""
    highest = log_sum.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    sums = torch.stack((torch.exp(log_sum - highest), total))
    dist.all_reduce(sums, group=group)
    total.copy_(sums[1])
    return sums[0].log() + highest
