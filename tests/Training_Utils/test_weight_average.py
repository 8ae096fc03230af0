"""The moving average of the weights: its arithmetic, its checkpoints, its place in a run."""

import csv
import dataclasses
import json

import pytest
import torch

from Backbone import build_backbone
from Config import ConfigError, validate
from tests.conftest import run_script
from tests.scripts.test_training import assert_same_weights, only_run, tiny_config  # noqa: F401
from Utils.Evaluation_Utils.inputs import load_network
from Utils.Pretrained_Utils import load_backbone
from Utils.run_folder import RunFolder
from Utils.Training_Utils.state import WeightAverage
from Utils.Training_Utils.trainer import Trainer


def test_weights_and_statistics_are_averaged_by_the_formula():
    torch.manual_seed(0)
    backbone = build_backbone("MobileFaceNet", 8, (16, 16)).train()
    average = WeightAverage(backbone, 0.5)
    expected = None
    for n in range(12):
        backbone(torch.randn(4, 3, 16, 16))  # moves the statistics
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        average.update(backbone)
        now = {k: v.double() for k, v in backbone.state_dict().items()}
        decay = min(0.5, (1 + n) / (10 + n))
        expected = expected or now
        expected = {k: decay * expected[k] + (1 - decay) * v for k, v in now.items()}
    assert (1 + 11) / (10 + 11) > 0.5, "the decay itself was never reached"
    found = average.backbone.state_dict()
    moved = 0
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            assert value == 12
        else:
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
            moved += not torch.equal(value, backbone.state_dict()[name])
    assert moved > 100
    assert not average.backbone.training
    assert not any(p.requires_grad for p in average.backbone.parameters())


@pytest.fixture
def averaged_config(tiny_config):  # noqa: F811
    return dataclasses.replace(tiny_config, ema_decay=0.9)


def averaged(checkpoint):
    return torch.load(checkpoint, weights_only=True)["averaged"]


def assert_same_network(a, b):
    theirs = b.state_dict()
    for name, value in a.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_a_run_judges_and_saves_both_and_trains_as_without(averaged_config, tmp_path):
    trainer = Trainer(averaged_config)
    result = trainer.run()
    assert set(result.last) == {"LFW", "LFW averaged"}
    run = only_run(averaged_config.save_dir)
    with open(run / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["LFW"]]
    assert [int(row["iteration"]) for row in rows] == [4, 8, 9]
    assert all(0 <= float(row["LFW averaged"]) <= 1 for row in rows)
    best = json.loads((run / "results.json").read_text())["best"]
    assert best["mean"]["accuracy"] == best["LFW averaged"]["accuracy"]

    checkpoint = run / "checkpoints/last.pt"
    assert averaged(checkpoint)["updates"] == 9
    ours, raw = load_backbone(checkpoint), load_backbone(checkpoint, which="raw")
    assert_same_network(ours, trainer.state.average.backbone)
    assert_same_network(raw, trainer.state.backbone)
    assert not torch.equal(ours.state_dict()["conv1.conv.weight"], raw.conv1.conv.weight)
    assert ours.lineage.endswith("averaged weights")

    plain = dataclasses.replace(averaged_config, ema_decay=0.0, save_dir=str(tmp_path / "plain"))
    Trainer(plain).run()
    without = only_run(plain.save_dir) / "checkpoints/last.pt"
    assert_same_weights(checkpoint, without)
    assert "averaged" not in torch.load(without, weights_only=True)
    assert_same_network(load_backbone(without), load_backbone(without, which="raw"))


def test_resumed_in_the_middle_of_an_epoch_the_average_is_the_same(averaged_config, tmp_path):
    Trainer(averaged_config).run()
    run = only_run(averaged_config.save_dir)
    start = run / "checkpoints/iteration_00000004.pt"
    again = dataclasses.replace(averaged_config, resume=str(start), save_dir=str(tmp_path / "b"))
    Trainer(again).run()
    ours = averaged(run / "checkpoints/last.pt")
    theirs = averaged(only_run(again.save_dir) / "checkpoints/last.pt")
    assert ours["updates"] == theirs["updates"] == 9
    for name, value in ours["backbone"].items():
        assert torch.equal(value, theirs["backbone"][name]), name


def test_a_run_without_an_average_goes_on_with_one(averaged_config):
    Trainer(dataclasses.replace(averaged_config, ema_decay=0.0)).run()
    run = RunFolder(only_run(averaged_config.save_dir))
    longer = dataclasses.replace(averaged_config, total_epoch=4, resume=str(run.last))
    trainer = Trainer(longer)
    before = {k: v.clone() for k, v in trainer.state.backbone.state_dict().items()}
    for name, value in trainer.state.average.backbone.state_dict().items():
        assert torch.equal(value, before[name])
    trainer.run()
    assert averaged(run.last)["updates"] == 3


def test_a_script_judges_the_weights_that_are_asked_for(averaged_config, tiny_faces, tmp_path):
    trainer = Trainer(averaged_config)
    trainer.run()
    checkpoint = only_run(averaged_config.save_dir) / "checkpoints/last.pt"
    flags = ("--lfw_dataset_path", tiny_faces.lfw, "--lfw_file_list", tiny_faces.lfw_pairs)
    run_script(
        *("LFW_Evaluation.py", "--checkpoint", checkpoint, "--weights", "raw", *flags),
        *("--output", tmp_path / "raw", "--device", "cpu", "--num_workers", "0"),
        check=True,
    )
    assert "averaged" not in json.loads((tmp_path / "raw/lfw.json").read_text())["network"]
    settings = {"checkpoint": str(checkpoint), "weights": "averaged"}
    judged = load_network(dataclasses.replace(averaged_config, **settings), torch.device("cpu"))
    assert_same_network(judged, trainer.state.average.backbone)
    raw = load_network(dataclasses.replace(averaged_config, **settings | {"weights": "raw"}),
                       torch.device("cpu"))  # fmt: skip
    assert_same_network(raw, trainer.state.backbone)


@pytest.mark.parametrize(("name", "value"), [("ema_decay", 1.0), ("ema_decay", -0.1),
                                             ("weights", "average")])  # fmt: skip
def test_settings_out_of_range_are_named(averaged_config, name, value):
    with pytest.raises(ConfigError, match=f"setting {name} is {value!r}"):
        validate(dataclasses.replace(averaged_config, **{name: value}))
