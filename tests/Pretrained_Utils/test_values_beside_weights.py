"""What is beside a network in a file, and files that hold something else."""

import argparse
import gzip
import io
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from Backbone import build_backbone
from tests.Pretrained_Utils.test_lineages import mbf
from tests.Pretrained_Utils.test_weights_files import Touch
from tests.Pretrained_Utils.test_wrapped_weights import commands, tensors_of
from tests.processes import run_printed
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils import load_backbone
from Utils.Pretrained_Utils.files import read_file
from Utils.Pretrained_Utils.load import read_weights


@pytest.fixture(scope="module")
def state() -> dict:
    """insightface's MobileFaceNet, whose lineage is known from its names alone."""
    return tensors_of(mbf)


# --- What is beside it ---------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_values_beside_a_network_are_read_without_code(zipped, state, tmp_path):
    beside = {
        "best_acc": np.float64(0.9931),
        "epoch": np.int64(70),
        "flag": np.bool_(True),
        "big_endian": np.float32(1.5).astype(">f4"),
        "history": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "names": np.array(["lfw", "agedb"]),
        "mixed": np.array(["a", None], object),
        "args": argparse.Namespace(lr=0.1, path=pathlib.Path("a/b")),
    }
    path = tmp_path / "net.pth"
    torch.save({"state_dict": state, **beside}, path, _use_new_zipfile_serialization=zipped)
    assert load_backbone(path).feature_dim == 512
    read = read_file(path)
    for name in ("best_acc", "epoch", "flag", "big_endian"):
        assert read[name] == beside[name].item()
    for name in ("history", "columns", "names"):
        np.testing.assert_array_equal(read[name].values, beside[name])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("hidden", "named"),
    [
        (lambda touch: np.array([touch], object), "posix.system"),
        (lambda touch: argparse.Namespace(touch=touch), "posix.system"),
        (lambda touch: np.load, "numpy.load"),
        (lambda touch: np.random.default_rng, "default_rng"),
    ],
)
def test_code_beside_a_network_is_refused_and_not_run(zipped, hidden, named, state, tmp_path):
    contents = {"state_dict": state, "extra": hidden(Touch(tmp_path / "ran"))}
    path = tmp_path / "net.pth"
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"needs code to be read \(.*{named}.*\)"):
        load_backbone(path)
    assert not (tmp_path / "ran").exists()


class Extra:
    """A value that needs code to be read."""


@pytest.mark.parametrize("whole", [False, True])
def test_the_printed_command_saves_the_tensors_alone(whole, state, tmp_path):
    module = build_backbone("MobileFaceNet", 16, (32, 32))
    torch.save(module if whole else {"model": module, "x": Extra()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError, match="needs code to be read") as error:
        load_backbone(tmp_path / "net.pth")
    run_printed(commands(str(error.value))[0])
    read = read_weights(tmp_path / "net_weights.pt").state
    assert torch.equal(read["conv1.conv.weight"], module.conv1.conv.weight)


def test_a_torchscript_programs_weights_are_read_and_its_code_is_not(tmp_path):
    backbone = build_backbone("MobileFaceNet", 16, (32, 32)).eval()
    images = torch.rand(1, 3, 32, 32)
    torch.jit.trace(backbone, images).save(tmp_path / "program.pt")
    with (
        zipfile.ZipFile(tmp_path / "program.pt") as source,
        zipfile.ZipFile(tmp_path / "no code.pt", "w") as target,
    ):
        for name in source.namelist():
            broken = b"import" if "/code/" in name else source.read(name)
            target.writestr(name, broken)
    for name in ("program.pt", "no code.pt"):
        with torch.inference_mode():
            torch.testing.assert_close(load_backbone(tmp_path / name)(images), backbone(images))


class Listing(torch.nn.Module):
    """A module with a list, which a scripted program marks with its type."""

    def __init__(self):
        super().__init__()
        self.sizes = [3, 4]
        self.fc = torch.nn.Sequential(torch.nn.Linear(3, 4))

    def forward(self, x):
        return self.fc(x)


def test_a_scripted_programs_tensors_have_their_names(tmp_path):
    module = Listing()
    torch.jit.script(module).save(tmp_path / "program.pt")
    read = read_file(tmp_path / "program.pt")
    assert torch.equal(read["fc.0.weight"], module.fc[0].weight)


def test_torchscript_that_is_frozen_or_hostile_is_refused(tmp_path):
    torch.jit.freeze(torch.jit.script(Listing().eval())).save(tmp_path / "frozen.pt")
    with pytest.raises(CheckpointError, match="before it is frozen"):
        load_backbone(tmp_path / "frozen.pt")
    torch.save({"extra": Touch(tmp_path / "ran")}, tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt", "a") as archive:
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match=r"needs code to be read \(posix.system\)"):
        load_backbone(tmp_path / "net.pt")
    assert not (tmp_path / "ran").exists()


def test_torchscript_whose_tensors_are_deflated_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/constants.pkl", b"\x80\x02).")
        archive.writestr("net/data.pkl", b"\x80\x02}.", zipfile.ZIP_STORED)
        archive.writestr("net/data/0", bytes(100_000))
    with pytest.raises(CheckpointError, match="net/data/0 is compressed"):
        load_backbone(tmp_path / "net.pt")


