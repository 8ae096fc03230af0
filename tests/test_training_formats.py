"""Training from each format: the same photos in the same order give the same losses."""

import csv
import shutil

import pytest

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.generate_dataset_list import write_list

SETTINGS = [
    *("--train_dataset", "Real", "--input_size", "32,32", "--feature_dim", "16"),
    *("--batch_size", "16", "--total_epoch", "1", "--milestones", "", "--log_freq", "1"),
    *("--num_workers", "0", "--no-use_visdom", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def losses(shared_data, tmp_path_factory):
    """The losses of every iteration of an epoch, by format."""
    root = tmp_path_factory.mktemp("formats")
    record = shared_data / "formats" / "rec_ms1m_layout"
    write_list(record / "train.lst", root / "list.txt")
    convert(record, root / "shards/%03d.tar", shard_size=100)
    (root / "folder").mkdir()
    convert(record, root / "folder/tree")
    shutil.make_archive(str(root / "tree"), "zip", root / "folder")
    sources = {
        "list": (shared_data / "lfw_half/images", root / "list.txt"),
        "record": (record, ""),
        "shards": (root / "shards", ""),
        "zip": (root / "tree.zip", ""),
    }
    return {name: train(root / f"run {name}", *paths) for name, paths in sources.items()}


def train(save_dir, path, file_list):
    paths = ("--train_dataset_path", path, "--train_file_list", file_list, "--save_dir", save_dir)
    run = run_script("Train.py", *SETTINGS, *paths)
    assert run.returncode == 0, run.stderr
    assert "347 images, 60 identities" in run.stdout + run.stderr
    (metrics,) = save_dir.glob("*/metrics.csv")
    with open(metrics) as f:
        return [row["loss"] for row in csv.DictReader(f) if row["loss"]]


@pytest.mark.parametrize("name", ["record", "shards", "zip"])
def test_the_losses_are_those_of_the_image_list(losses, name):
    assert len(losses["list"]) == 347 // 16
    assert len(set(losses["list"])) > 10
    assert losses[name] == losses["list"]


def test_an_unknown_format_ends_in_one_paragraph(tmp_path):
    (tmp_path / "faces.rar").write_bytes(b"Rar!")
    run = run_script("Train.py", *SETTINGS, "--train_dataset_path", tmp_path / "faces.rar")
    assert_one_paragraph(run, "faces.rar is of no known format", "a record file")
