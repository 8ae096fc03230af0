"""Which run a launch goes on with that torchrun has restarted, and what a kill leaves behind."""

import dataclasses
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from Config import Config
from Config.command_line import read_config
from tests.processes import in_processes
from Utils.errors import RunError
from Utils.files import atomic_path, write_tensors
from Utils.processes import ALONE, Processes
from Utils.run_folder import FORMAT, RunFolder, note_launch
from Utils.Training_Utils.checkpoints import run_checkpoints as writing
from Utils.Training_Utils.checkpoints.run_checkpoints import (
    CheckpointWriter,
    read_run,
    remove_unfinished,
)
from Utils.Training_Utils.merge_checkpoint import merge_folder
from Utils.Training_Utils.start import build_state, checkpoint_to_resume, saved_settings
from Utils.Training_Utils.state import Best

PARTS = ("architecture", "backbone", "head", "optimizer", "position", "random")


def make_run(save_dir: Path, name: str, seed: int) -> RunFolder:
    """A run with a checkpoint, newer than all before it."""
    config = dataclasses.replace(Config(), save_dir=str(save_dir), seed=seed)
    run = RunFolder(save_dir / name)
    run.create(config)
    state = {part: {} for part in PARTS} | {"format": FORMAT, "settings": config.to_dict()}
    write_tensors(run.last, state)
    os.utime(run.last, (seed, seed))
    return run


def begin(save_dir: Path) -> tuple[Config, Path]:
    """The settings and the checkpoint with which `--resume last` goes on."""
    argv = ["--save_dir", str(save_dir), "--resume", "last"]
    config = read_config("x", argv=argv, saved_settings=saved_settings)
    return config, checkpoint_to_resume(config, ALONE)


@pytest.mark.parametrize("launch", ["jobA", "none"])
def test_a_restart_goes_on_with_its_own_run_though_another_job_has_a_newer(
    tmp_path, monkeypatch, launch
):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", launch)
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    ours = make_run(tmp_path, "ours", seed=1)
    config, checkpoint = begin(tmp_path)
    assert checkpoint == ours.last
    note_launch(config.save_dir, ours)
    theirs = make_run(tmp_path, "theirs", seed=2)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config, checkpoint = begin(tmp_path)
    assert (checkpoint, config.seed) == (ours.last, 1)

    # A later launch of the same number, restarted before it had a run, is not that one.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    begin(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config, checkpoint = begin(tmp_path)
    assert (checkpoint, config.seed) == (theirs.last, 2)


def settings_found(group, save_dirs):
    """What `last` means to a process that sees its own save_dir, and to all that see none."""
    rank = group.rank()
    processes = Processes(rank, group.size(), group, group)
    found = saved_settings("last", save_dirs[rank], processes)
    config = dataclasses.replace(Config(), save_dir=save_dirs[rank], resume="last")
    resumed = checkpoint_to_resume(config, processes)
    try:
        saved_settings("last", "nowhere", processes)
    except RunError as error:
        return found["resume"], found["seed"], str(resumed), str(error)
    raise AssertionError("there is no such folder")


def test_processes_that_see_different_runs_as_the_last_take_the_first_ones(tmp_path):
    runs = [make_run(tmp_path / str(rank), "run", seed=rank + 1) for rank in range(2)]
    save_dirs = [str(run.path.parent) for run in runs]
    (tmp_path / "meeting").mkdir()
    found = in_processes(2, tmp_path / "meeting", settings_found, save_dirs)
    assert found[0] == found[1]
    assert found[0][:3] == (str(runs[0].last), 1, str(runs[0].last))
    assert "no run in nowhere has a checkpoint" in found[0][3]


def trained_state(config, iteration, classes=4):
    """A state with momentum, after so many iterations."""
    state = build_state(config, classes, 10, torch.device("cpu"), None)
    state.head.weight.grad = torch.ones_like(state.head.weight)
    state.optimizer.step()
    state.iteration = iteration
    return state


