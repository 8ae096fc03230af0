"""Weights files as people have them: wrappers, formats, and files that hold something else."""

import json
import os
import re
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file

from Backbone import build_backbone, describe_backbone
from tests import lineage_mobilefacenets as mobilefacenets
from tests import lineage_networks as networks
from tests.conftest import assert_one_paragraph, run_script
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import (
    facex_zoo,
    lightning,
    partial_fc_checkpoint,
    wujiyang_mobile,
)
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.load import read_weights
from Utils.run_folder import FORMAT

XIAOCCER = "checkpoints/mobilefacenet_xiaoccer_068.ckpt"


@pytest.fixture(scope="module")
def mobile() -> tuple[dict, torch.Tensor, torch.Tensor]:
    """wujiyang's MobileFaceNet: its tensors, an input, and the output in float64."""
    net = Recorder()
    images = torch.rand(1, 3, 32, 32, generator=net.generator) * 2 - 1
    return net.state, images, wujiyang_mobile(net, images.double())


def assert_embeds(path, images, expected, limit=1e-5):
    """The file's network gives the output, within a limit relative to the largest value."""
    with torch.inference_mode():
        found = load_backbone(path, "wujiyang")(images).double()
    assert (found - expected).abs().max() < limit * expected.abs().max()


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_taken_off(prefix, mobile, tmp_path):
    state, images, expected = mobile
    wrapped = {prefix + key: tensor for key, tensor in state.items()}
    torch.save({"iters": 1, "net_state_dict": wrapped}, tmp_path / "net.ckpt")
    assert_embeds(tmp_path / "net.ckpt", images, expected)


def test_safetensors_half_precision_old_formats_and_missing_counters(mobile, tmp_path):
    state, images, expected = mobile
    save_file(state, tmp_path / "net.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    older = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "older.pth")
    for name in ("net.safetensors", "old.pth", "older.pth"):
        assert_embeds(tmp_path / name, images, expected)
    assert int(load_backbone(tmp_path / "old.pth", "wujiyang").conv1.bn.num_batches_tracked) == 7
    assert int(load_backbone(tmp_path / "older.pth", "wujiyang").conv1.bn.num_batches_tracked) == 0

    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    torch.save(half, tmp_path / "half.pth")
    backbone = load_backbone(tmp_path / "half.pth", "wujiyang")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert_embeds(tmp_path / "half.pth", images, expected, limit=0.02)


def test_preprocessing_is_the_lineages_unless_told_otherwise(mobile, tmp_path):
    torch.save({"iters": 1, "net_state_dict": mobile[0]}, tmp_path / "net.pth")
    given = load_backbone(tmp_path / "net.pth").preprocessing
    assert (given.channel_order, given.mean, given.scale) == ("BGR", 127.5, 127.5)
    changed = load_backbone(
        tmp_path / "net.pth", channel_order="RGB", input_mean=0.0, input_scale=255.0
    ).preprocessing
    assert (changed.channel_order, changed.mean, changed.scale) == ("RGB", 0, 255)
    assert changed.input_size == (32, 32)


def test_a_cvlface_folders_model_yaml_says_its_colours(tmp_path):
    net = Recorder()
    networks.adaface(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), 18, "ir")
    folder = tmp_path / "adaface_ir18"
    folder.mkdir()
    torch.save({f"net.{k}": v for k, v in net.state.items()}, folder / "model.pt")
    assert load_backbone(folder).preprocessing.channel_order == "RGB"
    settings = folder / "model.yaml"
    for text in (
        "input_size: [3, 112, 112]\ncolor_space: 'BGR'\n",
        "color_space: bgr  # as OpenCV reads\n",
        "{name: ir_18, color_space: BGR}\n",
        '"color_space": "BGR"\n',
        "model:\n  color_space: BGR\n",
    ):
        settings.write_text(text)
        assert load_backbone(folder).preprocessing.channel_order == "BGR", text
    settings.write_text("name: ir_18\n# color_space: BGR\n")
    assert load_backbone(folder).preprocessing.channel_order == "RGB"
    for nothing in ("", "null", "~", '""'):
        settings.write_text(f"color_space: {nothing}\nother: !!bool x\nlast: !!timestamp x\n")
        assert load_backbone(folder).preprocessing.channel_order == "RGB", nothing
    settings.write_text('color_space: BGR\nother: !!int ""\n')
    assert load_backbone(folder).preprocessing.channel_order == "BGR"
    settings.write_text("color_space: HSV\n")
    with pytest.raises(CheckpointError, match=r"model.yaml: color_space is 'HSV'; expected RGB or"):
        load_backbone(folder)
    for damaged in ("name: René\n".encode("latin-1"), b"color_space: [BGR\n", b"[" * 100_000):
        settings.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model.yaml can't be read as YAML in UTF-8"):
            load_backbone(folder)


