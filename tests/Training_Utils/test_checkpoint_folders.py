"""Checkpoint folders: read without running anything; merged from other programs' shards."""

import json
import os
import pickle
import shutil
import struct
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from Backbone import build_backbone, describe_backbone
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import in_processes
from Utils.cpu import peak_memory
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.convert import rename_for
from Utils.Pretrained_Utils.lineages import find_lineage
from Utils.Pretrained_Utils.load import build, read_weights
from Utils.processes import is_lost_connection
from Utils.run_folder import FORMAT
from Utils.Training_Utils.checkpoints.run_checkpoints import read_run
from Utils.Training_Utils.checkpoints.sharded import load_tables, read_tables, write_tables

C, D = 10, 16
OFFSETS = "DCP_SHARDING_INFO"  # PyTorch's name in the header of a file


def write_on(group, path, tables):
    """Each process writes its rows, as a head whose classes are split does."""
    mesh = torch.distributed.device_mesh.DeviceMesh.from_group(group, "cpu")
    shard = [torch.distributed.tensor.Shard(0)]
    own = {
        name: torch.distributed.tensor.distribute_tensor(table, mesh, shard)
        for name, table in tables.items()
    }
    write_tables(path, own, group)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two tables of 10 classes, written by two processes."""
    torch.manual_seed(0)
    tables = {"weight": torch.randn(C, D), "momentum_buffer": torch.randn(C, D)}
    root = tmp_path_factory.mktemp("folder")
    for name in ("meeting", "x.dcp"):
        (root / name).mkdir()
    in_processes(2, root / "meeting", write_on, root / "x.dcp", tables)
    return root / "x.dcp", tables


@pytest.fixture
def folder(written, tmp_path):
    """A copy of it."""
    return shutil.copytree(written[0], tmp_path / "x.dcp"), written[1]


def read(path):
    return read_tables(path, ["weight", "momentum_buffer"], C, [C, D])


def test_tables_come_back_as_they_were(folder):
    path, tables = folder
    assert len(list(path.iterdir())) == 2
    found = read(path)
    assert found.keys() == tables.keys()
    assert all(torch.equal(found[name], tables[name]) for name in tables)


def test_the_files_are_what_other_programs_read(folder):
    path, tables = folder
    shards = [load_file(file) for file in sorted(path.glob("*.safetensors"))]
    for name, table in tables.items():
        assert torch.equal(torch.cat([shard[name] for shard in shards]), table)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tables_are_written_without_copies_of_them(tmp_path, dtype):
    table = torch.randn(2**12, 2**9).to(dtype)
    write_tables(tmp_path, {"weight": table[:1]}, None)  # what is imported at the first time
    tracemalloc.start()
    write_tables(tmp_path, {"weight": table}, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < table.nbytes / 4
    (file,) = tmp_path.iterdir()
    assert torch.equal(load_file(file)["weight"], table)


def rewrite(file, change):
    """Change the JSON header of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def offsets(header, change):
    info = json.loads(header["__metadata__"][OFFSETS])
    change(info)
    header["__metadata__"][OFFSETS] = json.dumps(info)


class Malicious:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", [".metadata", "x.safetensors", "__0_0.distcp"])
def test_code_in_a_file_is_not_run(folder, tmp_path, name):
    path, _ = folder
    for file in path.iterdir():
        file.unlink()
    (path / name).write_bytes(pickle.dumps(Malicious(f"touch {tmp_path}/ran")))
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read"):
        load_tables(path, {"weight": torch.empty(C, D)}, None)
    assert not (tmp_path / "ran").exists()


def test_code_in_common_pt_is_not_run(tmp_path):
    torch.save({"format": Malicious(f"touch {tmp_path}/ran")}, tmp_path / "common.pt")
    with pytest.raises(CheckpointError, match="system"):
        read_run(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "about",
    [
        None,
        [],
        {"names": ["weight"], "shape": [C, D]},
        {"parameter": 0, "names": ["weight"], "shape": [-C, D]},
        {"parameter": 0, "names": ["weight"], "shape": "10×16"},
        {"parameter": 0, "names": [3], "shape": [C, D]},
        {"parameter": [0], "names": ["weight"], "shape": [C, D]},
    ],
)
def test_a_description_of_tables_that_is_none_is_refused(tmp_path, about):
    sections = ("settings", "architecture", "backbone", "head", "optimizer", "position", "random")
    state = {"format": FORMAT, "class_tables": about} | {name: {} for name in sections}
    torch.save(state, tmp_path / "common.pt")
    with pytest.raises(CheckpointError, match="does not describe its class tables"):
        read_run(tmp_path)


