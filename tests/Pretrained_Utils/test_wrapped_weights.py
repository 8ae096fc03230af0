"""Networks in files with more around them, and files that may be of two lineages."""

import pathlib
import re

import pytest
import torch

from tests import lineage_networks as networks
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import magface, mbf, prefixed, wujiyang_mobile
from tests.processes import run_printed, run_script
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.contents import open_contents
from Utils.Pretrained_Utils.lineages.recognise import matches, most_likely
from Utils.Pretrained_Utils.load import read_weights


def tensors_of(network, device="cpu", **options) -> dict:
    net = Recorder(device=device)
    network(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64, device=device), **options)
    return net.state


@pytest.fixture(scope="module")
def state() -> dict:
    """insightface's MobileFaceNet, whose lineage is known from its names alone."""
    return tensors_of(mbf)


@pytest.fixture(scope="module")
def tface(tmp_path_factory) -> pathlib.Path:
    """A file of TFace's: AdaFace's networks have the same tensors."""
    path = tmp_path_factory.mktemp("tface") / "ir18.pth"
    torch.save(tensors_of(networks.adaface, depth=18, mode="ir"), path)
    return path


def commands(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


# --- Whose it is ---------------------------------------------------------------------------------


def test_of_two_lineages_neither_is_taken_in_silence(tface, tmp_path):
    flags = ("-m", "Utils.Pretrained_Utils.convert", tface, tmp_path / "net.pt")
    refused = run_script(*flags)
    assert refused.returncode == 1
    assert "Tencent TFace or mk-minchul AdaFace" in " ".join(refused.stderr.split())
    printed = [c for c in commands(refused.stderr) if c.startswith("--lineage ")]
    found = [run_script(*flags, *c.split(), check=True).stdout for c in printed]
    assert ["RGB" in text for text in found] == [True, False]
    assert ["TFace" in text for text in found] == [True, False]
    for order, lineage in (("RGB", "Tencent TFace"), ("BGR", "mk-minchul AdaFace")):
        backbone = load_backbone(tface, channel_order=order)
        assert (backbone.lineage, backbone.preprocessing.channel_order) == (lineage, order)


def test_damaged_settings_beside_a_file_are_not_needed(tface):
    settings = tface.with_suffix(".yaml")
    settings.write_text("color_space: [BGR\n")
    with pytest.raises(CheckpointError, match="can't be read as YAML") as error:
        load_backbone(tface)
    for printed in commands(str(error.value)):
        order = printed.removeprefix("--channel_order ")
        assert load_backbone(tface, channel_order=order).preprocessing.channel_order == order
    settings.unlink()


def test_settings_beside_a_file_decide(tface):
    settings = tface.with_suffix(".yaml")
    settings.write_text("color_space: BGR\n")
    assert load_backbone(tface).lineage == "mk-minchul AdaFace"
    settings.write_text("batch_size: 3\n")
    with pytest.raises(CheckpointError, match="may be from"):
        load_backbone(tface)
    settings.unlink()


BOTH = "wujiyang xiaoccer"


@pytest.mark.parametrize(
    ("network", "wrapped", "name", "lineages"),
    [
        ("wujiyang", lambda s: {"epoch": 70, "net_state_dict": s}, "", "xiaoccer"),
        ("wujiyang", lambda s: {"iters": 9, "net_state_dict": s}, "", "wujiyang"),
        ("wujiyang", lambda s: {"net_state_dict": s}, "", BOTH),
        ("wujiyang", lambda s: {"epoch": 70, "state_dict": s}, "", BOTH),
        ("wujiyang", lambda s: {"epoch": 7, "iters": 9, "net_state_dict": s}, "", BOTH),
        ("irse", dict, "net.pth", "treb1en face_evolve"),
        ("irse", dict, "model_ir_se50.pth", "treb1en"),
        ("irse", dict, "Backbone_IR_50_Epoch_3_Batch_9_Time_2019_checkpoint.pth", "face_evolve"),
        ("irse", lambda s: {"state_dict": prefixed("backbone.", s)}, "", "facex_zoo"),
        ("irse", lambda s: prefixed("backbone.", s), "", "treb1en face_evolve"),
        ("adaface", dict, "Backbone_Epoch_24_checkpoint.pth", "tface"),
        ("adaface", lambda s: {"state_dict": prefixed("model.", s)}, "", "adaface"),
        ("adaface", lambda s: {"model": s}, "", "tface adaface"),
        ("adaface", lambda s: prefixed("net.", s), "", "cvlface"),
        ("iresnet", magface, "", "magface"),
        ("iresnet", lambda s: magface(s, "module.features."), "", "magface"),
        ("iresnet", lambda s: {"student": prefixed("features.", s)}, "", "insightface own"),
    ],
)  # fmt: skip
def test_what_else_is_in_a_file_decides_or_nothing_does(network, wrapped, name, lineages):
    made = {
        "wujiyang": (wujiyang_mobile, {}),
        "irse": (networks.irse, {"depth": 50, "mode": "ir"}),
        "adaface": (networks.adaface, {"depth": 18, "mode": "ir"}),
        "iresnet": (networks.iresnet, {"depth": 18}),
    }[network]
    state = tensors_of(made[0], "meta", **made[1])
    (found,) = [
        most_likely(rows, place, name)
        for place in open_contents(wrapped(state))
        if (rows := matches(place.network))
    ]
    assert [lineage.key for lineage, _ in found] == lineages.split()


# --- Where it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda s: prefixed("features.module.", s),
        lambda s: {"student": s, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}},
        lambda s: {"epoch": 3, "checkpoint": {"encoder": prefixed("module.net.", s)}},
        lambda s: {"model": {"backbone": s, "fc": {"weight": torch.zeros(11, 512)}}},
        lambda s: {"net": prefixed("extractor.trunk.", s), "best": torch.tensor(0.5)},
        lambda s: [s, {"epoch": 3}],
        lambda s: {**prefixed("backbone.", s), "margin.weight": torch.zeros(11, 512)},
    ],
)  # fmt: skip
def test_one_more_wrapper_is_no_hindrance(wrapped, state, tmp_path):
    torch.save(wrapped(state), tmp_path / "net.pth")
    weights = read_weights(tmp_path / "net.pth")
    assert weights.description.lineage == "deepinsight insightface arcface_torch"
    assert torch.equal(weights.state["conv2.conv.weight"], state["conv_sep.layers.0.weight"])


