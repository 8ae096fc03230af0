"""Weights files cut short, wrongly named, of odd types or too large for the disk."""

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from Backbone import build_backbone, describe_backbone
from Config import Config
from tests.conftest import full_disk
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import facex_zoo, wujiyang_mobile
from Utils.errors import CheckpointError, RunError
from Utils.files import read_tensors
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.export import export
from Utils.Pretrained_Utils.files import write_backbone
from Utils.Pretrained_Utils.lineages.descriptions import check_own
from Utils.Pretrained_Utils.load import read_weights
from Utils.run_folder import FORMAT
from Utils.Training_Utils.start import pretrained_settings, starting_backbone


@pytest.fixture(scope="module")
def mobile() -> dict:
    """The tensors of wujiyang's MobileFaceNet."""
    net = Recorder()
    wujiyang_mobile(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    return net.state


@pytest.fixture
def own() -> dict:
    """What a run's checkpoint says of its network."""
    backbone = build_backbone("MobileFaceNet", 16, (32, 32))
    return {
        "format": FORMAT,
        "architecture": describe_backbone(backbone),
        "backbone": backbone.state_dict(),
    }


@pytest.mark.parametrize(("zipped", "step"), [(False, 1), (True, 7)])
def test_a_file_cut_anywhere_is_refused(zipped, step, tmp_path):
    contents = {"state_dict": {"fc.weight": torch.rand(2, 3), "fc.bias": torch.rand(2)}, "iters": 3}
    whole, cut = tmp_path / "whole.pth", tmp_path / "cut.pth"
    torch.save(contents, whole, _use_new_zipfile_serialization=zipped)
    content = whole.read_bytes()
    for length in range(0, len(content), step):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.pth can't be read"):
            read_tensors(cut)


def test_a_real_file_cut_short_is_refused(shared_data, tmp_path):
    published = shared_data / "checkpoints" / "mobilefacenet_xiaoccer_068.ckpt"
    with published.open("rb") as file:
        (tmp_path / "cut.ckpt").write_bytes(file.read(50))
    with pytest.raises(CheckpointError, match=r"cut\.ckpt can't be read"):
        load_backbone(tmp_path / "cut.ckpt")


@pytest.mark.parametrize("name", ["NET.SAFETENSORS", "net.pth", "net"])
def test_safetensors_are_known_by_what_they_hold(name, mobile, tmp_path):
    save_file(mobile, tmp_path / name)
    assert "wujiyang" in load_backbone(tmp_path / name, "wujiyang").lineage


def test_a_pickle_called_safetensors_is_refused(mobile, tmp_path):
    torch.save(mobile, tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"net\.safetensors can't be read"):
        load_backbone(tmp_path / "net.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_no_fractions_are_refused(dtype, mobile, own, tmp_path):
    name = str(dtype).removeprefix("torch.")
    foreign = {k: v.to(dtype) if k == "conv2.conv.weight" else v for k, v in mobile.items()}
    torch.save(foreign, tmp_path / "net.pth")
    own["backbone"]["conv1.conv.weight"] = own["backbone"]["conv1.conv.weight"].to(dtype)
    torch.save(own, tmp_path / "own.pt")
    for file in ("net.pth", "own.pt"):
        with pytest.raises(CheckpointError, match=rf"conv\.weight is {name}, not floating point"):
            load_backbone(tmp_path / file)


def test_a_head_whose_keys_are_no_text_is_no_hindrance(own, tmp_path):
    torch.save({**own, "head": {3: torch.zeros(11, 16)}}, tmp_path / "net.pt")
    assert read_weights(tmp_path / "net.pt").head is None


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("preprocessing", {"channel_order": "RGB", "mean": 0.0, "scale": 1.0, "std": 1}, "std"),
        ("preprocessing", {"channel_order": "RGB", "mean": 10**400, "scale": 1.0}, "too large"),
        ("variant", {"repeats": [1, 10**9, 6, 2]}, "more blocks than the"),
        ("feature_dim", 10**12, "does not fit"),
    ],
)
def test_going_on_from_a_damaged_checkpoint_is_refused(name, value, said, own):
    own = copy.deepcopy(own)
    own["architecture"][name] = value
    with pytest.raises(CheckpointError, match=said):
        starting_backbone(Config(resume="last.pt"), own)


def test_going_on_takes_the_checkpoints_network(own):
    backbone, _, _ = starting_backbone(Config(resume="last.pt", channel_order="BGR"), own)
    assert torch.equal(backbone.conv2.conv.weight, own["backbone"]["conv2.conv.weight"])
    assert backbone.preprocessing.channel_order == "BGR"


def bytes_read() -> int:
    """What this process has read with system calls; pages of mapped files are not among it."""
    return int(re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())[1])


def test_the_settings_of_a_file_are_read_without_its_tensors(mobile, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(mobile, path)
    before = bytes_read()
    assert (
        pretrained_settings(Config(pretrained=str(path), lineage="wujiyang"))["feature_dim"] == 128
    )
    assert bytes_read() - before < path.stat().st_size / 4


def test_one_stray_tensor_does_not_hide_a_network(mobile, tmp_path):
    torch.save({**mobile, "net.gate": torch.zeros(3)}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match=r"Nearest: wujiyang.*it has no net\.gate\b"):
        load_backbone(tmp_path / "net.pth")


def test_tensors_that_are_neither_network_nor_head_are_named(mobile, tmp_path):
    contents = facex_zoo(mobile)
    torch.save(contents, tmp_path / "net.pt")
    assert load_backbone(tmp_path / "net.pt", "wujiyang").feature_dim == 128
    contents["state_dict"]["gate.weight"] = torch.zeros(3)
    torch.save(contents, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"1 tensors that are no head's \(gate\.weight\)"):
        load_backbone(tmp_path / "net.pt")


def test_errors_stay_short_whatever_a_file_calls_its_parts(mobile, own, tmp_path):
    long = "x" * 200_000
    own_long = {**own, "backbone": {**own["backbone"], long: torch.zeros(1)}}
    variant = {**own, "architecture": {**own["architecture"], "variant": {long: 1}}}
    for contents in ({long: torch.zeros(1)}, {**mobile, long: torch.zeros(1)}, own_long, variant):
        torch.save(contents, tmp_path / "net.pt")
        with pytest.raises(CheckpointError) as error:
            load_backbone(tmp_path / "net.pt")
        assert len(str(error.value)) < 2000
        assert "xxx" in str(error.value)
    torch.save({**own, "format": "face-backbone-" + long}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"x\.\.\.'; this version") as error:
        load_backbone(tmp_path / "net.pt")
    assert len(str(error.value)) < 2000


def test_a_checked_file_may_hold_any_text_for_a_name(own):
    own["architecture"]["name"] = "x" * 200_000
    check_own(Path("net.pt"), own)
    with pytest.raises(CheckpointError, match="does not fit") as error:
        starting_backbone(Config(resume="net.pt"), own)
    assert len(str(error.value)) < 2000


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_a_full_disk_is_told_of_by_name(name, mobile, tmp_path):
    target = tmp_path / name
    target.write_text("before")
    with full_disk(200_000), pytest.raises(RunError, match=rf"{name} can't be written.*disk full"):
        write_backbone(target, mobile, None)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert target.read_text() == "before"


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2"])
def test_a_full_disk_during_export_too(name, tmp_path):
    backbone = build_backbone("MobileFaceNet", 16, (32, 32), repeats=[1, 1, 1, 1]).eval()
    with full_disk(200_000), pytest.raises(RunError, match=rf"{name} can't be written.*disk full"):
        export(backbone, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
