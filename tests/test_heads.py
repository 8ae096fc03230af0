"""Heads against the published formulas in float64, and their gradients, poles included."""

import math

import pytest
import torch
import torch.nn.functional as F

from Head import DEFAULT_MARGIN_SIZE, HEADS, build_head, class_blocks
from Head.classifier import MarginHead
from Head.methods import Method

N, D, C = 6, 16, 9
S = 32.0


def published_arcface(theta, m, easy):
    if easy:
        return math.cos(theta + m) if math.cos(theta) > 0 else math.cos(theta)
    if math.cos(theta) > math.cos(math.pi - m):
        return math.cos(theta + m)
    return math.cos(theta) - m * math.sin(m)


def brute_force(name, x, w, labels, s, m, easy=False):
    """Logits one by one, with angles from acos."""
    logits = torch.empty(len(x), len(w), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(w)):
            if name == "Softmax":
                logits[i, j] = x[i] @ w[j]
                continue
            cosine = float(x[i] @ w[j] / (x[i].norm() * w[j].norm()))
            if j == labels[i]:
                theta = math.acos(max(-1.0, min(1.0, cosine)))
                cosine = cosine - m if name == "CosFace" else published_arcface(theta, m, easy)
            logits[i, j] = s * cosine
    return logits


def problem(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, dtype=dtype, generator=generator)
    labels = torch.tensor([0, 3, 3, 8, 1, 5])
    return x, labels


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_the_published_formulas(name, easy):
    torch.manual_seed(1)
    head = build_head(name, D, C, scale=S, easy_margin=easy).double()
    x, labels = problem()
    with torch.no_grad():  # targets nearer than the margin, far off, and past pi - m
        x[0] = head.weight[0] + 0.1 * x[0]
        x[1] = -head.weight[3] + 0.1 * x[1] * head.weight[3].norm() / x[1].norm()
    expected = brute_force(
        name, x, head.weight.detach(), labels, S, DEFAULT_MARGIN_SIZE[name], easy
    )
    torch.testing.assert_close(head(x, labels).detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(2)
    head = build_head(name, D, C, scale=4.0).double()
    x, labels = problem(seed=3)
    weight = head.weight.detach()

    def loss(x, w):
        logits = torch.func.functional_call(head, {"weight": w}, (x, labels))
        return F.cross_entropy(logits, labels)

    torch.autograd.gradcheck(loss, (x.requires_grad_(), weight.clone().requires_grad_()))


def at_the_poles(head, dtype):
    """Embeddings along their class weight, against it, and one in between. In one dimension's
    direction the cosines are exactly 1 and -1, with no rounding."""
    x = torch.zeros(3, D, dtype=dtype)
    x[0, 2], x[1, 4], x[2, :3] = 2.0, -3.0, 1.0
    with torch.no_grad():
        head.weight[0] = 0
        head.weight[0, 2] = 0.5
        head.weight[1] = 0
        head.weight[1, 4] = 1.5
    return x.requires_grad_(), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_finite_at_the_poles(name, easy, autocast):
    torch.manual_seed(0)
    head = build_head(name, D, C, scale=64.0, easy_margin=easy)
    x, labels = at_the_poles(head, torch.float32)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        features = x.to(autocast) if autocast else x
        logits = head(features, labels)
        assert logits.dtype == torch.float32
        losses = F.cross_entropy(logits, labels), head.loss(features, labels).loss
    for loss in losses:
        x.grad = head.weight.grad = None
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
        assert head.weight.grad.isfinite().all()


def test_arcface_gradient_at_the_poles_is_that_of_all_directions_together():
    """At theta = 0 the target logit falls alike in every direction, a cone: the mean of the
    slopes over opposite directions is 0, and the rest of the gradient comes from the other
    classes. At theta = pi it is the smooth cos - m sin m."""
    torch.manual_seed(0)
    head = build_head("ArcFace", D, C, scale=8.0).double()
    x, labels = at_the_poles(head, torch.float64)
    F.cross_entropy(head(x, labels), labels).backward()

    def loss_at(x):
        logits = brute_force("ArcFace", x, head.weight.detach(), labels, 8.0, 0.5)
        return F.cross_entropy(logits, labels)

    step = 1e-4
    for row in (0, 1):
        for axis in range(D):
            forward, backward = x.detach().clone(), x.detach().clone()
            forward[row, axis] += step
            backward[row, axis] -= step
            # Central differences average opposite directions.
            slope = (loss_at(forward) - loss_at(backward)) / (2 * step)
            assert x.grad[row, axis].item() == pytest.approx(slope.item(), abs=1e-5)


def test_near_the_poles_the_gradient_is_the_losses_own_derivative():
    torch.manual_seed(0)
    head = build_head("ArcFace", D, C, scale=8.0).double()
    labels = torch.tensor([0, 1])
    tangent = torch.randn(2, D, dtype=torch.float64)
    x = torch.stack((head.weight[0], -head.weight[1])).detach()
    x = (x + 1e-3 * x.norm() * tangent / tangent.norm()).requires_grad_()
    torch.autograd.gradcheck(
        lambda x: F.cross_entropy(head(x, labels), labels), (x,), eps=1e-8, atol=1e-5
    )


class Everything(Method):
    """Uses all that a method may: the target's cosine and norm, and the others' cosines."""

    changes_others = True

    def target(self, cosine, norm):
        return cosine - 0.1 * torch.tanh(norm) * cosine**2

    def others(self, cosines, target_cosine):
        return torch.where(cosines > target_cosine, cosines * (0.3 + cosines), cosines)


def heads():
    yield from (build_head(name, D, C, scale=8.0) for name in HEADS)
    for sub_centers in (1, 3):
        for scale in (None, 5.0):
            yield MarginHead(D, C, scale, Everything(), sub_centers)


@pytest.mark.parametrize("block", [None, 2 * N, 12 * N])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_in_blocks_is_the_cross_entropy_of_the_logits(monkeypatch, block, label_smoothing):
    if block:
        monkeypatch.setattr(class_blocks, "_BLOCK_ON_CPU", block)
    torch.manual_seed(5)
    for head in heads():
        head = head.double()
        head.label_smoothing = label_smoothing
        x, labels = problem(seed=6)
        x.requires_grad_()
        logits = head(x, labels)
        expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        result = head.loss(x, labels)
        torch.testing.assert_close(result.loss, expected, rtol=1e-13, atol=0)
        assert result.correct.tolist() == (logits.argmax(1) == labels).tolist()
        for ours, theirs in zip(
            torch.autograd.grad(result.loss, (x, head.weight)),
            torch.autograd.grad(expected, (x, head.weight)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_loss_of_a_single_class_and_of_a_weight_of_zero():
    head = build_head("ArcFace", D, 1, scale=8.0).double()
    x, _ = problem()
    assert head.loss(x, torch.zeros(N, dtype=torch.int64)).loss == 0
    head = build_head("ArcFace", D, C, scale=8.0).double()
    with torch.no_grad():
        head.weight[3] = 0
    x[1] = 0
    x, labels = x.requires_grad_(), torch.full((N,), 3)
    head.loss(x, labels).loss.backward()
    assert x.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_weighs_each_image_by_its_own_probability(gamma):
    torch.manual_seed(7)
    head = build_head("CosFace", D, C, scale=8.0, focal_gamma=gamma).double()
    x, labels = problem(seed=8)
    p = head(x, labels).softmax(1).gather(1, labels[:, None])
    expected = torch.mean((1 - p) ** gamma * -torch.log(p))
    torch.testing.assert_close(head.loss(x, labels).loss, expected, rtol=1e-12, atol=0)


def test_the_margin_does_not_move_other_classes():
    torch.manual_seed(0)
    plain = build_head("ArcFace", D, C, scale=S, margin=0.0).double()
    margin = build_head("ArcFace", D, C, scale=S, margin=0.5).double()
    margin.load_state_dict(plain.state_dict())
    x, labels = problem()
    difference = (plain(x, labels) - margin(x, labels)).detach()
    others = torch.ones(N, C, dtype=torch.bool)
    others[torch.arange(N), labels] = False
    assert (difference[others] == 0).all()
    assert (difference[~others] > 0.1).all()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"name": "Arcface"}, "'ArcFace'"),
        ({"name": "ArcFace", "margin": 4.0}, "angle"),
        ({"name": "CosFace", "scale": 0.0}, "above 0"),
        ({"name": "Softmax", "num_classes": 0}, "num_classes 0"),
    ],
)
def test_errors_say_what_is_allowed(kwargs, said):
    with pytest.raises(ValueError, match=said):
        build_head(**{"feature_dim": 4, "num_classes": 3, **kwargs})
