"""Weights written for other programs: bit for bit the same values, and the same outputs."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from Backbone import Preprocessing, build_backbone, describe_backbone
from tests import lineage_mobilefacenets as mobilefacenets
from tests import lineage_networks as networks
from tests.conftest import assert_one_paragraph, run_script
from tests.lineage_networks import Recorder
from tests.Pretrained_Utils.test_lineages import CASES, label, quasarlight_mobile
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import convert, load_backbone
from Utils.Pretrained_Utils.convert import layout_counts, rename_for
from Utils.Pretrained_Utils.export import METADATA, export
from Utils.Pretrained_Utils.export import main as export_main
from Utils.Pretrained_Utils.files import write_backbone
from Utils.Pretrained_Utils.lineages import find_lineage
from Utils.Pretrained_Utils.lineages.recognise import matches

CONVERT = ("-m", "Utils.Pretrained_Utils.convert")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run a command of this folder in this process, and give what it printed."""

    def run(main, *arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        main()
        return capsys.readouterr().out

    return run


def assert_same_tensors(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_lineages_names_come_back_bit_for_bit(case):
    net = Recorder(device="meta")
    case.network(net, torch.empty(1, 3, *case.size, dtype=torch.float64, device="meta"))
    # Shapes decide what happens to a tensor; one number each, its own, shows where it went.
    theirs = {
        key: torch.full((), float(i)).expand(tensor.shape)
        for i, (key, tensor) in enumerate(net.state.items())
    }
    lineage = find_lineage(case.lineage)
    ((_, match),) = matches(theirs, (lineage,))
    assert layout_counts(match.layout, match.architecture) == match.counts
    assert_same_tensors(rename_for(match.state, match.architecture, lineage), theirs)


@pytest.mark.parametrize(
    ("network", "lineage"),
    [
        (quasarlight_mobile, "quasarlight"),
        (lambda net, x: networks.iresnet(net, x, 18), "insightface"),
        (lambda net, x: mobilefacenets.insightface_mbf(net, x, 2, (1, 4, 6, 2)), "insightface"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_command_converts_there_and_back(network, lineage, suffix, command, tmp_path):
    net = Recorder()
    network(net, torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    half = {k: v.half() if v.is_floating_point() else v for k, v in net.state.items()}
    torch.save(half, tmp_path / "theirs.pth")
    ours, back = tmp_path / f"ours{suffix}", tmp_path / f"back{suffix}"
    command(convert.main, tmp_path / "theirs.pth", ours)
    command(convert.main, ours, back, "--to", lineage)
    read = load_file(back) if suffix == ".safetensors" else torch.load(back, weights_only=True)
    assert_same_tensors(read, half)


def test_a_bare_backbone_file_says_all_that_it_takes(command, tmp_path):
    net = Recorder()
    mobilefacenets.treb1en_mobilefacenet(net, torch.zeros(1, 3, 48, 48, dtype=torch.float64))
    torch.save(net.state, tmp_path / "theirs.pth")
    original = load_backbone(tmp_path / "theirs.pth")
    for name in ("ours.pt", "ours.safetensors"):
        command(convert.main, tmp_path / "theirs.pth", tmp_path / name, "--input_scale", "128")
        backbone = load_backbone(tmp_path / name, "MobileFaceNet")
        assert backbone.preprocessing == Preprocessing("BGR", 127.5, 128.0, (48, 48))
        assert "TreB1eN" in backbone.lineage
        images = torch.rand(2, 3, 48, 48)
        assert torch.equal(backbone(images), original(images))  # of length 1, as theirs
        torch.testing.assert_close(backbone(images).norm(dim=1), torch.ones(2))


def test_what_a_lineage_can_not_build_is_not_converted(command, tmp_path):
    se = build_backbone("SEResNet18_IR", 16, (32, 32))
    torch.save(se.state_dict(), tmp_path / "se.pt")
    for lineage, said in (
        ("insightface", "it has no layer1.0.se.fc1"),
        ("quasarlight", "it has none of this family and depth"),
        ("face_evolve", "it has none of this family and depth"),
    ):
        with pytest.raises(CheckpointError, match=f"is not a network that.*{said}"):
            command(convert.main, tmp_path / "se.pt", tmp_path / "out.pt", "--to", lineage)
    assert not (tmp_path / "out.pt").exists()
    assert_one_paragraph(
        run_script(*CONVERT, tmp_path / "se.pt", tmp_path / "out.bin"), "must end in"
    )


def test_another_code_bases_habits_are_pointed_out(command, tmp_path):
    torch.save(build_backbone("MobileFaceNet", 128).state_dict(), tmp_path / "ours.pt")
    said = command(convert.main, tmp_path / "ours.pt", tmp_path / "ql.pth", "--to", "quasarlight")
    assert "their code feeds channels as BGR, these weights want RGB" in said


def test_what_reads_a_target_again_is_said_where_it_needs_a_flag(command, tmp_path):
    variant = {"shortcut": "pool", "middle_norm": False}
    backbone = build_backbone("ResNet50_IR", 16, (32, 32), **variant)
    torch.save(backbone.state_dict(), tmp_path / "ours.pt")
    said = command(convert.main, tmp_path / "ours.pt", tmp_path / "ev.pth", "--to", "face_evolve")
    assert "to read it here again, give --lineage face_evolve" in said
    with pytest.raises(CheckpointError, match="may be from"):
        load_backbone(tmp_path / "ev.pth")
    assert load_backbone(tmp_path / "ev.pth", "face_evolve").preprocessing.channel_order == "RGB"


def randomised(name: str, size: tuple[int, int] = (32, 32)) -> torch.nn.Module:
    torch.manual_seed(0)
    # Short networks: the time of an export grows with the number of layers.
    variant = {"repeats": [1, 1, 1, 1]} if name == "MobileFaceNet" else {}
    backbone = build_backbone(name, 64, size, **variant).eval()
    if name.startswith("ViT"):
        backbone.blocks = backbone.blocks[:2]
    for number in (3, 4) if "ResNet" in name else ():
        stage = getattr(backbone, f"layer{number}")
        setattr(backbone, f"layer{number}", stage[:1])
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return backbone


# SEResNet18_IR has all that ResNet18_IR has.
@pytest.mark.parametrize("name", ["MobileFaceNet", "SEResNet18_IR", "ViT_T_KPRPE"])
def test_onnx_and_pt2_give_the_networks_output(name, tmp_path):
    backbone = randomised(name)
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = backbone(backbone.preprocessing(images))
    pixels = ((images.numpy().astype(np.float32) - 127.5) / 127.5).transpose(0, 3, 1, 2)

    export(backbone, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {"input": pixels})
    limit = 1e-4 * max(1, expected.abs().max().item())
    assert np.abs(found - expected.numpy()).max() < limit
    about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert about == describe_backbone(backbone)

    export(backbone, tmp_path / "net.pt2")
    found = torch.export.load(tmp_path / "net.pt2").module()(torch.from_numpy(pixels))
    assert (found - expected).abs().max() < limit


def test_preprocessing_goes_into_the_exported_network(command, tmp_path):
    backbone = randomised("MobileFaceNet", (48, 32))
    backbone.preprocessing = Preprocessing("BGR", 100.0, 128.0, (48, 32))
    torch.save(
        {
            "format": "face-backbone-1",
            "architecture": describe_backbone(backbone),
            "backbone": backbone.state_dict(),
        },
        tmp_path / "net.pt",
    )
    images = torch.randint(0, 256, (3, 48, 32, 3), dtype=torch.uint8)
    pixels = (images.flip(3).permute(0, 3, 1, 2).float() - 100) / 128
    with torch.no_grad():
        expected = backbone(pixels)
    said = command(
        export_main, tmp_path / "net.pt", tmp_path / "net.onnx", "--include_preprocessing"
    )
    assert "largest difference" in said
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {"input": images.numpy()})
    assert np.abs(found - expected.numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "size", "lineage", "read_as"),
    [
        ("ResNet18_IR", (160, 40 * 16), "insightface", "320×320"),  # 10×40 places are 20×20
        ("ResNet18_IR", (96, 112), "insightface", "112×96"),
        ("ResNet50", (128, 128), "face_evolve", "112×112"),
    ],
)
def test_an_input_size_that_would_be_lost_is_not_converted(name, size, lineage, read_as):
    with torch.device("meta"):
        backbone = build_backbone(name, 512, size)
    with pytest.raises(
        CheckpointError, match=f"read as for {read_as} images and not for {size[0]}×"
    ):
        rename_for(backbone.state_dict(), describe_backbone(backbone), find_lineage(lineage))


def test_shared_tensors_and_views_are_written_as_tensors_of_their_own(tmp_path):
    table = torch.rand(1000, 4)
    state = {"a": table[:2], "b": table[:2], "c": torch.rand(3, 2).T}
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"net{suffix}"
        write_backbone(path, state, None)
        assert path.stat().st_size < 4000  # the table alone has 16,000 bytes
        read = load_file(path) if suffix == ".safetensors" else torch.load(path)
        assert_same_tensors(read, state)


def test_an_output_that_is_no_number_is_found_in_any_batch(tmp_path, monkeypatch):
    backbone = randomised("MobileFaceNet")

    def run(path, images):
        return backbone(images) * (float("nan") if len(images) == 3 else 1)

    runtimes = {".pt2": (lambda program, about: lambda path: None, run)}
    monkeypatch.setattr("Utils.Pretrained_Utils.export.RUNTIMES", runtimes)
    with pytest.raises(RuntimeError, match="its outputs differ by nan"):
        export(backbone, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    backbone = randomised("MobileFaceNet")
    zeros = torch.zeros(1, 64)
    runtimes = {".pt2": (lambda program, about: lambda path: None, lambda path, images: zeros)}
    monkeypatch.setattr("Utils.Pretrained_Utils.export.RUNTIMES", runtimes)
    with pytest.raises(RuntimeError, match="was not written: its outputs differ by"):
        export(backbone, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
