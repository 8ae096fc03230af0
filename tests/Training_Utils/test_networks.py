"""A compiled backbone against the plain one, and what is said where nothing can be compiled."""

import shutil

import pytest
import torch
from torch import nn

from Config import Config, ConfigError, validate
from Head import build_head
from Utils.errors import RunError
from Utils.processes import ALONE
from Utils.Training_Utils import networks
from Utils.Training_Utils.networks import Networks

CPU = torch.device("cpu")


def tiny_backbone():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 8)
    return nn.Sequential(*layers)


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")
def test_a_compiled_backbone_learns_the_same():
    gradients = []
    pixels, labels = torch.randn(4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 1])
    for compiling in (False, True):
        backbone, head = tiny_backbone().double(), build_head("CosFace", 8, 3).double()
        head.weight.data.copy_(torch.arange(24.0).view(3, 8).sin())
        networks = Networks(backbone, head, Config(compile=compiling), CPU, ALONE)
        assert networks.where.endswith(", compiled") == compiling
        networks.loss(networks.embed(pixels), labels).loss.backward()
        # The run's own module has the gradients, under the names of a checkpoint.
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-9, atol=1e-10)


def test_without_a_compiler_it_says_so_before_training(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(networks.shutil, "which", lambda name: None)
    with pytest.raises(RunError, match=r"no C\+\+ compiler.*leave --compile out"):
        Networks(tiny_backbone(), build_head("CosFace", 8, 3), Config(compile=True), CPU, ALONE)


def test_compiling_does_not_go_with_data_parallel():
    with pytest.raises(ConfigError, match=r"compile.*torchrun"):
        validate(Config(compile=True, use_multi_gpus=True), cuda_devices=2)
