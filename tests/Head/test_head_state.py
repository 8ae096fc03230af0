"""What heads remember from batch to batch: against formulas, over files, and over processes."""

import io
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from Head import HEADS, build_head
from tests.processes import in_processes

N, D, C = 12, 16, 10
LABELS = torch.arange(N) % C
STATEFUL = [name for name in HEADS if len(build_head(name, 4, 3).state_dict()) > 1]


def build(name, seed=1, group=None):
    torch.manual_seed(seed)
    return build_head(name, D, C, group=group).double()


def batches(count, images=N):
    generator = torch.Generator().manual_seed(5)
    scale = torch.linspace(1, 8, images, dtype=torch.float64)[:, None]
    for _ in range(count):
        yield scale * torch.randn(images, D, dtype=torch.float64, generator=generator)


def target_cosines(head, x, labels):
    return F.cosine_similarity(x, head.weight.detach()[labels])


def state(head):
    return {k: v.clone() for k, v in head.state_dict().items() if k != "weight"}


def test_which_heads_have_a_state():
    elastic = [f"Elastic{kind}{plus}" for plus in ("", "Plus") for kind in ("ArcFace", "CosFace")]
    assert set(STATEFUL) == {"SphereFace", "CurricularFace", "AdaFace", *elastic}


@pytest.mark.parametrize("use", ["forward", "loss"])
def test_curricularface_follows_the_mean_target_cosine_from_0(use):
    head = build("CurricularFace")
    t = 0.0
    for x in batches(3):
        getattr(head, use)(x, LABELS)
        t = 0.01 * target_cosines(head, x, LABELS).mean().item() + 0.99 * t
    assert head.method.t.item() == pytest.approx(t, rel=1e-12)


@pytest.mark.parametrize("use", ["forward", "loss"])
def test_adaface_follows_mean_and_deviation_of_the_norms(use):
    head = build("AdaFace")
    mean, deviation = 20.0, 100.0
    for x in (*batches(3), next(batches(1)) * 1000):  # the last ones' norms are cut to 100
        getattr(head, use)(x, LABELS)
        norms = np.clip(np.linalg.norm(x.numpy(), axis=1), 0.001, 100)
        mean = 0.01 * norms.mean() + 0.99 * mean
        deviation = 0.01 * norms.std(ddof=1) + 0.99 * deviation
    assert head.method.norm_mean.item() == pytest.approx(mean, rel=1e-12)
    assert head.method.norm_deviation.item() == pytest.approx(deviation, rel=1e-12)


def test_adaface_takes_a_batch_of_one_image():
    head = build("AdaFace")
    x = next(batches(1))[:1].requires_grad_()
    head.loss(x, LABELS[:1]).loss.backward()
    assert x.grad.isfinite().all()
    mean = 0.01 * x.norm().item() + 0.99 * 20
    assert head.method.norm_mean.item() == pytest.approx(mean, rel=1e-12)
    assert head.method.norm_deviation.item() == 100


def test_sphereface_counts_batches_and_lets_the_margin_in():
    head = build("SphereFace")
    (x,) = batches(1)
    losses = [head.loss(x, LABELS).loss.item() for _ in range(4)]
    assert head.method.iteration.item() == 4
    assert losses == sorted(losses)
    head.method.iteration.fill_(10**6)
    head.eval()
    lowest = (5 * target_cosines(head, x, LABELS) + sphere_psi(head, x)) / 6 * x.norm(dim=1)
    logits = head(x, LABELS).gather(1, LABELS[:, None])[:, 0]
    torch.testing.assert_close(logits.detach(), lowest)


def sphere_psi(head, x):
    theta = torch.acos(target_cosines(head, x, LABELS))
    k = (4 * theta / torch.pi).floor()
    return (-1) ** k * torch.cos(4 * theta) - 2 * k


@pytest.mark.parametrize("name", STATEFUL)
def test_out_of_training_nothing_is_remembered(name):
    head = build(name)
    head(next(batches(1)), LABELS)
    before = state(head)
    head.eval()
    first, second = (head.loss(next(batches(1)), LABELS).loss for _ in range(2))
    assert first == second
    assert all(torch.equal(before[key], value) for key, value in state(head).items())