def test_a_kill_between_two_renames_loses_no_checkpoint(tmp_path, monkeypatch):
    run, config = RunFolder(tmp_path / "run"), Config(input_size=(32, 32), feature_dim=8)
    run.create(config)
    rename = os.rename

    def killed(source: Path, target: Path) -> None:
        if Path(source).suffix == ".partial":
            raise OSError("killed")
        rename(source, target)

    CheckpointWriter(run, True, ALONE).save(trained_state(config, 120), config, 10, best=True)
    writer = CheckpointWriter(run, True, ALONE, resumed=run.last)
    monkeypatch.setattr(writing.os, "rename", killed)
    writer.save(trained_state(config, 120), config, 20)  # nothing was trained since
    with pytest.raises(RunError, match="killed"):
        writer.save(trained_state(config, 121), config, 20, best=True)
    monkeypatch.undo()
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "iteration_00000120.dcp",
        "last.dcp",
        "best.dcp",
        ".iteration_00000121.dcp.partial",
    }
    remove_unfinished(run)
    for path in (run.best, run.last):
        merged, _ = merge_folder(path)
        assert (merged["position"]["iteration"], merged["num_images"]) == (120, 20)
    names = {path.name for path in run.checkpoints.iterdir()}
    assert names == {"iteration_00000120.dcp", "last.dcp", "best.dcp"}
    # Written again by a run that was killed before it could name the folder.
    CheckpointWriter(run, True, ALONE).save(trained_state(config, 120), config, 30)
    assert read_run(run.last)["num_images"] == 30


def test_a_best_checkpoint_that_the_last_one_speaks_of_has_its_name(tmp_path, monkeypatch):
    config = Config(input_size=(32, 32), feature_dim=8)
    replace = os.replace
    for kill_at in range(2, 7):  # of six, two are of the first of the two saves
        run = RunFolder(tmp_path / f"run_{kill_at}")
        run.create(config)
        writer = CheckpointWriter(run, True, ALONE)
        state, calls = trained_state(config, 60), iter(range(99))
        writer.save(state, config, 10, best=True)
        state.iteration = 120

        def killed(*paths, calls=calls, kill_at=kill_at) -> None:
            if next(calls) >= kill_at:
                raise OSError("killed")
            replace(*paths)

        monkeypatch.setattr(os, "replace", killed)
        with suppress(OSError, RunError):
            writer.save(state, config, 10)
            state.best = {"mean": Best(0.5, 120)}
            writer.save(state, config, 10, best=True)
        monkeypatch.undo()
        last = read_run(run.last)
        if last["best"]:
            assert run.best.resolve().name == "iteration_00000120.dcp", kill_at
    assert last["best"], "it was killed before"


def test_files_that_a_killed_process_was_writing_are_removed_and_no_others(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.create(Config())
    folder = run.checkpoints / "iteration_00000002.dcp"
    folder.mkdir()
    places = [run.checkpoints / "iteration_00000004.pt", run.best, folder / "common.pt"]
    places += [run.metrics, run.results]
    writers = [atomic_path(place) for place in places]
    temporaries = [writer.__enter__() for writer in writers]
    kept = [*places, folder / "shard-1.safetensors", run.checkpoints / ".best.pt.mine.pt"]
    for path in kept:
        path.write_text("kept")
    assert all(path.exists() for path in temporaries)
    temporaries.append(run.checkpoints / ".last.pt.link")
    os.link(places[0], temporaries[-1])
    temporaries.append(run.checkpoints / ".best.pt.link")
    temporaries[-1].mkdir()  # where there are no symbolic links
    remove_unfinished(run)
    assert not any(path.exists() for path in temporaries)
    assert all(path.exists() for path in kept)


def last_after_saving(group, folder):
    """Whether a process finds the checkpoint after `save`, which takes the first one long."""
    processes = Processes(group.rank(), group.size(), group, group)
    run, config = RunFolder(folder), Config(input_size=(32, 32), feature_dim=8)
    if processes.is_main:
        run.create(config)
    write = writing.write_tensors
    writing.write_tensors = lambda *given: (time.sleep(0.5), write(*given))
    processes.barrier()
    CheckpointWriter(run, False, processes).save(trained_state(config, 1), config, 10)
    return run.last.exists()


def test_no_process_goes_on_before_a_checkpoint_is_written(tmp_path):
    (tmp_path / "meeting").mkdir()
    assert in_processes(2, tmp_path / "meeting", last_after_saving, tmp_path / "run") == [True] * 2
