"""Disks that are full, odd or damaged: training goes on, and no checkpoint is lost."""

import csv
import dataclasses
import errno
import os
import resource
import time
from pathlib import Path

import pytest

from Config import Config
from tests.conftest import full_disk
from tests.Training_Utils.test_restarts import make_run, trained_state
from Utils.errors import CheckpointError, RunError
from Utils.files import link_or_copy, save_json
from Utils.Pretrained_Utils import load_backbone
from Utils.processes import ALONE
from Utils.run_folder import RunFolder, find_checkpoint
from Utils.Training_Utils import trainer as training
from Utils.Training_Utils.checkpoints.run_checkpoints import CheckpointWriter, read_run
from Utils.Training_Utils.reports.figures import Metrics, read_rows
from Utils.Training_Utils.reports.progress import close_log, open_log
from Utils.Training_Utils.start import begin_run
from Utils.Training_Utils.trainer import Trainer


@pytest.fixture
def config(tiny_faces, tmp_path):
    changes = {"total_epoch": 2, "milestones": (1,), "log_freq": 1, "test_freq": 3}
    return tiny_faces.config(tmp_path / "runs", **changes)


@pytest.mark.parametrize("makes_space", [True, False])
def test_a_run_goes_on_while_the_disk_is_full_and_waits_at_its_end(
    config, tmp_path, monkeypatch, unpainted, capsys, makes_space
):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def wait(seconds):
        if makes_space:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    monkeypatch.setattr(training, "_TRIES", 2)
    monkeypatch.setattr(training.time, "sleep", wait)
    if not makes_space:
        config = dataclasses.replace(config, checkpoint_format="sharded", total_epoch=1)
    with full_disk(50_000):
        if makes_space:
            Trainer(config).run()
        else:
            with pytest.raises(RunError, match=r"can't be written \(File too large\)"):
                Trainer(config).run()
    (folder,) = (tmp_path / "runs").iterdir()
    run, said = RunFolder(folder), capsys.readouterr().out
    assert "iteration 2 is not saved" in said
    assert "All is trained; writing is tried again" in said
    trained = {row["iteration"] for row in read_rows(run.metrics)}
    assert trained == set(range(1, 3 * config.total_epoch + 1))
    if makes_space:
        assert read_run(run.last)["position"]["iteration"] == 6
        assert run.results.is_file()
        assert read_run(run.last)["best"] == {}  # none of them was saved
    else:
        assert not run.last.exists()


def test_figures_that_a_full_disk_refuses_are_written_later(tmp_path):
    metrics = Metrics(tmp_path / "metrics.csv", ["LFW"])
    metrics.start()
    metrics.add({"iteration": 1, "loss": 0.5})
    size = metrics.path.stat().st_size
    with full_disk(size + 3):
        for iteration in (2, 3):
            with pytest.raises(RunError, match=r"metrics.csv can't be written"):
                metrics.add({"iteration": iteration, "loss": 0.25})
    assert metrics.path.stat().st_size == size
    metrics.write()
    with open(metrics.path, newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["1", "2", "3"]


def test_the_log_loses_no_line_to_a_full_disk_or_a_kill(tmp_path, capsys):
    path = tmp_path / "train.log"
    path.write_text("a line\nhalf a li")  # a process was killed
    log = open_log(path, screen=False)
    with full_disk(path.stat().st_size + 10):
        for number in range(300):
            log.info(f"number {number}, and more words to fill the line {'x' * 50}")
    log.info("the last")
    close_log(log)
    lines = path.read_text().splitlines()
    assert lines[:2] == ["a line", "half a li"]
    assert [line.split()[3].strip(",") for line in lines[2:-1]] == [*map(str, range(300))]
    assert capsys.readouterr().out.count("train.log can't be written") == 1


# --- odd file systems -----------------------------------------------------------------------------


@pytest.fixture
def plain_file_system(monkeypatch):
    """No renames over existing files, no hard or symbolic links."""
    rename, replace = os.rename, os.replace

    def only_new(source, target):
        if os.path.lexists(target):
            raise OSError(errno.EEXIST, "File exists")
        rename(source, target)

    def refused(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "replace", only_new)
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "symlink", refused)
    assert replace is not os.replace


