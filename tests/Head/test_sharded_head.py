"""Heads split over processes, against the head in one piece in float64."""

import functools

import pytest
import torch
import torch.nn.functional as F

from Head import HEADS, HeadSettings, build_head, classifier
from Head.classifier import MarginHead
from Head.sharded import ShardedHead
from tests import published_heads
from tests.Head.test_heads import Everything
from tests.processes import in_processes

D, N = 16, 12  # N divides into 1, 2 and 3


def heads(num_classes, group):
    """Every head by name; and one of each trait that a method may have."""
    for name in HEADS:
        torch.manual_seed(1)
        yield build_head(name, D, num_classes, scale=8.0, group=group)
    for sub_centers in (1, 3):
        for scale in (None, 5.0):
            torch.manual_seed(1)
            settings = HeadSettings(scale, sub_centers=sub_centers)
            if group is None:
                yield MarginHead(D, num_classes, Everything(), settings)
            else:
                yield ShardedHead(D, num_classes, Everything(), settings, True, group)


def batch(num_classes, whole):
    """Embeddings and labels; the first two images lie at the poles of their class weight."""
    generator = torch.Generator().manual_seed(2)
    x = 5 * torch.randn(N, D, dtype=torch.float64, generator=generator)  # lengths of about 20
    labels = torch.randint(num_classes, (N,), generator=generator)
    row = labels[:2] * whole.sub_centers
    x[0], x[1] = 2 * whole.weight[row[0]].detach(), -3 * whole.weight[row[1]].detach()
    x[2:] *= 5  # norms with which MagFace's margin and regulariser have gradients
    return x, labels


def in_one_piece(num_classes, label_smoothing):
    for head in heads(num_classes, None):
        head = head.double()
        head.label_smoothing = label_smoothing
        x, labels = batch(num_classes, head)
        x.requires_grad_()
        logits = head(x, labels)
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        penalty = head.method.regulariser(x.norm(dim=1))
        loss = loss if penalty is None else loss + penalty.mean()
        loss.backward()
        correct = logits.detach().gather(1, labels[:, None])[:, 0] >= logits.detach().amax(1)
        nearest = published_heads.nearest(head, x, labels)
        yield x.detach(), labels, loss.detach(), (correct, nearest), x.grad, head.weight


def split(group, num_classes, label_smoothing):
    """Loss, correct, gradients and weights of this process, for each head."""
    results = []
    whole = list(in_one_piece(num_classes, label_smoothing))
    for head, (x, labels, *_) in zip(heads(num_classes, group), whole, strict=True):
        head = head.double()
        head.label_smoothing = label_smoothing
        share = N // group.size()
        own = slice(group.rank() * share, (group.rank() + 1) * share)
        x = x[own].requires_grad_()
        result = head.loss(x, labels[own])
        result.loss.backward()
        grads = x.grad / group.size(), head.weight.grad
        verdicts = torch.stack((result.correct, result.nearest), 1)
        results.append((result.loss.detach(), verdicts, *grads, head.weight.detach()))
    return results


@pytest.mark.parametrize(
    ("processes", "num_classes", "label_smoothing"),
    [(1, 7, 0.0), (2, 7, 0.1), (3, 7, 0.0), (3, 4, 0.1), (3, 2, 0.0)],
)
def test_split_over_processes_it_has_the_loss_and_gradients_of_the_whole(
    tmp_path, processes, num_classes, label_smoothing
):
    expected = list(in_one_piece(num_classes, label_smoothing))
    results = in_processes(processes, tmp_path, split, num_classes, label_smoothing)
    for head, (_, _, loss, expected_verdicts, x_grad, weight) in enumerate(expected):
        losses, verdicts, x_grads, weight_grads, weights = zip(
            *(result[head] for result in results), strict=True
        )
        # At a pole a cosine that is rounded otherwise, by 1e-16, is another angle by 1e-8.
        close = functools.partial(torch.testing.assert_close, rtol=1e-8, atol=1e-8)
        for each in losses:
            close(each, loss)
        assert torch.equal(torch.cat(verdicts), torch.stack(expected_verdicts, 1))
        close(torch.cat(x_grads), x_grad)
        close(torch.cat(weight_grads), weight.grad)
        assert torch.equal(torch.cat(weights), weight.detach())


def unequal(group):
    head = build_head("ArcFace", D, 5, group=group)
    images = 2 + group.rank()
    try:
        head.loss(torch.randn(images, D), torch.zeros(images, dtype=torch.int64))
    except ValueError as error:
        return str(error)


def test_processes_with_different_numbers_of_images_are_told_so(tmp_path):
    said = in_processes(2, tmp_path, unequal)
    assert all("2, 3 images" in text for text in said)


def gathered(group, num_classes):
    head = next(h for h in heads(num_classes, group) if h.sub_centers == 3)
    tensor = head.as_dtensor(head.weight)
    return tensor.full_tensor(), head.weight.detach(), tensor.shape


@pytest.mark.parametrize("num_classes", [5, 2])
def test_the_shards_are_one_tensor_to_a_checkpoint(tmp_path, num_classes):
    results = in_processes(3, tmp_path, gathered, num_classes)
    rows = torch.cat([rows for _, rows, _ in results])
    for whole, _, shape in results:
        assert shape == (num_classes, 3 * D)
        assert torch.equal(whole.view(-1, D), rows)


def test_weights_drawn_in_parts_are_glorots(monkeypatch):
    monkeypatch.setattr(classifier, "_DRAWN_AT_ONCE", 5 * D)
    torch.manual_seed(8)
    drawn, after = build_head("ArcFace", D, 23).weight.detach(), torch.rand(3)
    torch.manual_seed(8)
    expected = torch.nn.init.xavier_uniform_(torch.empty(23, D))
    assert torch.equal(drawn, expected)
    assert torch.equal(after, torch.rand(3))
