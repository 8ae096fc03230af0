"""Training from each format: the same photos in the same order give the same losses."""

import csv
import shutil
from dataclasses import replace

import pytest

from Config import Config
from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Training_Utils.trainer import Trainer

CONFIG = Config(
    train_dataset="Real",
    input_size=(32, 32),
    feature_dim=16,
    batch_size=16,
    total_epoch=1,
    milestones=(),
    log_freq=1,
    num_workers=0,
    use_visdom=False,
    device="cpu",
)


def losses(save_dir, path, file_list=""):
    """The loss of each iteration of an epoch."""
    config = replace(
        CONFIG,
        train_dataset_path=str(path),
        train_file_list=str(file_list),
        save_dir=str(save_dir),
    )
    run = Trainer(config).run().run
    with open(run / "metrics.csv") as f:
        return [row["loss"] for row in csv.DictReader(f) if row["loss"]]


@pytest.fixture(scope="module")
def record(shared_data):
    return shared_data / "formats" / "rec_ms1m_layout"


@pytest.fixture(scope="module")
def losses_of_list(shared_data, record, tmp_path_factory):
    """Those of the photos themselves, in the order of the list that the record file came with."""
    root = tmp_path_factory.mktemp("list")
    write_list(record / "train.lst", root / "list.txt")
    found = losses(root, shared_data / "lfw_half/images", root / "list.txt")
    assert len(found) == 347 // 16
    assert len(set(found)) > 10
    return found


def test_a_record_file_gives_the_losses_of_the_list(record, losses_of_list, tmp_path):
    assert losses(tmp_path, record) == losses_of_list


def test_shards_give_the_losses_of_the_list(record, losses_of_list, tmp_path):
    convert(record, tmp_path / "shards/%03d.tar", shard_size=100)
    assert losses(tmp_path / "runs", tmp_path / "shards") == losses_of_list


def test_a_zip_of_folders_gives_the_losses_of_the_list(record, losses_of_list, tmp_path):
    convert(record, tmp_path / "faces/tree")
    shutil.make_archive(str(tmp_path / "tree"), "zip", tmp_path / "faces")
    assert losses(tmp_path / "runs", tmp_path / "tree.zip") == losses_of_list


def test_the_script_trains_from_a_path_alone(record, tmp_path):
    run = run_script(
        *("Train.py", "--train_dataset", "Real", "--train_dataset_path", record / "train.rec"),
        *("--input_size", "32,32", "--feature_dim", "16", "--batch_size", "64"),
        *("--total_epoch", "1", "--milestones", "", "--num_workers", "1", "--no-use_visdom"),
        *("--device", "cpu", "--para_adj_mode"),
    )
    assert run.returncode == 0, run.stderr
    assert "Real: 347 images, 60 identities" in run.stdout + run.stderr
    assert "Trained 5 iterations" in run.stdout


def test_an_unknown_format_ends_in_one_paragraph(tmp_path):
    (tmp_path / "faces.rar").write_bytes(b"Rar!")
    flags = ("--train_dataset", "Real", "--train_dataset_path", tmp_path / "faces.rar")
    run = run_script("Train.py", *flags, "--device", "cpu")
    assert_one_paragraph(run, "faces.rar is of no known format", "a record file")