@pytest.mark.parametrize("file", [lightning, facex_zoo, partial_fc_checkpoint])
def test_class_weights_come_along_as_classes_by_dimension(file, tmp_path):
    net = Recorder()
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.float64)
    if file is facex_zoo:
        mobilefacenets.treb1en_mobilefacenet(net, pixels)
    elif file is lightning:
        networks.adaface(net, pixels, 18, "ir")
    else:
        networks.iresnet(net, pixels, 18)
    torch.save(file(net.state), tmp_path / "net.pt")
    assert read_weights(tmp_path / "net.pt").head.shape == (11, 512)


def test_lightnings_classes_are_no_hindrance_and_are_not_run(tmp_path, monkeypatch):
    net = Recorder()
    networks.adaface(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64), 18, "ir")
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        contents = {**lightning(net.state), "callbacks": {module.ModelCheckpoint: {"best": 1.0}}}
        torch.save(contents, tmp_path / "adaface.ckpt")
    assert load_backbone(tmp_path / "adaface.ckpt").architecture["name"] == "ResNet18_IR"
    assert "pytorch_lightning" not in sys.modules


def test_a_runs_checkpoint_gives_its_network(tmp_path):
    backbone = build_backbone("MobileFaceNet", 16, (32, 32)).eval()
    saved = {"format": FORMAT, "backbone": backbone.state_dict()}
    torch.save(saved, tmp_path / "cut.pt")
    with pytest.raises(CheckpointError, match="lacks architecture"):
        load_backbone(tmp_path / "cut.pt")
    saved["architecture"] = describe_backbone(backbone)
    torch.save(saved, tmp_path / "last.pt")
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_backbone(tmp_path / "last.pt")(images), backbone(images))
    with pytest.raises(CheckpointError, match="holds a MobileFaceNet, not a ResNet18_IR"):
        load_backbone(tmp_path / "last.pt", "ResNet18_IR")


def test_a_bare_name_is_looked_for_in_the_folder_pretrained(mobile, tmp_path, monkeypatch):
    (tmp_path / "Pretrained").mkdir()
    torch.save(mobile[0], tmp_path / "Pretrained" / "wujiyang.mobile.pth")
    monkeypatch.chdir(tmp_path)
    for name in ("wujiyang.mobile", "wujiyang.mobile.pth", "Pretrained/wujiyang.mobile.pth"):
        assert load_backbone(name, "wujiyang").feature_dim == 128
    with pytest.raises(CheckpointError, match="Pretrained has none of that name"):
        load_backbone("wujiyang")


