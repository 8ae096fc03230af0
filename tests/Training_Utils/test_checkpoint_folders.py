"""Checkpoint folders: read without running anything, and joined from other programs' shards."""

import os
import pickle
import shutil

import pytest
import torch

from Backbone import build_backbone, describe_backbone
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import in_processes
from Utils.cpu import peak_memory
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.convert import rename_for
from Utils.Pretrained_Utils.lineages import find_lineage
from Utils.Pretrained_Utils.load import build, read_weights
from Utils.processes import is_lost_connection
from Utils.Training_Utils.checkpoints.sharded import (
    METADATA,
    load_tables,
    read_tables,
    write_tables,
)

C, D = 10, 16


@pytest.fixture
def folder(tmp_path):
    """Two tables of 10 classes, written by one process."""
    torch.manual_seed(0)
    tables = {"weight": torch.randn(C, D), "momentum_buffer": torch.randn(C, D)}
    write_tables(tmp_path / "x.dcp", tables, None).result()
    return tmp_path / "x.dcp", tables


def test_tables_come_back_as_they_were(folder):
    path, tables = folder
    found = read_tables(path)
    assert found.keys() == tables.keys()
    assert all(torch.equal(found[name], tables[name]) for name in tables)


class Malicious:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_code_in_the_metadata_is_not_run(folder, tmp_path):
    path, tables = folder
    (path / METADATA).write_bytes(pickle.dumps(Malicious(f"touch {tmp_path}/ran")))
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read: its \.metadata: .*system"):
        load_tables(path, tables, None)
    assert not (tmp_path / "ran").exists()


def test_code_deep_in_good_metadata_is_not_run(folder, tmp_path):
    path, _ = folder
    metadata = pickle.loads((path / METADATA).read_bytes())
    metadata.planner_data = Malicious(f"touch {tmp_path}/ran")
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="system"):
        read_tables(path)
    assert not (tmp_path / "ran").exists()


def test_tables_outside_the_folder_are_refused(folder, tmp_path):
    path, _ = folder
    metadata = pickle.loads((path / METADATA).read_bytes())
    for place in metadata.storage_data.values():
        place.relative_path = "../outside"
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=r"'\.\./outside' is no plain file of the folder"):
        read_tables(path)


def test_objects_in_place_of_tensors_are_refused(folder):
    path, _ = folder
    metadata = pickle.loads((path / METADATA).read_bytes())
    metadata.state_dict_metadata["weight"] = None
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="weight is no tensor"):
        read_tables(path)


def test_more_than_the_files_hold_is_not_allocated(folder):
    path, _ = folder
    metadata = pickle.loads((path / METADATA).read_bytes())
    table = metadata.state_dict_metadata["weight"]
    table.size = table.chunks[0].sizes = torch.Size((10**12, D))
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="bytes of tensors"):
        read_tables(path)


def negative(metadata):
    metadata.state_dict_metadata["weight"].size = torch.Size((-C, D))


def without_pieces(metadata):
    metadata.state_dict_metadata["weight"].chunks = []


def outside(metadata):
    (chunk,) = metadata.state_dict_metadata["weight"].chunks
    chunk.offsets = torch.Size((1, 0))


def of_other_dimensions(metadata):
    (chunk,) = metadata.state_dict_metadata["weight"].chunks
    chunk.sizes = torch.Size((C * D,))


def in_no_file(metadata):
    metadata.storage_data = {
        place: stored for place, stored in metadata.storage_data.items() if place.fqn != "weight"
    }


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (negative, r"weight has the shape \(-10, 16\)"),
        (without_pieces, "weight has 160 numbers, and its pieces 0"),
        (outside, r"weight of \(10, 16\) has a piece of \(10, 16\) at \(1, 0\)"),
        (of_other_dimensions, r"weight of \(10, 16\) has a piece of \(160,\) at \(0, 0\)"),
        (in_no_file, r"the piece of weight at \(0, 0\) is in no file"),
    ],
)
def test_tables_that_are_not_whole_are_refused(folder, damage, said):
    path, _ = folder
    metadata = pickle.loads((path / METADATA).read_bytes())
    damage(metadata)
    (path / METADATA).write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match=rf"x\.dcp can't be read: its \.metadata: .*{said}"):
        read_tables(path)


def test_metadata_that_asks_for_much_memory_gets_none(folder):
    path, _ = folder
    # Put None in the place 2^26 - 1 of what is remembered; then nothing more.
    (path / METADATA).write_bytes(b"\x80\x04Nr\xff\xff\xff\x03")
    before = peak_memory()
    with pytest.raises(CheckpointError, match=r"can't be read: its \.metadata"):
        read_tables(path)
    assert peak_memory() < before + (100 << 20)


def load_alone(group, path):
    """What a process sees when the other one ends instead of loading with it."""
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
    (data,) = path.glob("*.distcp")
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2))
    with pytest.raises(
        CheckpointError, match=r"x\.dcp can't be read: a file is missing or damaged"
    ):
        load_tables(path, tables, None)
    data.unlink()
    with pytest.raises(CheckpointError, match=r"x\.dcp can't be read"):
        load_tables(path, tables, None)


def test_tables_of_other_classes_are_refused(folder):
    path, _ = folder
    with pytest.raises(CheckpointError, match=r"weight of \(10, 16\), not weight of \(11, 16\)"):
        load_tables(path, {"weight": torch.empty(C + 1, D)}, None)


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
