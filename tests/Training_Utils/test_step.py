"""A step waits for no device: on a GPU, every value that is read would cost the time of a queue."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from Config import Config
from Head import HEADS, build_head
from tests.processes import in_processes
from Utils.processes import ALONE, Processes
from Utils.Training_Utils.augmentation import Augmentation, changes
from Utils.Training_Utils.data import Batch
from Utils.Training_Utils.networks import Networks
from Utils.Training_Utils.optimization import build_optimizer
from Utils.Training_Utils.start import build_state
from Utils.Training_Utils.state import set_frozen
from Utils.Training_Utils.step import TrainingStep

CPU = torch.device("cpu")
CLASSES, IMAGES = 20, 8
AUGMENTED = {f"{name}_prob": 0.5 for name in ("crop", "low_res", "jitter", "jpeg", "erasing")}

aten = torch.ops.aten
# Operators that copy a value to the processor, or need one to know the size of their result.
WAITING = {
    *(aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero),
    *(aten.masked_select, aten.unique_dim, aten.unique_consecutive, aten._unique2, aten.bincount),
}


class NoOperatorWaits(TorchDispatchMode):
    """Fails where an operator would wait for a GPU; in the backward pass and in optimisers, too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        assert packet not in WAITING, f"{packet} waits"
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            for index in args[1]:
                assert index is None or index.dtype == torch.int64, "a mask's length is waited for"
            # `tensor[index] = 2.0` copies the number to the device.
            assert packet is aten.index or args[2].ndim, "a number that is assigned is waited for"
        return function(*args, **(kwargs or {}))


class NoMethodWaits(TorchFunctionMode):
    """Fails where a tensor is copied to the processor, which does nothing if it is there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (Tensor.cpu, Tensor.tolist), f"{function.__name__} waits"
        return function(*args, **(kwargs or {}))


class NoCopyWaits(TorchDispatchMode):
    """Fails where a copy from one device to another would wait: one that is not asynchronous, or of
    a tensor that is not one of `pinned`, those in page-locked memory."""

    def __init__(self, pinned):
        super().__init__()
        self.pinned = pinned

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            assert kwargs.get("non_blocking"), "a copy waits"
            assert any(args[0] is tensor for tensor in self.pinned), "a copy of pageable memory"
        return function(*args, **kwargs)


GPU = torch.device("cuda", 0)


@pytest.fixture
def no_copy_waits(monkeypatch):
    """A simulated GPU: its tensors have a shape, but no values, and an operator on tensors of
    different devices fails. The fixture is a context in which a copy must not wait either."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield NoCopyWaits(pinned)


CHANGES = {
    "resized crop": Augmentation(crop_kind="resize")._crop,
    "blank crop": Augmentation(crop_kind="blank")._crop,
    "low resolution": changes._low_resolution,
    "jitter": changes._jitter,
    "jpeg": changes._jpeg,
    "erasing": changes._erase,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_augmentation_stays_on_a_gpu_and_waits_for_no_copy(change, no_copy_waits):
    draws = np.random.default_rng(0).random((IMAGES, 5))
    images = torch.zeros(IMAGES, 33, 32, 3, dtype=torch.uint8, device=GPU)
    with no_copy_waits:
        result = change(images, draws)
    assert (result.shape, result.dtype, result.device) == (images.shape, torch.uint8, GPU)


@pytest.mark.parametrize("name", HEADS)
def test_a_loss_stays_on_a_gpu_and_waits_for_no_copy(name, no_copy_waits):
    with GPU:
        head = build_head(name, 8, CLASSES, label_smoothing=0.1)
        embeddings = torch.zeros(IMAGES, 8, requires_grad=True)
        labels = torch.zeros(IMAGES, dtype=torch.int64)
    with no_copy_waits:
        result = head.loss(embeddings, labels)
    assert {value.device for value in result} == {GPU}


def prepared(config, amp_dtype=None, processes=ALONE):
    """A step as on a GPU, with fused optimisers; its state; and a batch for it."""
    state = build_state(config, CLASSES, 10, CPU, amp_dtype, processes=processes)
    state.optimizer = build_optimizer(state.backbone, state.head, config, torch.device("cuda"))
    set_frozen(state.backbone, config.freeze_backbone_epochs > 0)
    networks = Networks(state.backbone, state.head, config, CPU, processes, amp_dtype)
    images = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8)
    batch = Batch(images, torch.arange(IMAGES), [])
    return TrainingStep(config, state, networks, processes), state, batch


def small(**settings):
    sizes = {"input_size": (32, 32), "feature_dim": 16, "batch_size": IMAGES}
    return Config(margin_size=None, **sizes, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        *({"margin": head} for head in HEADS),
        {"optimizer": "adamw", "ema_decay": 0.9, "clip_norm": 1.0, "accumulate_steps": 2},
        {"sample_rate": 0.5},
        {"head_lr": 0.01, "head_optimizer": "adamw"},
        {"focal_gamma": 2.0},
        {"label_smoothing": 0.1},
        {"freeze_backbone_epochs": 1, "clip_norm": 1.0},
        {"backbone": "SEResNet18_IR"},
        AUGMENTED | {"crop_kind": "resize"},
        AUGMENTED | {"crop_kind": "blank"},
    ],
    ids=str,
)
def test_a_step_waits_for_nothing(settings):
    wait_for_nothing(small(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "ema_decay": 0.9, "clip_norm": 1.0, "accumulate_steps": 2},
        {"optimizer": "adamw"},
        {"head_lr": 0.01, "head_optimizer": "adamw"},
        {"sample_rate": 0.5},
    ],
    ids=str,
)
def test_a_step_in_fp16_waits_for_nothing(settings):
    wait_for_nothing(small(**settings), torch.float16)


def wait_for_nothing(config, amp_dtype=None):
    step, state, batch = prepared(config, amp_dtype)
    before = state.head.weight.detach().clone()
    for _ in range(2):
        with NoOperatorWaits(), NoMethodWaits():
            step(batch)
        state.advance(10)
    assert torch.equal(state.head.weight, before) == (amp_dtype is not None)  # then it is skipped


def steps_together(group):
    processes = Processes(group.rank(), group.size(), group, group)
    settings = {"clip_norm": 1.0, "ema_decay": 0.9}
    for head in ({"head_parallel": "replicated"}, {"head_parallel": "sharded", "sample_rate": 0.5}):
        step, state, batch = prepared(small(**settings, **head), torch.float16, processes)
        assert (state.head.group is None) == (head["head_parallel"] == "replicated")
        for _ in range(2):
            with NoOperatorWaits():
                step(batch)
            state.advance(10)
    return True


def test_a_step_of_several_processes_waits_for_nothing(tmp_path):
    assert all(in_processes(2, tmp_path, steps_together))
