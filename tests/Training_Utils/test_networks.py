"""How a step calls its networks: in which dtype, and compiled, alone and in DDP; and what is said
where nothing can be compiled."""

import dataclasses
import functools
import shutil
import threading

import pytest
import torch
from torch import nn

from Backbone import build_backbone
from Config import Config, ConfigError, validate
from Head import build_head
from tests.processes import in_processes
from Utils.errors import RunError
from Utils.processes import ALONE, Processes
from Utils.Training_Utils import networks
from Utils.Training_Utils.networks import Networks

CPU = torch.device("cpu")


def tiny_backbone():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(144, 8)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_a_thread_of_data_parallel_computes_in_the_dtype_of_the_run(dtype):
    backbone, seen = tiny_backbone(), []
    backbone[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    head = build_head("CosFace", 8, 3)
    networks = Networks(backbone, head, Config(), CPU, ALONE, dtype)

    def replica():
        # As `torch.nn.parallel.parallel_apply` does: autocast may be on, with the default dtype.
        for enabled in (False, dtype is not None):
            with torch.autocast("cpu", enabled=enabled):
                networks.embed(torch.randn(2, 3, 8, 8))

    thread = threading.Thread(target=replica)
    thread.start()
    thread.join()
    assert seen == [dtype or torch.float32] * 2


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


# Traces as inductor does, but runs PyTorch's own operations: nothing waits for a C++ compiler.
TRACED = functools.partial(torch.compile, backend="aot_eager", dynamic=False)


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("MobileFaceNet", False),
        *((n, True) for n in ("MobileFaceNet", "ResNet18_IR", "ViT_T_KPRPE")),
    ],
)
def test_a_backbone_is_compiled_as_one_graph(name, training):
    torch.manual_seed(0)
    short = {"repeats": (1, 1, 0, 0)} if name == "MobileFaceNet" else {}
    backbone = build_backbone(name, 8, (32, 32), **short).train(training)
    if name.startswith("ViT"):
        backbone.blocks = backbone.blocks[-1:]  # with drop path
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    pixels = torch.randn(4, 3, 32, 32)
    gradients = []
    for network in (backbone, TRACED(backbone, fullgraph=True)):
        backbone.zero_grad()
        torch.manual_seed(0)
        network(pixels).square().sum().backward()
        gradients.append({name: p.grad for name, p in backbone.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected)


def gradients_of_two_micro_batches(group, compiling):
    """The backbone's gradients in a process, of images that it alone has, and their names."""
    torch.compile = TRACED  # this process ends with the test
    processes = Processes(group.rank(), group.size(), group, group)
    backbone, head = tiny_backbone().double(), build_head("CosFace", 8, 3).double()
    head.weight.data.copy_(torch.arange(24.0).view(3, 8).sin())
    networks = Networks(backbone, head, Config(compile=compiling), CPU, processes)
    torch.manual_seed(group.rank())
    pixels, labels = torch.randn(2, 4, 3, 8, 8).double(), torch.tensor([0, 1, 2, 1])
    for _ in range(2):  # the second time nothing is traced
        backbone.zero_grad()
        with networks.no_sync():
            networks.loss(networks.embed(pixels[0]), labels).loss.backward()
        networks.loss(networks.embed(pixels[1]), labels).loss.backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


def test_compiled_in_ddp_the_gradients_are_the_same_mean(tmp_path):
    found = []
    for compiling in (False, True):
        folder = tmp_path / str(compiling)
        folder.mkdir()
        found += in_processes(2, folder, gradients_of_two_micro_batches, compiling)
    for name, expected in found[0].items():
        for gradients in found[1:]:
            torch.testing.assert_close(gradients[name], expected, rtol=1e-9, atol=1e-10)


def test_without_a_compiler_it_says_so_before_training(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(networks.shutil, "which", lambda name: None)
    with pytest.raises(RunError, match=r"no C\+\+ compiler.*--no-compile"):
        Networks(tiny_backbone(), build_head("CosFace", 8, 3), Config(compile=True), CPU, ALONE)


def test_activation_checkpointing_is_of_networks_that_have_it_and_are_not_compiled():
    config = Config(activation_checkpointing=True)
    backbone = build_backbone("MobileFaceNet", 8, (32, 32))
    Networks(backbone, build_head("CosFace", 8, 3), config, CPU, ALONE)
    assert backbone.recompute
    with pytest.raises(ConfigError, match="no blocks that could be computed again"):
        Networks(tiny_backbone(), build_head("CosFace", 8, 3), config, CPU, ALONE)
    with pytest.raises(ConfigError, match=r"compile.*activation_checkpointing"):
        validate(dataclasses.replace(config, compile=True))


def test_compiling_does_not_go_with_data_parallel():
    with pytest.raises(ConfigError, match=r"compile.*torchrun"):
        validate(Config(compile=True, use_multi_gpus=True), cuda_devices=2)


def test_left_open_compiling_is_for_long_runs_on_a_gpu(monkeypatch):
    gpu, needed = torch.device("cuda"), networks.COMPILED_FROM
    monkeypatch.setattr(networks, "lacks_compiler", lambda device: "")
    assert networks.compiles(Config(), gpu, ALONE, needed)
    assert not networks.compiles(Config(), gpu, ALONE, needed - 1)
    assert not networks.compiles(Config(), CPU, ALONE, needed)
    assert not networks.compiles(Config(compile=False), gpu, ALONE, needed)
    assert networks.compiles(Config(compile=True), CPU, ALONE, 1)
    assert not networks.compiles(Config(), gpu, Processes(world_size=2), needed)
    others = ("use_multi_gpus", "deterministic", "activation_checkpointing")
    for other in (Config(**{name: True}) for name in others):
        assert not networks.compiles(other, gpu, ALONE, needed)
    monkeypatch.setattr(networks, "lacks_compiler", lambda device: "no C compiler")
    assert not networks.compiles(Config(), gpu, ALONE, needed)


def test_where_nobody_asked_to_compile_a_run_goes_on_without(monkeypatch):
    def refuse(module, inputs):
        raise RuntimeError("no Python.h")

    def broken(network, device, graphs):
        return torch.compile(network, backend=refuse)

    monkeypatch.setattr(networks, "compiled", broken)
    monkeypatch.setattr(networks, "compiles", lambda *_: True)
    head = build_head("CosFace", 8, 3)
    pixels = torch.randn(2, 3, 8, 8)
    backbone = tiny_backbone()
    found = Networks(backbone, head, Config(), CPU, ALONE)
    with pytest.warns(UserWarning, match=r"not compiled.*no Python\.h"):
        embeddings = found.embed(pixels)
    assert torch.isfinite(embeddings).all()
    assert torch.isfinite(found.embed(pixels)).all()  # and no second warning
    asked = Networks(backbone, head, Config(compile=True), CPU, ALONE)
    with pytest.raises(Exception, match=r"no Python\.h"):
        asked.embed(pixels)
