"""A checkpoint that loads, but that holds something else than a run needs, is refused in words."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from Config import Config
from Utils.errors import CheckpointError
from Utils.processes import ALONE
from Utils.run_folder import RunFolder
from Utils.Training_Utils.start import begin_run
from Utils.Training_Utils.trainer import Trainer


@pytest.fixture(scope="module")
def run(tiny_faces, tmp_path_factory) -> tuple[Config, RunFolder]:
    """The settings and the folder of a run of one epoch."""
    save_dir = tmp_path_factory.mktemp("runs")
    config = tiny_faces.config(save_dir, total_epoch=1, milestones=(), ema_decay=0.9)
    return config, RunFolder(Trainer(config).run().run)


def change(tree: dict, name: str, value: Any) -> None:
    """Give a nested entry another value."""
    *above, last = (int(key) if key.isdigit() else key for key in name.split("."))
    for key in above:
        tree = tree[key]
    tree[last] = value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_classes", None),
        ("best", "x"),
        ("best.mean", 0.5),
        ("position", {}),
        ("position.epoch", "one"),
        ("position.batch", -1),
        ("position.iteration", torch.ones(2)),
        ("optimizer.state", []),
        ("optimizer.state.0", None),
        ("optimizer.state.0.momentum_buffer", torch.ones(3, 5)),
        ("optimizer.state.0.momentum_buffer", "x"),
        ("optimizer.state.9999", {}),
        ("head", {}),
        ("head.weight", torch.ones(3, 5)),
        ("head.weight", "x"),
        ("head.other", torch.ones(3)),
        ("random.flip", None),
        ("random.cpu", torch.ones(3)),
        ("random.cuda", "x"),
        ("random.others", [1]),
        ("backbone", {"weight": torch.ones(3)}),
    ],
)
def test_an_entry_of_another_kind_or_shape_is_a_checkpoint_error(run, tmp_path, name, value):
    config, folder = run
    saved = torch.load(folder.last, weights_only=True)
    change(saved, name, value)
    path: Path = tmp_path / "damaged.pt"
    torch.save(saved, path)
    config = dataclasses.replace(config, resume=str(path), total_epoch=2)
    with pytest.raises(CheckpointError, match="damaged"):
        begin_run(config, ALONE)


class Sizes(TorchDispatchMode):
    """The bytes of the largest tensor that any operation has made, views left out."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.largest = max(self.largest, tensor.nbytes)
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found_without_a_table_beside_the_weights(run, dtype, bad):
    state = begin_run(dataclasses.replace(run[0], para_adj_mode=True), ALONE).state
    table = torch.zeros(2**14, 2**8, dtype=dtype)
    state.head.weight = torch.nn.Parameter(table)
    state.head.register_buffer("counts", torch.ones(3, dtype=torch.int64))
    state.head.register_buffer("flags", torch.ones(3, dtype=torch.bool))
    state.head.register_buffer("none", torch.ones(0))
    with Sizes() as sizes:
        assert state.is_finite()
    assert sizes.largest < table.numel() / 4
    for row in (0, 777, 2**14 - 1):
        table[row, row % 2**8] = bad
        assert not state.is_finite()
        table[row] = 0
    statistic = next(buffer for buffer in state.backbone.buffers() if buffer.ndim)
    statistic[-1] = bad
    assert not state.is_finite()


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("averaged/backbone/conv1.conv.weight", "resume"),
        ("optimizer/state/0/momentum_buffer", "resume"),
        ("averaged/backbone/conv1.bn.running_var", "pretrained"),
        ("head/weight", "pretrained"),
    ],
)
def test_a_file_with_a_value_that_is_not_finite_is_refused(run, tmp_path, name, setting):
    config, folder = run
    saved = torch.load(folder.last, weights_only=True)
    tensor = saved
    for key in name.split("/"):
        tensor = tensor[int(key) if key.isdigit() else key]
    tensor[(0,) * tensor.ndim] = math.nan
    path = tmp_path / "not a number.pt"
    torch.save(saved, path)
    config = dataclasses.replace(config, total_epoch=2, para_adj_mode=True, **{setting: str(path)})
    with pytest.raises(CheckpointError, match="not finite") as raised:
        begin_run(config, ALONE)
    assert path.name in str(raised.value)