# --- Files that are something else ---------------------------------------------------------------


def test_files_of_other_kinds_are_told_from_damaged_ones(state, tmp_path):
    torch.save(state, tmp_path / "net.pth")
    damaged = (tmp_path / "net.pth").read_bytes()[:1000]
    # ONNX's first fields: version 8, producer, graph.
    onnx = b"\x08\x08\x12\x07pytorch\x3a\x80\x01" + bytes(128)
    for content, said in (
        (onnx, "damaged ONNX file"),
        (onnx[:3], "not a checkpoint"),
        (b"\x08\x08" + damaged, "not a checkpoint"),
        (b"\x08\x08" + b"\xff" * 40, "not a checkpoint"),
        (gzip.compress(damaged)[:40], "not a checkpoint"),
        (b"PK\x05\x06" + b"\xff" * 18, "not a checkpoint"),
        (b"<!DOCTYPE html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull`"),
        (damaged, "truncated or not a checkpoint"),
    ):
        (tmp_path / "odd.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            load_backbone(tmp_path / "odd.pth")


def test_an_exported_program_is_told_from_an_archive(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 3), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(CheckpointError, match=r"exported PyTorch program"):
        load_backbone(tmp_path / "net.pt2")


@pytest.mark.parametrize("name", ["net.tar.gz", "net.zip"])
def test_an_archive_is_unpacked_as_the_error_says(name, state, tmp_path):
    torch.save(state, content := io.BytesIO())
    if name.endswith("zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("net.pth", content.getvalue())
    else:
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            entry = tarfile.TarInfo("net.pth")
            entry.size = content.tell()
            archive.addfile(entry, io.BytesIO(content.getvalue()))
    with pytest.raises(CheckpointError, match="it is an archive") as error:
        load_backbone(tmp_path / name)
    run_printed(commands(str(error.value))[0])
    assert load_backbone(tmp_path / "net_unpacked" / "net.pth").feature_dim == 512


def test_a_heads_file_or_a_misspelt_name_leads_to_the_network(state, tmp_path):
    torch.save(state, tmp_path / "Iter_12_net.pth")
    torch.save({"weight": torch.zeros(11, 512)}, tmp_path / "Iter_12_margin.pth")
    for name in ("Iter_12_margin.pth", "Iter_12_ne.pth", ""):
        with pytest.raises(CheckpointError) as error:
            load_backbone(tmp_path / name)
        assert str(tmp_path / "Iter_12_net.pth") in commands(str(error.value))
    with pytest.raises(CheckpointError, match=r"is not a file\.$"):
        load_backbone(tmp_path / "quite_another.pth")