def test_a_head_beside_a_wrapped_network_comes_along(state, tmp_path):
    head = {"module.fc.weight": torch.arange(22.0).repeat(512, 1)}
    torch.save({"state_dict": {**prefixed("module.backbone.", state), **head}}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth").head.shape == (22, 512)


@pytest.mark.parametrize(
    ("contents", "part"),
    [
        (lambda s: {**prefixed("student.", s), **prefixed("teacher.", s)}, "student"),
        (lambda s: {"model": s, "ema": {k: v + 1 for k, v in s.items()}}, "model"),
        (lambda s: {**s, "ema/0.999": {k: v + 1 for k, v in s.items()}}, "_"),
        (lambda s: {**prefixed("net.", s), "projector.weight": torch.zeros(64, 512)}, "net"),
    ],
)
def test_more_than_a_network_and_its_head_is_refused_with_a_way_out(
    contents, part, state, tmp_path
):
    path = tmp_path / "my net.pth"
    torch.save(contents(state), path)
    refused = run_script("LFW_Evaluation.py", "--checkpoint", path)
    assert "holds a network under" in " ".join(refused.stderr.split())
    run_printed(commands(refused.stderr)[0])
    written = read_weights(tmp_path / f"my net_{part}.pt")
    assert torch.equal(written.state["conv2.conv.weight"], state["conv_sep.layers.0.weight"])
    with pytest.raises(CheckpointError, match="no network under 'tutor', but one under `--part "):
        read_weights(path, part="tutor")


def test_a_dictionary_that_is_in_itself_is_looked_at_once():
    tree = {"conv.weight": torch.zeros(1)}
    tree |= {f"again {number}": tree for number in range(3)}
    inner = {"fc.weight": torch.zeros(1)}
    inner |= {f"again {number}": inner for number in range(1000)}
    tree["inner"] = inner
    tree["again"] = tree
    assert [place.container for place in open_contents(tree)] == [""]