def integers(path):
    for file in path.iterdir():
        tables = {name: table.long() for name, table in load_file(file).items()}
        begin = 5 if "00002" in file.name else 0
        info = {name: {"saved_offsets": [begin, 0]} for name in tables}
        save_file(tables, file, metadata={OFFSETS: json.dumps(info)})


def shift(by):
    def change(path):
        (file,) = path.glob("*00002-model*")
        rewrite(
            file,
            lambda header: offsets(header, lambda i: i["weight"].update(saved_offsets=by)),
        )

    return change


def without_offsets(path):
    for file in path.iterdir():
        rewrite(file, lambda header: header.pop("__metadata__"))


def first_rows_missing(path):
    sorted(path.iterdir())[0].unlink()


def last_rows_missing(path):
    sorted(path.iterdir())[1].unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (integers, "is no table of numbers"),
        (shift([6, 0]), r"weight of \(11, 16\) has a piece of \(5, 16\) at \(6, 0\) after row 5"),
        (shift([4, 0]), r"has a piece of \(5, 16\) at \(4, 0\) after row 5"),
        (shift([5, 1]), r"weight of \(10, 17\) has a piece of"),
        (shift([10**12, 0]), r"at \(1000000000000, 0\) after row 5"),
        (shift([-5, 0]), "has a piece of"),
        (shift("five"), "missing or damaged"),
        (without_offsets, r"has a piece of \(5, 16\) at \(0, 0\) after row 5"),
        (first_rows_missing, r"has a piece of \(5, 16\) at \(5, 0\) after row 0"),
        (last_rows_missing, r"\(5, 16\)"),
    ],
)
def test_tables_that_are_not_whole_are_refused(folder, damage, said):
    path, _ = folder
    damage(path)
    with pytest.raises(CheckpointError, match=rf"x\.dcp can't be read: .*{said}"):
        read(path)
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read: "):
        load_tables(path, {"weight": torch.empty(C, D)}, None)


def test_headers_that_ask_for_much_memory_get_none(folder):
    path, _ = folder
    before = peak_memory()
    for size in (10**12, -1, 2**62):
        for file in path.iterdir():
            rewrite(file, lambda header: header["weight"].update(shape=[size, D]))  # noqa: B023
        with pytest.raises(CheckpointError, match="missing or damaged"):
            read(path)
    file.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(CheckpointError, match="missing or damaged"):
        read(path)
    assert peak_memory() < before + (100 << 20)


def load_alone(group, path):
    """What a process sees when the other one ends instead of loading with it."""
    group.barrier().wait()
    if group.rank() == 1:
        return None
    try:
        load_tables(path, {"weight": torch.empty(C, D)}, group)
    except RuntimeError as error:
        return is_lost_connection(error)
    raise AssertionError("it was loaded")


def test_the_death_of_another_process_is_no_damage(folder, tmp_path):
    path, _ = folder
    (tmp_path / "meeting").mkdir()
    assert in_processes(2, tmp_path / "meeting", load_alone, path)[0] is True


def test_a_folder_with_a_file_missing_or_cut_is_named(folder, tmp_path):
    path, tables = folder
    data = sorted(path.iterdir())[0]
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r"x\.dcp can't be read: a file is missing or damaged"
    ):
        load_tables(path, tables, None)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read"):
        load_tables(path, tables, None)


