"""What a GPU would refuse in a forward pass, seen without one: fake tensors have a device, a dtype
and a shape, and no values; an operator on tensors of two devices raises, as on a card.

A backward pass of CUDA tensors needs a card, and so does their autocast.
tests/Training_Utils/test_step.py has augmentation and each head's loss, and what would wait.
"""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from Backbone import BACKBONES, Preprocessing, build_backbone
from Config import Config
from Head import HEADS, build_head
from Utils.processes import ALONE
from Utils.Training_Utils.networks import Networks

CUDA = torch.device("cuda", 0)
# The deepest of each kind have the same layers as these, more often.
NAMES = [name for name in BACKBONES if not any(deep in name for deep in ("100", "152", "200"))]


@pytest.fixture(autouse=True)
def only_fake_tensors(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # they have no memory
    with FakeTensorMode(allow_non_fake_inputs=False), CUDA:
        yield


@pytest.mark.parametrize("name", NAMES)
def test_from_pixels_to_a_loss_everything_is_on_the_gpu(name):
    backbone, head = build_backbone(name, 8, (32, 32)), build_head("ArcFace", 8, 5)
    networks = Networks(backbone, head, Config(), CUDA, ALONE)
    images = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    pixels = backbone.preprocessing(images, torch.zeros(4, dtype=torch.bool))
    assert (pixels.device, pixels.dtype) == (CUDA, torch.float32)
    embeddings = networks.embed(pixels)
    assert (embeddings.device, tuple(embeddings.shape)) == (CUDA, (4, 8))
    result = networks.loss(embeddings, torch.zeros(4, dtype=torch.int64))
    assert {value.device for value in result} == {CUDA}
    assert result.loss.dtype == torch.float32


@pytest.mark.parametrize("name", HEADS)
def test_all_logits_are_on_the_gpu(name):
    embeddings = torch.zeros(4, 8, dtype=torch.bfloat16)
    logits = build_head(name, 8, 5)(embeddings, torch.zeros(4, dtype=torch.int64))
    assert (logits.device, logits.dtype, tuple(logits.shape)) == (CUDA, torch.float32, (4, 5))


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_preprocessing_stays_on_the_gpu(order):
    preprocessing = Preprocessing(order, input_size=(32, 48))
    pixels = preprocessing(torch.zeros(2, 32, 48, 3, dtype=torch.uint8))
    assert (pixels.device, tuple(pixels.shape)) == (CUDA, (2, 3, 32, 48))


def test_a_tensor_of_another_device_is_refused_here_too():
    backbone, head = build_backbone("MobileFaceNet", 8, (32, 32)), build_head("ArcFace", 8, 5)
    with pytest.raises(RuntimeError, match="on the same device"):
        backbone(torch.zeros(2, 3, 32, 32, device="cpu"))
    with pytest.raises(RuntimeError, match="device"):
        head.loss(torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64, device="cpu"))
