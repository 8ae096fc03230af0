"""Weights files that are damaged, or made to do harm: each ends in an error that says what."""

import copy
import enum
import os
import re
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from Backbone import build_backbone, describe_backbone
from tests import lineage_mobilefacenets as mobilefacenets
from tests import lineage_networks as networks
from tests.conftest import assert_one_paragraph, run_script
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import facex_zoo, lightning, wujiyang_mobile
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import load_backbone


def tensors_of(network, size=(32, 32), **options) -> dict:
    net = Recorder()
    network(net, torch.zeros(1, 3, *size, dtype=torch.float64), **options)
    return net.state


@pytest.fixture(scope="module")
def foreign() -> dict[str, dict]:
    """State dicts of three lineages, by family of network."""
    return {
        "mobile": tensors_of(wujiyang_mobile),
        "treb1en": tensors_of(mobilefacenets.treb1en_mobilefacenet),
        "iresnet": tensors_of(networks.iresnet, depth=18),
    }


@pytest.fixture
def own() -> dict:
    """The contents of a bare backbone file."""
    backbone = build_backbone("MobileFaceNet", 16, (32, 32))
    return {
        "format": "face-backbone-1",
        "architecture": describe_backbone(backbone),
        "lineage": "this project",
        "backbone": backbone.state_dict(),
    }


@pytest.mark.parametrize(
    ("family", "key", "tensor", "said"),
    [
        ("iresnet", "fc.weight", torch.zeros(512), "fc.weight is 512 and has not 2 axes"),
        ("iresnet", "fc.weight", torch.tensor(1.0), "a single number and has not 2 axes"),
        ("iresnet", "fc.weight", torch.zeros(512, 0), "input_size is (0, 0)"),
        ("mobile", "linear7.conv.weight", torch.zeros(512, 1), "512×1 and has not 4 axes"),
        ("mobile", "conv1.conv.weight", torch.tensor(1.0), "a single number and has not 4"),
        ("mobile", "conv1.conv.weight", torch.zeros(32, 3, 3, 3), "has 32 channels; expected 64"),
        ("mobile", "linear7.conv.weight", torch.zeros(512, 1, 0, 0), "multiples of 16"),
        ("treb1en", "linear.weight", torch.zeros(512), "512 and has not 4 axes"),
        ("iresnet", "fc.weight", torch.zeros(1).expand(2**53, 512), "overflow"),
        ("mobile", "conv1.conv.weight", torch.zeros(64, 3, 3, 3).to_sparse(), "no conv1.conv.weig"),
    ],
)
def test_tensors_of_odd_shapes_are_no_network(family, key, tensor, said, foreign, tmp_path):
    torch.save({**foreign[family], key: tensor}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="holds no network that is known") as error:
        load_backbone(tmp_path / "net.pth")
    assert said in str(error.value)


def changed(contents: dict, path: str, value) -> dict:
    contents = copy.deepcopy(contents)
    *above, last = path.split("/")
    inner = contents
    for name in above:
        inner = inner[name]
    inner[last] = value
    return contents


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("architecture", {}, "lacks architecture.name"),
        ("architecture", "MobileFaceNet", "architecture is 'MobileFaceNet'; expected a dict"),
        ("architecture/name", ["a"], "architecture.name is ['a']; expected text"),
        ("architecture/name", "MobilFaceNet", "did you mean 'MobileFaceNet'"),
        ("architecture/feature_dim", True, "feature_dim is True; expected a whole number"),
        ("architecture/feature_dim", 10**30, "does not fit"),
        ("architecture/input_size", [], "input_size is []; expected two whole numbers"),
        ("architecture/input_size", [32, 32, 3], "input_size is [32, 32, 3]; expected two whole"),
        ("architecture/preprocessing/mean", "a", "preprocessing.mean is 'a'; expected a number"),
        ("architecture/preprocessing/mean", float("nan"), "both must be finite"),
        ("architecture/preprocessing", {}, "lacks architecture.preprocessing.channel_order"),
        ("architecture/variant/repeats", [1, 4], "repeats [1, 4]"),
        ("architecture/variant/repeats", [1, 10**9, 6, 2], "more blocks than the"),
        ("architecture/variant/width", 0, "width is 0"),
        ("architecture/variant/normalise", "no", "normalise is 'no'; expected true or false"),
        ("architecture/variant/colour", 1, "can't be built with {'colour': 1}"),
        ("backbone", [], "backbone is []; expected a dictionary of tensors"),
        ("backbone/conv1.conv.weight", torch.zeros(64), "64 and not 64×3×3×3"),
        ("backbone/gate", torch.zeros(64), "it has no gate"),
        ("head", [torch.zeros(3, 16)], "head is a list; expected a dictionary"),
        ("lineage", 3, "lineage is 3; expected text"),
        ("format", "face-backbone-2", "reads face-training-checkpoint-1 and face-backbone-1"),
    ],
)
def test_damaged_files_of_this_project_say_where(path, value, said, own, tmp_path):
    torch.save(changed(own, path, value), tmp_path / "net.pt")
    with pytest.raises(CheckpointError) as error:
        load_backbone(tmp_path / "net.pt")
    assert said in str(error.value)
    assert "net.pt" in str(error.value)