def flip(file):
    """Change a bit of the last value."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)


def load_in_two(group, path):
    """What each of two processes raises."""
    try:
        load_tables(path, {"weight": torch.empty(C, D)}, group)
    except CheckpointError as error:
        return str(error)


@pytest.mark.parametrize("number", [0, 1])
def test_a_changed_bit_is_found_by_the_check_sum(folder, tmp_path, number):
    path, tables = folder
    file = sorted(path.iterdir())[number]
    flip(file)
    with pytest.raises(CheckpointError, match=rf"x\.dcp can't be read: .*{file.name}"):
        read(path)
    (tmp_path / "meeting").mkdir()
    for said in in_processes(2, tmp_path / "meeting", load_in_two, path):
        assert f"check sum of {file.name}" in said
    rewrite(file, lambda header: header["__metadata__"].pop("crc32"))  # as it was written before
    assert torch.equal(read(path)["weight"], tables["weight"])


def test_tables_of_other_classes_are_refused(folder):
    path, _ = folder
    with pytest.raises(CheckpointError, match=r"weight of \(10, 16\), not weight of \(11, 16\)"):
        load_tables(path, {"weight": torch.empty(C + 1, D)}, None)
    with pytest.raises(CheckpointError, match=r"of \(10, 16\) is no table of 11 classes"):
        read_tables(path, ["weight"], C + 1, [C + 1, D])


def test_a_table_that_is_described_but_not_there_is_missed(folder):
    path, _ = folder
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read: it has no exp_avg"):
        read_tables(path, ["weight", "exp_avg"], C, [C, D])


def test_a_folder_of_an_earlier_form_says_how_to_read_it(tmp_path):
    (tmp_path / "__0_0.distcp").touch()
    with pytest.raises(CheckpointError, match="Merge it into one file with the version that wrote"):
        load_tables(tmp_path, {"weight": torch.empty(C, D)}, None)
    with pytest.raises(CheckpointError, match="Merge it into one file with the version that wrote"):
        read_tables(tmp_path, ["weight"], C, [C, D])


@pytest.fixture
def insightface_shards(tmp_path):
    """What insightface's train_v2.py saves on 3 GPUs, for 10 classes: rows 4 + 3 + 3."""
    torch.manual_seed(0)
    backbone = build_backbone("ResNet18_IR", D, (32, 32)).eval()
    theirs = rename_for(
        backbone.state_dict(), describe_backbone(backbone), find_lineage("insightface")
    )
    table, momentum = torch.randn(C, D), torch.randn(C, D)
    for rank, rows in enumerate((slice(0, 4), slice(4, 7), slice(7, 10))):
        optimizer = {
            "state": {
                0: {"momentum_buffer": torch.ones(3)},
                1: {"momentum_buffer": momentum[rows]},
            },
            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.1, "params": [1]}],
        }
        shard = {
            "epoch": 3,
            "global_step": 1200,
            "state_dict_backbone": theirs,
            "state_dict_softmax_fc": {"weight": table[rows].clone()},
            "state_optimizer": optimizer,
            "state_lr_scheduler": {"last_epoch": 1200},
        }
        torch.save(shard, tmp_path / f"checkpoint_gpu_{rank}.pt")
    return tmp_path, backbone, table, momentum


def merge(source, target):
    return run_script("-m", "Utils.Training_Utils.merge_checkpoint", source, target)


def test_insightfaces_shards_become_one_file_that_loads(insightface_shards, tmp_path):
    folder, backbone, table, momentum = insightface_shards
    run = merge(folder, tmp_path / "whole.pt")
    assert run.returncode == 0, run.stderr
    assert "3 shards, 10 classes, step 1200" in run.stdout
    weights = read_weights(tmp_path / "whole.pt")
    assert torch.equal(weights.head, table)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(build(weights)(x), backbone(x))
    joined = torch.load(tmp_path / "whole.pt", weights_only=True)
    assert torch.equal(joined["state_optimizer"]["state"][1]["momentum_buffer"], momentum)
    assert joined["state_lr_scheduler"] == {"last_epoch": 1200}


def test_shards_that_do_not_belong_together_are_refused(insightface_shards, tmp_path):
    folder, *_ = insightface_shards
    shutil.move(folder / "checkpoint_gpu_1.pt", folder / "kept.pt")
    assert_one_paragraph(merge(folder, tmp_path / "whole.pt"), "no checkpoint_gpu_1.pt")
    other = torch.load(folder / "kept.pt", weights_only=True) | {"global_step": 900}
    torch.save(other, folder / "checkpoint_gpu_1.pt")
    assert_one_paragraph(merge(folder, tmp_path / "whole.pt"), "global_step 900", "of 1200")
    assert not (tmp_path / "whole.pt").exists()
