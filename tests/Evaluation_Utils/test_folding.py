"""Evaluating networks: BatchNorm folded away, other dtypes, memory kept."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from Backbone import BACKBONES, build_backbone
from Config import Config, ConfigError, validate
from tests.processes import in_processes, run_script
from Utils.cpu import keep_freed_memory, peak_memory
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.embedding import embed, fold
from Utils.Evaluation_Utils.report import evaluate_pairs, sample_pairs

CPU = torch.device("cpu")
FAMILIES = ("MobileFaceNet", "ResNet18_IR", "SEResNet18_IR", "ResNet50", "ViT_T", "ViT_T_KPRPE")


def trained(name: str, size: int = 32, **variant: object) -> nn.Module:
    """A backbone whose BatchNorm layers have seen data, with slopes and scales of all signs."""
    torch.manual_seed(0)
    backbone = build_backbone(name, 32, (size, size), **variant)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, -0.5, 1.5)
    backbone.train()
    for _ in range(4):
        backbone(torch.randn(8, 3, size, size) + 0.3)
    return backbone.eval()


def relative(found: torch.Tensor, exact: torch.Tensor) -> float:
    return ((found - exact).norm(dim=1) / exact.norm(dim=1)).max().item()


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, {}) for name in FAMILIES]
    + [
        ("ResNet18_IR", {"middle_norm": False, "shortcut": "pool", "output_affine": False}),
        ("ResNet18_IR", {"attention": "cbam", "normalise": True}),
        ("MobileFaceNet", {"width": 2, "repeats": (2, 2, 2, 2)}),
    ],
)
def test_a_folded_network_computes_the_same_with_fewer_layers(name, variant):
    assert name in BACKBONES
    backbone = trained(name, **variant)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    pixels = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        plain = backbone(pixels)
        exact = backbone.double()(pixels.double()).float()
        backbone.float()
        folded = fold(backbone)
        error = relative(folded(pixels), exact)
    assert error <= max(1e-5, 3 * relative(plain, exact))  # not further off than rounding takes it
    assert relative(folded(pixels), plain) < 1e-4

    def norms(network: nn.Module) -> int:
        return sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in network.modules())

    assert norms(folded) < norms(backbone) / 2
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not backbone.training


class Pointed(list):
    """Images, of which all but the first have points."""

    points = np.array([(20.0, 22.0), (45.0, 20.0), (33.0, 35.0), (24.0, 48.0), (42.0, 47.0)])

    def keypoints(self, index):
        return None if index == 0 else self.points + index


def test_points_of_images_and_of_their_mirror_images_reach_a_network_with_kp_rpe():
    torch.manual_seed(0)
    vit = build_backbone("ViT_T_KPRPE", 16, (32, 32)).eval()
    torch.nn.init.normal_(vit.keypoint_encoding.linear.weight)
    vit.blocks = vit.blocks[:2]
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 80, 3), dtype=np.uint8)
    found = embed(vit, Pointed(images), CPU, batch_size=2)
    small = [cv2.resize(image, (40, 32), interpolation=cv2.INTER_AREA)[:, 4:36] for image in images]
    points = torch.from_numpy((Pointed.points + np.arange(3)[:, None, None] + 0.5) / 2 - 0.5)
    points = (points - torch.tensor([4, 0])).float() / 32  # the left of 40 columns is cut off
    points[0] = vit.keypoint_encoding.template
    other = points.clone()
    for point, name in enumerate((1, 0, 2, 4, 3)):  # an eye that was on the left is on the right
        other[:, point, 0], other[:, point, 1] = 1 - points[:, name, 0], points[:, name, 1]
    pixels = vit.preprocessing(torch.from_numpy(np.stack(small)))
    with torch.no_grad():
        for both, place, there in ((found[0], points, pixels), (found[1], other, pixels.flip(3))):
            torch.testing.assert_close(torch.from_numpy(both), vit(there, place))
            assert not np.allclose(both[1:], vit(there)[1:], atol=1e-3)


@pytest.mark.parametrize("name", ["MobileFaceNet", "ResNet18_IR"])
def test_sync_batch_norms_are_evaluated_like_plain_ones(name):
    backbone = trained(name)
    in_step = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))
    pixels = torch.randn(4, 3, 32, 32)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            found = fold(in_step, dtype)(pixels.to(dtype))
            assert torch.equal(found, fold(backbone, dtype)(pixels.to(dtype)))


def embedded_in_group(group, name):
    """Embeddings of a network whose BatchNorms are those of `--sync_batchnorm`."""
    backbone = trained(name)
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    expected, _ = embed(backbone, images, torch.device("cpu"))
    in_step = nn.SyncBatchNorm.convert_sync_batchnorm(backbone, group)
    found, _ = embed(in_step, images, torch.device("cpu"))
    synced = [m for m in in_step.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert synced
    assert all(m.process_group is group for m in synced)  # the run's own network still has it
    return torch.from_numpy(expected), torch.from_numpy(found)


def test_a_network_with_a_process_group_is_embedded_like_one_without(tmp_path):
    for expected, found in in_processes(2, tmp_path, embedded_in_group, "ResNet18_IR"):
        assert torch.equal(expected, found)


def test_norms_that_are_not_folded_keep_their_values_in_short_dtypes():
    backbone = trained("ResNet18_IR")
    in_step = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(backbone))
    for network in (backbone, in_step):
        folded = fold(network, torch.bfloat16)
        left = [name for name, m in folded.named_modules() if hasattr(m, "running_var")]
        assert left
        for name in left:
            exact = network.get_submodule(name).state_dict()
            for key, value in folded.get_submodule(name).state_dict().items():
                assert value.dtype == exact[key].dtype
                assert torch.equal(value, exact[key]), (name, key)


def test_a_norm_is_folded_only_where_nothing_else_sees_what_is_before_it():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.twice, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            before = self.seen(x)
            x = self.bn1(before) + before
            return self.bn2(self.twice(self.twice(x)))

    torch.manual_seed(0)
    network = Net().train()
    for _ in range(3):
        network(torch.randn(8, 3, 5, 5) * 2 + 1)
    network.eval()
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fold(network)(x), network(x))


def test_a_network_whose_control_flow_depends_on_values_is_evaluated_as_it_is():
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert torch.equal(fold(Net())(torch.tensor([-1.0])), torch.tensor([1.0]))


@pytest.mark.parametrize("count", [lambda images: int(images.shape[0]), len])
def test_a_network_that_counts_its_images_is_evaluated_as_it_is(count):
    class Counts(nn.Linear):
        def forward(self, images):
            return super().forward(images.view(count(images), -1))

    network = Counts(12, 2).eval()
    images = torch.randn(4, 3, 2, 2)
    assert torch.equal(fold(network)(images), network(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_embeddings_are_those_of_the_network_image_by_image(name):
    backbone = trained(name)
    images = list(np.random.default_rng(1).integers(0, 256, (21, 32, 32, 3), np.uint8))
    features, flipped = embed(backbone, images, CPU, batch_size=13)
    with torch.inference_mode():
        for found, turned in ((features, False), (flipped, True)):
            rows = [i[:, ::-1].copy() if turned else i for i in images]
            pixels = [backbone.preprocessing(torch.from_numpy(i)[None]) for i in rows]
            exact = torch.cat([backbone(p) for p in pixels])
            assert relative(torch.from_numpy(found), exact) < 2e-5


def test_embeddings_are_the_same_to_the_last_bit_in_any_number_of_threads():
    backbone = trained("MobileFaceNet")
    images = list(np.random.default_rng(2).integers(0, 256, (40, 32, 32, 3), np.uint8))
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(embed(backbone, images, CPU, batch_size=16))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert np.array_equal(found[0][0], other[0])
        assert np.array_equal(found[0][1], other[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_is_close_and_is_no_fp32(name):
    backbone = trained(name)
    images = list(np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), np.uint8))
    exact, _ = (torch.from_numpy(f) for f in embed(backbone, images, CPU))
    found, _ = (torch.from_numpy(f) for f in embed(backbone, images, CPU, dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert 1e-4 < relative(found, exact) < 0.2
    assert torch.cosine_similarity(found, exact).min() > 0.98


def test_fp16_on_a_cpu_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"eval_dtype is 'fp16'.*bf16"):
        validate(Config(eval_dtype="fp16"))
    validate(Config(eval_dtype="fp16"), cuda_devices=1)
    validate(Config(eval_dtype="bf16"))


def test_a_sample_of_pairs_has_the_same_shares_of_folds_and_kinds():
    rng = np.random.default_rng(0)
    folds, same = np.arange(4000) // 400, np.arange(4000) % 2 == 0
    left, right = rng.integers(0, 5000, (2, 4000))
    images = np.arange(5000)
    data = VerificationSet(images, [str(i) for i in images], left, right, same, folds)
    sample = sample_pairs(data, 600)
    counts = {
        (f, s): np.sum((sample.folds == f) & (sample.same == s)) for f in range(10) for s in (0, 1)
    }
    assert set(counts.values()) == {30}
    pairs = set(zip(left.tolist(), right.tolist(), same.tolist(), folds.tolist(), strict=True))
    for row in range(600):
        a, b = (sample.images[side[row]] for side in (sample.left, sample.right))
        assert (a, b, sample.same[row], sample.folds[row]) in pairs
        assert sample.names[sample.left[row]] == str(a)
    whole = sample_pairs(data, 10_000)
    assert sorted(zip(whole.folds, whole.same, strict=True)) == sorted(
        zip(folds, same, strict=True)
    )


def test_an_embedding_that_is_not_finite_is_named_by_its_image():
    names = ["a", "b", "c", "d"]
    left, right, folds = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 0]), np.array([0, 0, 1, 1])
    data = VerificationSet(names, names, left, right, np.tile([True, False], 2), folds)
    features = np.ones((2, 4, 3), np.float32)
    features[1, 2, 0] = np.nan
    with pytest.raises(DataError, match=r"embedding of c holds NaN .* 1 of the 4 images"):
        evaluate_pairs(data, (features[0], features[1]), ["cosine"])


_FAULTS = """
import resource, sys
import torch
from Utils.cpu import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # the heap finds its shape
    torch.ones(9 << 20)
before = faults()
for _ in range(10):
    torch.ones(9 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library is not glibc")
def test_kept_memory_is_used_again_without_asking_the_system():
    def count(how: str) -> int:
        return int(run_script("-c", _FAULTS, how, check=True).stdout)

    assert count("keep") < 100
    assert count("not") > 500


def test_peak_memory_counts_what_was_held_and_freed():
    before = peak_memory()
    np.ones(200 << 20, np.uint8)
    np.ones(400 << 20, np.uint8)
    assert peak_memory() >= max(before, 400 << 20)