@pytest.mark.parametrize("about", ["[1]", "null", "[" * 100_000, "{", "5"])
def test_metadata_that_is_no_description_is_refused(about, own, tmp_path):
    save_file(own["backbone"], tmp_path / "net.safetensors", metadata={"face_backbone": about})
    with pytest.raises(CheckpointError, match="metadata entry face_backbone is not the descript"):
        load_backbone(tmp_path / "net.safetensors")


def test_a_lineage_that_the_file_does_not_say_is_refused(own, tmp_path):
    torch.save({**own, "lineage": "Xiaoccer MobileFaceNet_Pytorch"}, tmp_path / "net.pt")
    assert "Xiaoccer" in load_backbone(tmp_path / "net.pt", "xiaoccer").lineage
    with pytest.raises(CheckpointError, match=r"of Xiaoccer.*as QuasarLight.*leave --lineage out"):
        load_backbone(tmp_path / "net.pt", "quasarlight")


class Touch:
    """Pickled, it makes a file when it is read with code allowed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_refusal_names_what_would_have_been_run(zipped, foreign, tmp_path):
    contents = {"state_dict": foreign["mobile"], "extra": Touch(tmp_path / "ran")}
    torch.save(contents, tmp_path / "net.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as error:
        load_backbone(tmp_path / "net.pth")
    text = str(error.value)
    assert "it needs code to be read (posix.system); nothing in it was run" in text
    assert text.isprintable()
    assert re.search(r"If you trust it, .*`python -c [^`]+`\.$", text)
    assert not (tmp_path / "ran").exists()


def test_lightnings_enumerations_and_settings_are_no_hindrance(tmp_path, monkeypatch):
    """A class of Lightning's that is made from a value, and one that is a filled dictionary."""
    name = "pytorch_lightning.trainer.states"
    module = types.ModuleType(name)
    module.Stage = enum.Enum("Stage", {"FIT": "fit"}, module=name, qualname="Stage")
    module.Settings = type("Settings", (dict,), {"__module__": name})
    state = tensors_of(networks.adaface, depth=18, mode="ir")
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.trainer"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        extra = {"stage": module.Stage.FIT, "hyper_parameters": module.Settings(lr=0.1)}
        torch.save({**lightning(state), **extra}, tmp_path / "adaface.ckpt")
    assert load_backbone(tmp_path / "adaface.ckpt").architecture["name"] == "ResNet18_IR"
    assert "pytorch_lightning" not in sys.modules


def test_names_in_a_file_do_not_reach_the_terminal_as_commands(tmp_path):
    torch.save({"\x1b[2Jfirst.weight": torch.zeros(3)}, tmp_path / "net.pth")
    run = run_script("LFW_Evaluation.py", "--checkpoint", tmp_path / "net.pth")
    assert_one_paragraph(run, "first.weight")
    assert "\x1b" not in run.stderr[run.stderr.rindex("Error:") :]


@pytest.mark.parametrize(
    "network",
    [mobilefacenets.treb1en_mobilefacenet, lambda net, x: networks.irse(net, x, 50, "ir")],
)
def test_facex_zoos_half_faces_are_refused_in_words(network, tmp_path):
    state = tensors_of(network, (60, 112))
    torch.save(facex_zoo(state), tmp_path / "half.pt")
    with pytest.raises(CheckpointError, match=r"half faces.*60|size of the images does not follow"):
        load_backbone(tmp_path / "half.pt")
