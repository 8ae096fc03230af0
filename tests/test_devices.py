"""How CUDA computes: exactly while something is evaluated, as the settings say while a run trains.

PyTorch's settings for CUDA can be read without a GPU; so can the operations of a training step.
"""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from Backbone import build_backbone
from Backbone.layers import ATTENTIONS
from Backbone.preprocessing import Preprocessing
from Backbone.resnet_ir import ResNetIR
from Config import Config
from Head import HEADS, build_head
from tests.scripts.test_training import only_run, tiny_config  # noqa: F401
from Utils.Datasets_Utils.photos import PhotoList
from Utils.devices import describe_precision
from Utils.Evaluation_Utils import identification
from Utils.Evaluation_Utils.embedding import embed, embed_batches
from Utils.Evaluation_Utils.features import packed_features
from Utils.Evaluation_Utils.identification import exact_scores
from Utils.Training_Utils.augmentation import build_augmentation
from Utils.Training_Utils.trainer import Trainer

CPU = torch.device("cpu")
IMAGES = np.zeros((6, 32, 32, 3), np.uint8)


def settings() -> dict[str, object]:
    """All that changes the digits of a result on CUDA."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "tf32": (cudnn.allow_tf32, matmul.allow_tf32),
        # What newer code reads in place of them.
        "fp32_precision": (cudnn.conv.fp32_precision, matmul.fp32_precision),
        "half sums": (
            matmul.allow_fp16_reduced_precision_reduction,
            matmul.allow_bf16_reduced_precision_reduction,
        ),
        "benchmark": cudnn.benchmark,
        "deterministic": (cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
    }


@pytest.fixture(params=[True, False], ids=["TF32 before", "without"])
def before(request):
    """The settings that a program had before, which it must find again."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    values = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = request.param
    found = settings()
    yield found
    assert settings() == found
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = values


def assert_exact(found: dict[str, object]) -> None:
    assert found["tf32"] == (False, False)
    assert "tf32" not in found["fp32_precision"]
    assert found["half sums"] == (False, False)
    assert not found["benchmark"]


class Network(nn.Module):
    """Remembers the settings that it computed with."""

    feature_dim = 3
    preprocessing = Preprocessing(input_size=(32, 32))
    seen: ClassVar[list] = []  # the network that computes is a copy of this one

    def forward(self, x):
        assert len(x)  # can't be traced, so that this very code computes
        self.seen.append(settings())
        return x.mean(dim=(2, 3))


@pytest.fixture
def network():
    Network.seen.clear()
    return Network()


def test_embeddings_are_exact_and_the_settings_of_before_come_back(network, before):
    embed(network, IMAGES, CPU, batch_size=2)
    assert len(network.seen) == 3
    for found in network.seen:
        assert_exact(found)


def test_the_settings_come_back_after_an_error(before):
    class Fails(Network):
        def forward(self, x):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        embed(Fails(), IMAGES, CPU)
    assert settings() == before


def test_features_on_disk_are_exact(network, before, tmp_path):
    def produce(lots):
        batches = [range(3), range(3, 6)]
        return (straight for straight, _ in embed_batches(network, IMAGES, CPU, batches))

    photos = PhotoList([str(n) for n in range(6)], None, tmp_path)
    packed_features(tmp_path / "f", photos, {"dim": 3, "dtype": "fp32"}, produce, say=str)
    assert len(network.seen) == 2
    for found in network.seen:
        assert_exact(found)


def test_scores_are_exact(before, monkeypatch):
    seen, multiply = [], exact_scores.Products.multiply

    def noted(self, rows):
        seen.append(settings())
        return multiply(self, rows)

    monkeypatch.setattr(exact_scores.Products, "multiply", noted)
    features = np.random.default_rng(0).normal(size=(8, 4))
    identification.evaluate(features[:4], [0, 0, 1, 1], features[4:])
    assert seen
    for found in seen:
        assert_exact(found)


