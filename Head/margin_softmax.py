"""Softmax over the logits of a margin head, without ever holding more than one N×C matrix.

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

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from Head.class_blocks import Classes, OtherClasses, Targets
from Head.methods import Method


@dataclass
class Scores:
    """Of each image, N numbers each, with margin and scale applied.

    log_sum: log Σ_j exp(logit_j). target: the target class's logit. mean: over all classes, where
    it was asked for, else 0. top: the highest logit of the other classes, without gradient.
    """

    log_sum: Tensor
    target: Tensor
    mean: Tensor
    top: Tensor


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
        log_sum = torch.where(targets.here, targets.logit, -torch.inf)
        total = torch.zeros_like(log_sum)
        top = torch.full_like(log_sum, -torch.inf)
        for rows in others.blocks(weight):
            torch.mm(weight[rows], directions.T, out=cosines[rows])
            cosines[rows] *= inverse[rows, None]
            logits = others.logits(cosines[rows])
            if with_mean:
                total += others.fill_targets(logits, rows, 0.0).sum(0)
            others.fill_targets(logits, rows, -torch.inf)
            highest = logits.amax(0)
            top = torch.maximum(top, highest)
            log_sum = torch.logaddexp(log_sum, _log_sum_exp(logits, highest))
        if classes.group is not None:
            log_sum, top = _over_processes(log_sum, top, total, classes.group)

        ctx.save_for_backward(directions, scales, weight, inverse, cosines, log_sum)
        ctx.targets, ctx.others, ctx.classes = targets, others, classes
        ctx.mark_non_differentiable(top)
        mean = (total + targets.logit) / classes.total if with_mean else total
        return log_sum, targets.logit.clone(), mean, top

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_sum_grad: Tensor, logit_grad: Tensor, mean_grad: Tensor, _: Tensor
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


def _over_processes(
    log_sum: Tensor, top: Tensor, total: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """log_sum and top over the classes of all processes; total is summed in place."""
    highest = log_sum.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
    sums = torch.stack((torch.exp(log_sum - highest), total))
    dist.all_reduce(sums, group=group)
    total.copy_(sums[1])
    return sums[0].log() + highest, top