@pytest.mark.parametrize("folders", [False, True])
def test_checkpoints_are_written_without_links_and_renames_over_files(
    tmp_path, plain_file_system, folders
):
    run, config = RunFolder(tmp_path / "run"), Config(input_size=(32, 32), feature_dim=8)
    run.create(config)
    writer = CheckpointWriter(run, folders, ALONE)
    state = trained_state(config, 10)
    for state.iteration, best in ((10, True), (20, False), (20, True), (30, False)):
        writer.save(state, config, 10, best)
        assert read_run(run.last)["position"]["iteration"] == state.iteration
    assert read_run(run.best)["position"]["iteration"] == 20
    run.create(config)  # its settings exist
    assert len(run.starts()) == 2
    assert [path for path in tmp_path.rglob(".*")] == []


def test_a_file_that_cannot_be_replaced_is_as_it_was(tmp_path, plain_file_system, monkeypatch):
    save_json(tmp_path / "x.json", [1])
    monkeypatch.setattr(os, "rename", lambda *_: os.link("", ""))
    with pytest.raises(RunError, match=r"x.json can't be written"):
        save_json(tmp_path / "x.json", [2])
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "[\n  1\n]\n"


# --- damage, and clocks ---------------------------------------------------------------------------


def test_a_damaged_checkpoint_is_noticed_and_a_whole_one_named(config, tmp_path):
    run = RunFolder(tmp_path / "a run")
    run.create(config)
    writer = CheckpointWriter(run, False, ALONE)
    config = dataclasses.replace(config, resume=str(run.last))
    state = trained_state(config, 10)
    for state.iteration in (10, 20):
        writer.save(state, config, 10)
    older = run.checkpoints / "iteration_00000010.pt"
    content = run.last.read_bytes()
    for damage in (
        content[: len(content) // 2] + bytes(4096) + content[len(content) // 2 + 4096 :],
        b"",
        bytes(len(content)),
    ):
        run.last.write_bytes(damage)
        with pytest.raises(CheckpointError, match=r"is damaged|is empty"):
            load_backbone(run.last)
        with pytest.raises(CheckpointError, match=rf"is whole: --resume '{older}'"):
            begin_run(config, ALONE)
    assert read_run(older)["position"]["iteration"] == 10


def test_of_damaged_folders_none_is_recommended(config, tmp_path):
    run = RunFolder(tmp_path / "a run")
    run.create(config)
    writer = CheckpointWriter(run, True, ALONE)
    state = trained_state(config, 10, classes=6)
    for state.iteration in (10, 20, 30):
        writer.save(state, config, 24)
    for number in (20, 30):
        (table,) = (run.checkpoints / f"iteration_{number:08d}.dcp").glob("*.safetensors")
        content = table.read_bytes()
        table.write_bytes(content[:-4] + bytes(4))
    with pytest.raises(CheckpointError, match=r"check sum.* is whole: --resume '.*00000010\.dcp'"):
        begin_run(dataclasses.replace(config, resume=str(run.last)), ALONE)


def test_the_last_run_is_not_guessed_where_the_clock_was_set_back(tmp_path):
    first, second = make_run(tmp_path, "first", 1), make_run(tmp_path, "second", 2)
    assert find_checkpoint("last", str(tmp_path)) == second.last
    os.utime(first.last, (time.time() + 86_400,) * 2)
    with pytest.raises(RunError, match=r"first.*dated in the future.*--resume PATH.*`touch"):
        find_checkpoint("last", str(tmp_path))
    link_or_copy(first.last, Path(tmp_path / "only.pt"))
    assert find_checkpoint(str(tmp_path / "only.pt"), str(tmp_path)) == tmp_path / "only.pt"