@pytest.mark.parametrize("tf32", [True, False])
def test_training_computes_as_tf32_says_and_its_tests_exactly(tiny_config, before, tf32):  # noqa: F811
    trainer = Trainer(dataclasses.replace(tiny_config, tf32=tf32))
    step, evaluate = trainer.step, trainer.test_sets.evaluate
    steps, tests = [], []

    def noted(batch):
        steps.append(settings())
        return step(batch)

    def tested(backbone, averaged, show):
        hook = backbone.register_forward_hook(lambda *_: tests.append(settings()))
        assert evaluate(backbone, averaged, show)  # a copy, with the hook
        hook.remove()
        return {}

    trainer.step, trainer.test_sets.evaluate = noted, tested
    trainer.run()
    assert {found["tf32"] for found in steps} == {(tf32, tf32)}
    assert {found["deterministic"] for found in steps} == {(False, False)}
    for found in tests:
        assert_exact(found)


def test_a_deterministic_run_computes_so_and_says_so(tiny_config, before, monkeypatch):  # noqa: F811
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    trainer = Trainer(dataclasses.replace(tiny_config, deterministic=True))
    step, steps = trainer.step, []

    def noted(batch):
        steps.append(settings())
        with pytest.raises(RuntimeError, match="deterministic"):  # PyTorch itself keeps watch
            torch.empty(2).put_(torch.tensor([0, 0]), torch.rand(2))
        return step(batch)

    trainer.step = noted
    trainer.run()
    assert {found["deterministic"] for found in steps} == {(True, True)}
    assert not any(found["benchmark"] for found in steps)
    assert "deterministic" in (only_run(tiny_config.save_dir) / "train.log").read_text()


def test_the_log_says_how_a_gpu_computes():
    gpu = torch.device("cuda", 0)
    assert describe_precision(Config(), gpu, None) == "float32, TF32 allowed"
    assert describe_precision(Config(tf32=False), gpu, None) == "float32"
    both = describe_precision(Config(deterministic=True), gpu, torch.bfloat16)
    assert both == "bfloat16 in the backbone, TF32 allowed, deterministic"
    assert describe_precision(Config(), CPU, None) == "float32"


# Operations without a deterministic form on CUDA: the list in the documentation of
# `torch.use_deterministic_algorithms`, by the names of PyTorch's operators.
NOT_DETERMINISTIC = {
    "avg_pool3d_backward", "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward",
    "adaptive_max_pool2d_backward", "fractional_max_pool2d_backward",
    "fractional_max_pool3d_backward", "max_unpool2d", "max_unpool3d",
    "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
    "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward",
    "_upsample_bicubic2d_aa_backward", "reflection_pad1d_backward", "reflection_pad2d_backward",
    "reflection_pad3d_backward", "nll_loss2d_forward", "nll_loss2d_backward", "_ctc_loss_backward",
    "put_", "put", "histc", "median", "nanmedian", "grid_sampler_2d_backward", "kthvalue",
    "scatter_reduce", "scatter_reduce_", "_embedding_bag_backward",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """The names of the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", HEADS)
def test_the_step_of_each_head_has_only_operations_that_can_be_deterministic(name):
    head = build_head(name, 8, 40, sample_rate=0.5)
    embeddings = torch.randn(6, 8, requires_grad=True)
    labels = torch.arange(6)
    with Operations() as found:
        head.sample(labels, 0)
        head.loss(embeddings, labels).loss.backward()
    assert "mm" in found.names
    assert not found.names & NOT_DETERMINISTIC


def test_each_network_has_only_operations_that_can_be_deterministic():
    networks = [ResNetIR(18, attention, 8, (32, 32)) for attention in ATTENTIONS]
    networks += [
        build_backbone(name, 8, (32, 32)) for name in ("MobileFaceNet", "ResNet18_IR", "ViT_T")
    ]
    for network in networks:
        with Operations() as found:
            network(torch.randn(2, 3, 32, 32)).square().sum().backward()
        assert "convolution_backward" in found.names
        assert not found.names & NOT_DETERMINISTIC


def test_augmentation_has_only_operations_that_can_be_deterministic():
    all_of_it = {
        f"{name}_prob": 1.0 for name in ("flip", "crop", "low_res", "jitter", "jpeg", "erasing")
    }
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    with Operations() as found:
        build_augmentation(Config(**all_of_it))(images, torch.Generator().manual_seed(0), 0, 3)
    assert len(found.names) > 10
    assert not found.names & NOT_DETERMINISTIC
