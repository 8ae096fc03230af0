"""Sampled classes against a simulation that has every class, row by row, in float64."""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from Head import build_head
from Head.sampling import sample_classes, sample_size
from Head.sharded import class_range
from tests.processes import in_processes
from tests.scripts.test_training import assert_same_weights, only_run, tiny_config  # noqa: F401
from Utils.Training_Utils.trainer import Trainer

D, N, STEPS, SEED, S, M = 8, 6, 5, 11, 8.0, 0.35
RATE = 0.3


def batches(num_classes):
    generator = torch.Generator().manual_seed(4)
    for _ in range(STEPS):
        x = torch.randn(N, D, dtype=torch.float64, generator=generator)
        yield x, torch.randint(num_classes, (N,), generator=generator)


def make_head(num_classes, group):
    torch.manual_seed(1)
    settings = {"scale": S, "margin": M, "sample_rate": RATE, "sample_seed": SEED}
    return build_head("CosFace", D, num_classes, group=group, **settings).double()


def make_optimizer(kind, weights):
    if kind == "adamw":
        return torch.optim.AdamW(weights, lr=0.01, weight_decay=0.1)
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)


def train(group, num_classes, kind):
    """Gradients of the embeddings at each step, then weights and the optimiser's tables."""
    head = make_head(num_classes, group)
    optimizer = make_optimizer(kind, [head.weight])
    rank, processes = (group.rank(), group.size()) if group else (0, 1)
    share = N // processes
    own = slice(rank * share, (rank + 1) * share)
    gradients = []
    for step, (x, labels) in enumerate(batches(num_classes)):
        x = x[own].requires_grad_()
        optimizer.zero_grad()
        head.sample(labels[own], step)
        head.loss(x, labels[own]).loss.backward()
        with head.weight_to_update(optimizer):
            optimizer.step()
        assert head.weight.grad is None  # nothing of the table's size
        gradients.append(x.grad / processes)
    state = {k: v for k, v in optimizer.state[head.weight].items() if v.shape == head.weight.shape}
    return torch.stack(gradients), head.weight.detach(), state


def drawn(num_classes, labels, step, processes):
    """The classes of a step, over all processes."""
    for rank in range(processes):
        here = class_range(num_classes, rank, processes)
        local = torch.where((labels >= here.start) & (labels < here.stop), labels - here.start, -1)
        yield here.start + sample_classes(len(here), RATE, local, (SEED, step, here.start))


def simulate(num_classes, kind, processes):
    """The same, with the whole table, formulas of the optimisers written out, and only the drawn
    rows changed."""
    w = make_head(num_classes, None).weight.detach().clone()
    tables = {k: torch.zeros_like(w) for k in ("momentum_buffer", "exp_avg", "exp_avg_sq")}
    gradients = []
    for step, (x, labels) in enumerate(batches(num_classes)):
        rows = torch.cat(list(drawn(num_classes, labels, step, processes)))
        x, table = x.requires_grad_(), w.clone().requires_grad_()
        logits = S * (
            F.normalize(x) @ F.normalize(table).T - M * F.one_hot(labels, num_classes).double()
        )
        F.cross_entropy(logits[:, rows], torch.searchsorted(rows, labels)).backward()
        gradients.append(x.grad)
        change = sgd if kind == "sgd" else functools.partial(adamw, step=step + 1)
        for row in rows.tolist():
            change(w[row], table.grad[row], *(table[row] for table in tables.values()))
    return torch.stack(gradients), w, tables


def sgd(w, gradient, momentum, *_):
    gradient = gradient + 0.01 * w
    momentum.mul_(0.9).add_(gradient)
    w.sub_(0.1 * (gradient + 0.9 * momentum))


def adamw(w, gradient, _, mean, square, step):
    w.mul_(1 - 0.01 * 0.1)
    mean.mul_(0.9).add_(0.1 * gradient)
    square.mul_(0.999).add_(0.001 * gradient**2)
    root = (square / (1 - 0.999**step)).sqrt() + 1e-8
    w.sub_(0.01 * mean / (1 - 0.9**step) / root)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize(("processes", "num_classes"), [(1, 40), (2, 41), (3, 40), (3, 2)])
def test_only_the_drawn_rows_change_and_as_if_they_were_all(tmp_path, processes, num_classes, kind):
    if processes == 1:
        results = [train(None, num_classes, kind)]
    else:
        results = in_processes(processes, tmp_path, train, num_classes, kind)
    gradients, weight, tables = simulate(num_classes, kind, processes)
    close = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-13)
    close(torch.cat([found for found, _, _ in results], 1), gradients)
    close(torch.cat([found for _, found, _ in results]), weight)
    for name in results[0][2]:
        close(torch.cat([found[name] for _, _, found in results]), tables[name])


