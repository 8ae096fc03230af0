"""Heads against the published formulas in float64, and their gradients, poles included."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from Head import HEADS, HeadSettings, build_head, softmax
from Head.classifier import MarginHead
from Head.methods import Method
from tests import published_heads

N, D, C = 6, 16, 9
S = 32.0


def problem(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, dtype=dtype, generator=generator)
    labels = torch.tensor([0, 3, 3, 8, 1, 5])
    return x, labels


def build(name, **kwargs):
    """A head in float64 with other values than 1 where they have no effect."""
    return build_head(
        name, D, C, combined_margin=published_heads.COMBINED,
        sub_centers=published_heads.SUB_CENTERS, **kwargs,
    ).double()  # fmt: skip


def hold_still(head, x, labels):
    """Let a head see one batch, and keep the statistics of it from then on."""
    head(x, labels)
    head.method.update_state = lambda target_cosine, norm: None
    return head


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_logits_loss_and_gradients_equal_the_published_formulas(name, easy):
    torch.manual_seed(1)
    head = build(name, scale=S, easy_margin=easy)
    x, labels = problem()
    with torch.no_grad():  # targets nearer than the margin, far off, and past pi - m
        weight = head.weight.view(C, -1, D)
        x[0] = weight[0, 0] + 0.1 * x[0]
        weight[3] = weight[3, 0]
        x[1] = -weight[3, 0] + 0.1 * x[1] * weight[3, 0].norm() / x[1].norm()
        x *= torch.linspace(1, 30, N)[:, None]  # norms below, in and above MagFace's range
    hold_still(head, x, labels)
    if name == "CurricularFace":
        head.method.t.fill_(0.3)
    if name == "AdaFace":  # qualities from -1 to 1
        head.method.norm_mean.fill_(float(x.norm(dim=1).median()))
        head.method.norm_deviation.fill_(5.0)
    inputs = x.requires_grad_(), head.weight
    logits = head(x, labels)
    expected = published_heads.logits(head, name, *inputs, labels, S, easy)
    torch.testing.assert_close(logits, expected, rtol=1e-12, atol=1e-11)
    loss = F.cross_entropy(expected, labels) + published_heads.regulariser(name, x).mean()
    ours = head.loss(x, labels).loss
    torch.testing.assert_close(ours, loss, rtol=1e-12, atol=0)
    for got, wanted in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(loss, inputs), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_equal_finite_differences(name):
    torch.manual_seed(2)
    head = build(name, scale=4.0)
    x, labels = problem(seed=3)
    x *= 4
    hold_still(head, x, labels)
    if name == "AdaFace":  # the quality, which has no gradient, at its ends
        head.method.norm_deviation.fill_(0.0)
    weight = head.weight.detach()

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, x):
            return self.head.loss(x, labels).loss

    def loss(x, w):
        return torch.func.functional_call(Loss(), {"head.weight": w}, (x,))

    torch.autograd.gradcheck(loss, (x.requires_grad_(), weight.clone().requires_grad_()))


def at_the_poles(head, dtype):
    """Embeddings along their class weight, against it, and one in between. In one dimension's
    direction the cosines are exactly 1 and -1, with no rounding."""
    x = torch.zeros(3, D, dtype=dtype)
    x[0, 2], x[1, 4], x[2, :3] = 2.0, -3.0, 1.0
    with torch.no_grad():
        weight = head.weight.view(C, -1, D)
        weight[:2] = 0
        weight[0, :, 2] = 0.5
        weight[1, :, 4] = 1.5
    return x.requires_grad_(), torch.tensor([0, 1, 2])


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_finite_at_the_poles(name, easy, autocast):
    torch.manual_seed(0)
    head = build_head(name, D, C, scale=64.0, easy_margin=easy)
    x, labels = at_the_poles(head, torch.float32)
    for use in ("logits", "loss"):
        x.grad = head.weight.grad = None
        with torch.autocast("cpu", autocast, enabled=autocast is not None):
            features = x.to(autocast) if autocast else x
            if use == "loss":
                loss = head.loss(features, labels).loss
            else:
                logits = head(features, labels)
                assert logits.dtype == torch.float32
                loss = F.cross_entropy(logits, labels)
        loss.backward()
        assert loss.isfinite()
        assert x.grad.isfinite().all()
        assert head.weight.grad.isfinite().all()


@pytest.mark.parametrize("easy", [False, True])
@pytest.mark.parametrize("name", [name for name in HEADS if name != "Softmax"])
def test_the_gradient_at_the_poles_is_that_of_all_directions_together(name, easy):
    """At theta = 0 ArcFace's target logit falls alike in every direction, a cone: the mean of the
    slopes over opposite directions is 0, and the rest of the gradient comes from the other
    classes. At theta = pi it is the smooth cos - m sin m. The others have cones, flat or smooth
    places there."""
    torch.manual_seed(0)
    head = build(name, scale=8.0, easy_margin=easy)
    x, labels = at_the_poles(head, torch.float64)
    with torch.no_grad():
        x *= 8  # within MagFace's range of norms
    hold_still(head, x, labels)
    if name == "AdaFace":  # image 0 of low quality, image 1 of high: cones
        head.method.norm_mean.fill_(20.0)
        head.method.norm_deviation.fill_(0.0)
    head.loss(x, labels).loss.backward()

    def loss_at(x):
        logits = published_heads.logits(head, name, x, head.weight.detach(), labels, 8.0, easy)
        return F.cross_entropy(logits, labels) + published_heads.regulariser(name, x).mean()

    step = 1e-3
    for row in (0, 1):
        for axis in range(D):
            forward, backward = x.detach().clone(), x.detach().clone()
            forward[row, axis] += step
            backward[row, axis] -= step
            # Central differences average opposite directions.
            slope = (loss_at(forward) - loss_at(backward)) / (2 * step)
            assert x.grad[row, axis].item() == pytest.approx(slope.item(), abs=2e-5)


@pytest.mark.parametrize("name", [name for name in HEADS if name != "Softmax"])
def test_near_the_poles_the_gradient_is_the_losses_own_derivative(name):
    torch.manual_seed(0)
    head = build(name, scale=8.0)
    labels = torch.tensor([0, 1])
    tangent = torch.randn(2, D, dtype=torch.float64)
    weight = head.weight.detach().view(C, -1, D)
    weight[1] = weight[1, 0]
    x = 20 * F.normalize(torch.stack((weight[0, 0], -weight[1, 0])))
    x = (x + 1e-3 * x.norm() * tangent / tangent.norm()).requires_grad_()
    hold_still(head, x, labels)
    if name == "AdaFace":  # the quality, which has no gradient, at its end
        head.method.norm_mean.fill_(25.0)
        head.method.norm_deviation.fill_(0.0)
    torch.autograd.gradcheck(lambda x: head.loss(x, labels).loss, (x,), eps=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("combined_margin", "name", "margin", "up_to"),
    [((1.0, 0.5, 0.0), "ArcFace", 0.5, math.pi - 0.5), ((1.0, 0.0, 0.35), "CosFace", 0.35, 4.0)],
)
def test_combined_with_one_margin_is_that_head(combined_margin, name, margin, up_to):
    theta = torch.linspace(0, math.pi, 100, dtype=torch.float64)
    theta = theta[theta < up_to]
    combined = build_head("Combined", D, C, combined_margin=combined_margin).method
    other = build_head(name, D, C, margin=margin).method
    torch.testing.assert_close(
        combined.target(theta.cos(), theta), other.target(theta.cos(), theta), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize("name", HEADS)
def test_published_values_are_the_default(name):
    m, s = {
        "ArcFace": (0.5, 64), "CosFace": (0.35, 64), "Softmax": (None, 1), "SphereFace": (4, None),
        "Combined": (None, 64), "CurricularFace": (0.5, 64), "AdaFace": (0.4, 64),
        "MagFace": (0.45, 64), "SubCenterArcFace": (0.5, 64), "ElasticArcFace": (0.5, 64),
        "ElasticCosFace": (0.35, 64), "ElasticArcFacePlus": (0.5, 64),
        "ElasticCosFacePlus": (0.35, 64),
    }[name]  # fmt: skip
    assert build_head(name, D, C).scale == s
    assert m is None or HEADS[name].margin == m


class Everything(Method):
    """Uses all that a method may: the target's cosine and norm, and the others' cosines."""

    changes_negatives = True

    def target(self, cosine, norm):
        return cosine - 0.1 * torch.tanh(norm) * cosine**2

    def negatives(self, cosines, target_cosine):
        return torch.where(cosines > target_cosine, cosines * (0.3 + cosines), cosines)


def heads():
    yield from (build(name, scale=8.0) for name in HEADS)
    for sub_centers in (1, 3):
        for scale in (None, 5.0):
            settings = HeadSettings(scale, sub_centers=sub_centers)
            yield MarginHead(D, C, Everything(), settings)


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3  # the head has left the setting as it was
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("block", "span"), [(None, None), (2 * N, None), (2 * N, 5 * N), (12 * N, N)]
)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_in_blocks_is_the_cross_entropy_of_the_logits(
    monkeypatch, three_threads, block, span, label_smoothing
):
    if block:
        monkeypatch.setattr(softmax, "BLOCK_ON_CPU", block)
    if span:  # computed by three threads
        monkeypatch.setattr(softmax, "LEAST_IN_A_SPAN", span)
    torch.manual_seed(5)
    for head in heads():
        head = head.double()
        head.label_smoothing = label_smoothing
        x, labels = problem(seed=6)
        x.requires_grad_()
        other = copy.deepcopy(head)  # for both to see their first batch
        logits = other(x, labels)
        expected = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        penalty = head.method.regulariser(x.norm(dim=1))
        expected = expected if penalty is None else expected + penalty.mean()
        result = head.loss(x, labels)
        torch.testing.assert_close(result.loss, expected, rtol=1e-13, atol=0)
        assert result.correct.tolist() == (logits.argmax(1) == labels).tolist()
        assert result.nearest.tolist() == published_heads.nearest(head, x, labels).tolist()
        for ours, theirs in zip(
            torch.autograd.grad(result.loss, (x, head.weight)),
            torch.autograd.grad(expected, (x, other.weight)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_nearest_looks_at_the_cosine_without_the_margin():
    head = build_head("ArcFace", D, 2, scale=8.0, margin=0.5).double()
    with torch.no_grad():
        head.weight.copy_(torch.eye(2, D))
    x = torch.zeros(3, D, dtype=torch.float64)
    # Just nearer to class 0, as near to both, just nearer to class 1.
    x[:, 0], x[:, 1] = torch.tensor([1.1, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.1])
    result = head.loss(x, torch.zeros(3, dtype=torch.int64))
    assert result.correct.tolist() == [False, False, False]
    assert result.nearest.tolist() == [True, True, False]


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
        ({"name": "CosFace", "margin": -0.1}, "at least 0"),
        ({"name": "SphereFace", "margin": 0.5}, "at least 1"),
        ({"name": "MagFace", "margin": 1.8}, "below 1.767"),
        ({"name": "Combined", "combined_margin": (0.0, 0.3, 0.2)}, "a factor above 0"),
        ({"name": "SubCenterArcFace", "sub_centers": 0}, "sub_centers is 0"),
        ({"name": "ArcFace", "focal_gamma": 2.0, "label_smoothing": 0.1}, "set one to 0"),
        ({"name": "Softmax", "num_classes": 0}, "num_classes 0"),
    ],
)
def test_errors_say_what_is_allowed(kwargs, said):
    with pytest.raises(ValueError, match=said):
        build_head(**{"feature_dim": 4, "num_classes": 3, **kwargs})


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_that_is_no_class_is_an_error_not_a_loss(label):
    head = build_head("ArcFace", 4, 5)
    with pytest.raises(IndexError, match=rf"{label}.* for a head of 5 classes, 0 to 4"):
        head.loss(torch.randn(2, 4), torch.tensor([2, label]))