@pytest.mark.parametrize("name", ["SphereFace", "CurricularFace", "AdaFace"])
def test_micro_batches_move_the_statistics_as_far_as_whole_ones(name):
    heads = build(name), build(name)
    heads[1].method.micro_batches = 4
    x = next(batches(1))
    x, labels = torch.cat([x] * 4), torch.cat([LABELS] * 4)  # micro-batches that are all alike
    for _ in range(10):
        for head in heads:
            for part in zip(
                x.chunk(head.method.micro_batches),
                labels.chunk(head.method.micro_batches),
                strict=True,
            ):
                head.loss(*part)
    whole, split = map(state, heads)
    for key, value in whole.items():
        # The deviation of N values has n - 1 in it, so it is a little larger in a micro-batch.
        close = 1e-3 if "deviation" in key else 1e-12
        torch.testing.assert_close(split[key], value, rtol=close, atol=0, msg=key)


@pytest.mark.parametrize("name", STATEFUL)
def test_restored_from_a_file_a_head_goes_on_bit_for_bit(name):
    head = build(name)
    first, second, third = batches(3)
    head.loss(first, LABELS)
    file = io.BytesIO()
    torch.save(head.state_dict(), file)
    expected = [head.loss(x, LABELS).loss for x in (second, third)]
    file.seek(0)
    restored = build(name, seed=9)
    restored.load_state_dict(torch.load(file, weights_only=True))
    again = [restored.loss(x, LABELS).loss for x in (second, third)]
    assert again == expected
    assert all(torch.equal(state(head)[key], value) for key, value in state(restored).items())


@pytest.mark.parametrize(
    ("name", "m", "deviation"), [("ElasticArcFace", 0.5, 0.05), ("ElasticCosFacePlus", 0.35, 0.02)]
)
def test_elastic_margins_are_normal_anew_each_batch_and_follow_the_seed(name, m, deviation):
    head = build(name)
    update_state = partial(head.method.update_state, torch.rand(50_000), torch.zeros(50_000))
    drawn = []
    for _ in range(2):
        update_state()
        drawn.append(head.method._margins)
    for margins in drawn:
        assert margins.mean().item() == pytest.approx(m, abs=4 * deviation / 50_000**0.5)
        assert margins.std().item() == pytest.approx(deviation, rel=0.02)
    assert not torch.equal(*drawn)
    for seed, same in ((1, True), (2, False)):
        other = build(name, seed)
        other.method.update_state(torch.rand(50_000), torch.zeros(50_000))
        assert torch.equal(other.method._margins.sort().values, drawn[0].sort().values) == same


@pytest.mark.parametrize("name", ["ElasticArcFacePlus", "ElasticCosFacePlus"])
def test_elastic_plus_gives_the_largest_margin_to_the_image_farthest_off(name):
    method = build(name).method
    cosine = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 2 - 1
    method.update_state(cosine, torch.ones(100))
    farthest_first = method._margins[cosine.argsort()]
    assert torch.equal(farthest_first, farthest_first.sort(descending=True).values)


@pytest.mark.parametrize("name", ["SubCenterArcFace", "ArcFace"])
def test_only_the_nearest_sub_center_of_a_class_learns_from_an_image(name):
    head = build(name)
    x = next(batches(1))[:1]
    head.loss(x, LABELS[:1]).loss.backward()
    learning = head.weight.grad.view(C, -1, D).ne(0).any(2)
    assert learning.sum(1).tolist() == [1] * C
    nearest = F.cosine_similarity(head.weight, x).view(C, -1).argmax(1)
    assert learning.int().argmax(1).tolist() == nearest.tolist()


def remembered(group):
    """Each stateful head as two processes have it: with half the images each, and with half the
    classes each. What they remember, and the margins that they drew last."""
    found = {}
    half = slice(group.rank() * N // 2, (group.rank() + 1) * N // 2)
    for name in STATEFUL:
        by_images, by_classes = build(name), build(name, group=group)
        by_images.method.group = group
        for head in (by_images, by_classes):
            for x in batches(2):
                head.loss(x[half], LABELS[half])
        margins = [getattr(head.method, "_margins", None) for head in (by_images, by_classes)]
        found[name] = (state(by_images), state(by_classes), *margins)
    return found


def test_two_processes_remember_what_one_with_the_whole_batch_does(tmp_path):
    found = in_processes(2, tmp_path, remembered)
    for name in STATEFUL:
        alone = build(name)
        for x in batches(2):
            alone.loss(x, LABELS)
        for rank in range(2):
            for theirs in found[rank][name][:2]:
                for key, value in state(alone).items():
                    torch.testing.assert_close(theirs[key], value, rtol=1e-14, atol=0)
        if "Elastic" in name:
            for rank in range(2):
                assert torch.equal(found[rank][name][3], alone.method._margins)
            together = torch.cat([found[rank][name][2] for rank in range(2)])
            assert torch.equal(together, alone.method._margins)