def test_a_row_not_drawn_keeps_its_bits():
    head = make_head(40, None)
    optimizer = make_optimizer("sgd", [head.weight])
    for step, (x, labels) in enumerate(batches(40)):
        before = head.weight.detach().clone()
        head.sample(labels, step)
        head.loss(x, labels).loss.backward()
        with head.weight_to_update(optimizer) as rows:
            optimizer.step()
        assert len(rows) == 12
        assert (head.weight != before).any(1).sum() == 12


class Made(TorchDispatchMode):
    """The storages of all tensors with so many values that operators return."""

    def __init__(self, values):
        super().__init__()
        self.values, self.storages = values, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.values:
                self.storages.add(tensor.untyped_storage().data_ptr())
        return result


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_makes_no_table_of_all_classes(kind):
    head = make_head(4000, None)
    optimizer = make_optimizer(kind, [head.weight])
    for step, (x, labels) in enumerate(batches(4000)):
        with Made(head.weight.numel()) as made:
            head.sample(labels, step)
            head.loss(x, labels).loss.backward()
            with head.weight_to_update(optimizer):
                optimizer.step()
        kept = {head.weight, *optimizer.state[head.weight].values()}
        assert made.storages <= {table.untyped_storage().data_ptr() for table in kept}


def test_all_classes_of_the_batch_are_drawn_and_the_others_alike_often():
    labels = torch.tensor([5, 99, 5, -1, 0])
    counts = torch.zeros(100)
    draws = 2000
    for step in range(draws):
        classes = sample_classes(100, 0.2, labels, (0, step))
        assert len(classes) == len(classes.unique()) == 20
        counts[classes] += 1
    positive = torch.tensor([0, 5, 99])
    assert (counts[positive] == draws).all()
    counts[positive] = draws * 17 / 97  # each of the others: 17 places for 97 of them
    deviation = math.sqrt(draws * 17 / 97 * 80 / 97)
    assert (counts - draws * 17 / 97).abs().max() < 5 * deviation
    assert torch.equal(
        sample_classes(100, 0.2, labels, (0, 7)), sample_classes(100, 0.2, labels, (0, 7))
    )


@pytest.mark.parametrize(
    ("classes", "rate", "images", "k"),
    [
        (1000, 0.1, 64, 100),
        (1000, 0.1, 256, 256),
        (100, 0.1, 256, 100),
        (0, 0.1, 256, 0),
    ],
)
def test_there_is_room_for_the_class_of_every_image(classes, rate, images, k):
    assert sample_size(classes, rate, images) == k
    labels = torch.arange(images) if classes >= images else torch.arange(images) - 156
    if classes:
        drawn = sample_classes(classes, rate, labels.clamp_max(classes - 1), (1, 2))
        assert len(drawn) == k


def smoothed(group):
    head = make_head(41, group)
    head.label_smoothing = 0.2
    x, labels = next(batches(41))
    own = slice(3 * group.rank(), 3 * group.rank() + 3)
    head.sample(labels[own], 0)
    return head.loss(x[own], labels[own]).loss.detach()


def test_label_smoothing_spreads_over_the_drawn_classes_of_all_processes(tmp_path):
    x, labels = next(batches(41))
    rows = torch.cat(list(drawn(41, labels, 0, 2)))
    w = make_head(41, None).weight.detach()
    logits = S * (F.normalize(x) @ F.normalize(w).T - M * F.one_hot(labels, 41).double())
    targets = torch.searchsorted(rows, labels)
    expected = F.cross_entropy(logits[:, rows], targets, label_smoothing=0.2)
    for loss in in_processes(2, tmp_path, smoothed):
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


def test_nearest_is_among_the_drawn_classes():
    head = make_head(40, None)
    x, labels = next(batches(40))
    with torch.no_grad():
        x += 2 * head.weight[labels]  # nearer to their own class: some are nearest, some are not
    rows = torch.cat(list(drawn(40, labels, 0, 1)))
    cosines = F.normalize(x) @ F.normalize(head.weight).T
    head.sample(labels, 0)
    nearest = head.loss(x, labels).nearest
    among = cosines[:, rows].argmax(1)
    assert torch.equal(nearest, rows[among] == labels)
    assert nearest.any()
    assert not torch.equal(nearest, cosines.argmax(1) == labels)


def test_a_resumed_run_draws_the_same_classes(tiny_config, tmp_path):  # noqa: F811
    config = dataclasses.replace(tiny_config, sample_rate=0.5, batch_size=2, total_epoch=1)
    config = dataclasses.replace(config, milestones=(), save_freq=5)
    whole = Trainer(config).run().run / "checkpoints"
    resume, again = str(whole / "iteration_00000005.pt"), tmp_path / "again"
    Trainer(dataclasses.replace(config, resume=resume, save_dir=str(again))).run()
    assert_same_weights(whole / "last.pt", only_run(again) / "checkpoints" / "last.pt")