class Touch:
    """Pickled, it makes a file when it is read with code allowed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_files_that_need_code_are_refused_and_nothing_is_run(mobile, tmp_path):
    torch.save({"state_dict": mobile[0], "extra": Touch(tmp_path / "ran")}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="needs code to be read"):
        load_backbone(tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_say_so(mobile, tmp_path):
    torch.save(mobile[0], tmp_path / "whole.pth")
    save_file(mobile[0], tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        content = (tmp_path / name).read_bytes()
        cut = tmp_path / f"cut.{name}"
        cut.write_bytes(content[: len(content) // 2])
        with pytest.raises(CheckpointError, match=rf"{cut.name} can't be read: it is truncated"):
            load_backbone(cut)
    (tmp_path / "text.pth").write_text("no weights here")
    with pytest.raises(CheckpointError, match="can't be read"):
        load_backbone(tmp_path / "text.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(CheckpointError, match="holds a Tensor, not a dictionary"):
        load_backbone(tmp_path / "tensor.pth")
    torch.save({"weight": torch.zeros(10, 128)}, tmp_path / "Iter_1_margin.pth")
    with pytest.raises(CheckpointError, match="what a head's file holds"):
        load_backbone(tmp_path / "Iter_1_margin.pth")


def test_an_unknown_network_is_compared_with_the_nearest_lineage(mobile, tmp_path):
    state = dict(mobile[0])
    state["blocks.3.conv.0.weight"] = torch.zeros(96, 64, 1, 1)
    torch.save(state, tmp_path / "wide.pth")
    with pytest.raises(CheckpointError) as error:
        load_backbone(tmp_path / "wide.pth")
    text = str(error.value)
    assert "Looked for: deepinsight insightface" in text
    assert "JDAI-CV FaceX-Zoo" in text
    assert "first keys: conv1.conv.weight" in text
    assert "Nearest: wujiyang Face_Pytorch's MobileFaceNet" in text
    assert "96×64×1×1 and not 128×64×1×1" in text

    del state["blocks.3.conv.0.weight"]
    state["gate.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "gated.pth")
    with pytest.raises(CheckpointError, match=r"no gate\.weight.*lacks blocks\.3\.conv\.0\.conv"):
        load_backbone(tmp_path / "gated.pth")


def test_a_wrong_lineage_is_told_the_right_one(mobile, tmp_path):
    torch.save({"net_state_dict": mobile[0]}, tmp_path / "net.ckpt")
    with pytest.raises(CheckpointError, match=r"no network of deepinsight.*--lineage wujiyang"):
        load_backbone(tmp_path / "net.ckpt", "insightface")


def test_scripts_end_in_one_paragraph(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"\x00" * 100)
    assert_one_paragraph(
        run_script("LFW_Evaluation.py", "--checkpoint", tmp_path / "net.pth"), "can't be read"
    )
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "net.pth")
    assert_one_paragraph(
        run_script("LFW_Evaluation.py", "--checkpoint", tmp_path / "net.pth"),
        "Looked for:",
        "some.weight",
    )


def test_published_weights_reach_the_lineages_own_figure(shared_data, tmp_path):
    """Xiaoccer's own evaluation code gives 97.80 % on these pairs, cropped to 112×96."""
    lfw = shared_data / "lfw_half"
    flags = ("--checkpoint", shared_data / XIAOCCER, "--output", tmp_path)
    flags += ("--lfw_dataset_path", lfw / "images", "--lfw_file_list", lfw / "pairs.txt")
    run = run_script("LFW_Evaluation.py", *flags, check=True)
    assert re.search(r"^accuracy +97\.80 %", run.stdout, re.MULTILINE), run.stdout
    figures = json.loads((tmp_path / "lfw.json").read_text())
    assert figures["results"]["cosine"]["accuracy"] == pytest.approx(0.9780, abs=1e-9)
    assert "Xiaoccer" in figures["network"]


def test_safetensors_written_elsewhere_hold_the_same_values(mobile, tmp_path):
    save_file(mobile[0], tmp_path / "net.safetensors")
    read = read_weights(tmp_path / "net.safetensors", "wujiyang").state
    again = load_file(tmp_path / "net.safetensors")
    assert torch.equal(read["conv2.conv.weight"], again["conv2.conv.weight"])
