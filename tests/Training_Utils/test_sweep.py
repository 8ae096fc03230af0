"""Sweeps: what they accept, and what they train, skip, go on with and write."""

import csv
import dataclasses
import fcntl
import json
import os
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Config import Config, ConfigError, Sweep, read_training
from tests.conftest import assert_one_paragraph, run_script
from tests.processes import start_script
from tests.scripts.test_training import assert_same_weights, only_run
from Utils.errors import DataError, RunError
from Utils.run_folder import SWEEP, RunFolder
from Utils.Training_Utils.sweep import (
    SweepRun,
    figures_of,
    find_finished,
    run_sweep,
    sweep_name,
    sweep_table,
)
from Utils.Training_Utils.trainer import Trainer


def read(*argv):
    return read_training("test", argv=argv)


@pytest.fixture
def tiny_config(tiny_faces, tmp_path, unpainted):
    return read(*tiny_faces.flags, "--save_dir", str(tmp_path / "runs"))


def test_a_sweep_is_the_product_of_its_values_with_the_flags_around_them():
    sweep = read(
        *("--sweep", "margin=ArcFace, CosFace", "--sweep", "margin_size=none,0.2"),
        *("--sweep", "use_amp=on,off", "--recipe", "casia_webface", "--batch_size", "64"),
    )
    assert len(sweep.runs) == 8
    found = [(c.margin, c.margin_size, c.use_amp) for _, c in sweep.runs]
    assert found[:3] == [("ArcFace", None, True), ("ArcFace", None, False), ("ArcFace", 0.2, True)]
    assert len(set(found)) == 8
    assert {(c.batch_size, c.total_epoch) for _, c in sweep.runs} == {(64, 36)}
    assert [v["margin_size"] for v, _ in sweep.runs][:3] == [None, None, 0.2]


def test_settings_of_several_numbers_have_semicolons_between_their_values():
    sweep = read("--sweep", "milestones=1,2;3;", "--sweep", "input_size=112,96")
    assert [c.milestones for _, c in sweep.runs] == [(1, 2), (3,), ()]
    assert {c.input_size for _, c in sweep.runs} == {(112, 96)}


def test_without_a_sweep_the_settings_are_one_run():
    assert read("--batch_size", "64") == dataclasses.replace(Config(), batch_size=64)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sweep", "margn=ArcFace"], "did you mean 'margin'"),
        (["--sweep", "margin"], "name=A,B"),
        (["--sweep", "batch_size=8,x"], "batch_size is 'x'"),
        (["--sweep", "milestones=2;2,y"], "22,31"),
        (["--sweep", "margin_size=0.1,much"], "margin_size is 'much'"),
        (["--sweep", "use_amp=1,0"], "on and off"),
        (["--sweep", "seed=1,2,1"], "twice"),
        (["--sweep", "seed=1", "--sweep", "seed=2"], "twice"),
        (["--sweep", "save_dir=a,b"], "does not change"),
        (["--sweep", "checkpoint=a,b"], "no setting 'checkpoint'"),
        (["--sweep", "seed=1,2", "--seed", "3"], "leave out one"),
        (["--sweep", "seed=1,2", "--resume", "last"], "without --resume"),
    ],
)
def test_what_cannot_be_swept_is_said(argv, said):
    with pytest.raises(ConfigError, match=said):
        read(*argv)


def test_a_combination_that_cannot_be_ends_the_sweep_before_anything_is_made(tiny_config):
    runs = [
        ({"total_epoch": n}, dataclasses.replace(tiny_config, total_epoch=n, warmup_epochs=3.0))
        for n in (5, 3)
    ]
    with pytest.raises(RunError, match=r"total_epoch 3 can't be.*must end before the run does"):
        run_sweep(Sweep({"total_epoch": (5, 3)}, runs))
    assert not Path(tiny_config.save_dir).exists()


# Train.py, whose sweeps fork their runs, which would otherwise import PyTorch again.
FORKING = """
import multiprocessing, os, runpy, signal, subprocess, sys
import Train
from Utils.errors import run_script


class Forked(multiprocessing.Process):
    def __init__(self, words, env, pass_fds, process_group, preexec_fn):
        super().__init__(target=train, args=(words, env, preexec_fn))
        sys.stdout.flush()
        self.start()

    def poll(self):
        return self.exitcode

    def wait(self, timeout=None):
        self.join(timeout)
        return self.exitcode


def train(words, env, preexec_fn):
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    preexec_fn()
    os.environ.update(env)
    sys.argv = words[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")


subprocess.Popen = Forked
run_script(Train.main)
"""


@pytest.fixture(scope="module")
def swept(tiny_faces, tmp_path_factory):
    """Two seeds with a rate that trains and with one that can't."""
    save_dir = tmp_path_factory.mktemp("sweep")
    out = run_script(
        *("-c", FORKING, *tiny_faces.flags, "--save_dir", save_dir, "--no-para_adj_mode"),
        *("--sweep", "initial_lr=0.05,1e30", "--sweep", "seed=1,2"),
        painted=True,
    )
    (folder,) = save_dir.glob("sweep_initial_lr_seed_*")
    return save_dir, folder, out


def test_the_table_has_mean_and_sample_deviation_over_the_seeds(swept):
    _, folder, out = swept
    record = json.loads((folder / "sweep.json").read_text())
    good = [run for run in record["runs"] if run["state"] == "done"]
    assert [run["variation"] for run in good] == [
        {"initial_lr": 0.05, "seed": seed} for seed in (1, 2)
    ]
    results = [json.loads((Path(run["folder"]) / "results.json").read_text()) for run in good]
    losses = [result["loss"] for result in results]
    lfw = [100 * result["last"]["LFW"] for result in results]
    assert losses[0] != losses[1]
    (line,) = (line for line in out.stdout.splitlines() if line.startswith("0.05 "))
    assert f"{np.mean(losses):.4f} ± {np.std(losses, ddof=1):.4f}" in line
    assert f"{np.mean(lfw):.2f} ± {np.std(lfw, ddof=1):.2f}" in line
    with open(folder / "sweep.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["loss std"]) == pytest.approx(np.std(losses, ddof=1))
    assert float(row["last LFW mean"]) == pytest.approx(np.mean(lfw) / 100)
    picture = cv2.imread(str(folder / "curves.png"))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_failed_run_ends_neither_the_sweep_nor_unseen(swept):
    _, folder, out = swept
    assert_one_paragraph(out, "2 of 4 runs failed")
    runs = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [run["state"] for run in runs] == ["done", "done", "failed", "failed"]
    assert runs[2]["reason"] == "exit status 1; its messages are above"
    assert f"failed: initial_lr 1e+30, seed 1: {runs[2]['reason']}" in out.stdout
    said = " ".join(out.stderr.split())
    assert "not finite" in said or "the loss is" in said
    assert "0 of 2" in out.stdout


def test_a_run_of_a_sweep_is_the_run_that_the_same_flags_give(swept, tiny_config):
    _, folder, _ = swept
    run = json.loads((folder / "sweep.json").read_text())["runs"][1]
    Trainer(dataclasses.replace(tiny_config, initial_lr=0.05, seed=2)).run()
    alone = only_run(tiny_config.save_dir)
    assert_same_weights(alone / "checkpoints/last.pt", Path(run["folder"]) / "checkpoints/last.pt")


def test_what_is_done_is_not_done_again_by_another_sweep(swept, tiny_config, capsys):
    save_dir, folder, _ = swept
    before = sorted(save_dir.iterdir())
    config = dataclasses.replace(
        tiny_config, save_dir=str(save_dir), initial_lr=0.05, num_workers=3, save_freq=1
    )
    runs = [({"seed": s}, dataclasses.replace(config, seed=s)) for s in (2, 1)]
    done = run_sweep(Sweep({"seed": (2, 1)}, runs))
    assert capsys.readouterr().out.count("done before") == 2
    record = json.loads((folder / "sweep.json").read_text())["runs"]
    assert [run.folder for run in done] == [record[1]["folder"], record[0]["folder"]]
    assert [run.last for run in done] == [record[1]["last"], record[0]["last"]]
    assert len(sorted(save_dir.iterdir())) == len(before) + 1  # its own table


@pytest.fixture
def in_process(monkeypatch):
    """Have the runs of a sweep trained in this process, in a fraction of the time."""

    def train(config, sweep, lock, stop):
        with monkeypatch.context() as patch:
            patch.setenv(SWEEP, sweep)
            Trainer(config).run()
        return 0

    monkeypatch.setattr("Utils.Training_Utils.sweep._train", train)


def test_a_run_that_was_trained_on_with_other_settings_is_another_run(tiny_config):
    Trainer(tiny_config).run()
    save_dir = Path(tiny_config.save_dir)
    assert find_finished(tiny_config).path == only_run(save_dir)
    assert find_finished(dataclasses.replace(tiny_config, seed=7)) is None
    longer = dataclasses.replace(tiny_config, total_epoch=4)
    Trainer(dataclasses.replace(longer, resume="last", initial_lr=0.01)).run()
    assert find_finished(tiny_config) is None
    assert find_finished(longer) is None


def test_a_run_of_the_time_before_starts_were_listed_counts_if_it_was_started_once(tiny_config):
    Trainer(tiny_config).run()
    run = RunFolder(only_run(tiny_config.save_dir))
    settings = json.loads(run.settings.read_text())
    assert settings.pop("starts") == [settings] == [tiny_config.to_dict()]
    run.settings.write_text(json.dumps(settings))
    assert find_finished(tiny_config).path == run.path
    run.settings.write_text(json.dumps({**settings, "resume": "last.pt"}))
    assert find_finished(tiny_config) is None
    run.settings.write_text("{")
    assert find_finished(tiny_config) is None


def test_a_run_with_other_labels_is_another_run(tiny_config, tmp_path):
    lines = Path(tiny_config.train_file_list).read_text().splitlines()
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(lines))
    config = dataclasses.replace(tiny_config, train_file_list=str(listed))
    Trainer(config).run()
    assert find_finished(config) is not None
    name, last = lines[-1].rsplit(maxsplit=1)
    listed.write_text("\n".join([*lines[:-1], f"{name}  {int(last) - 1}"]))
    assert find_finished(config) is None


def test_a_run_that_is_begun_again_is_not_finished(tiny_config):
    Trainer(tiny_config).run()
    save_dir = Path(tiny_config.save_dir)
    run = RunFolder(only_run(save_dir))
    os.utime(run.settings)  # a copy has other times, and is finished all the same
    assert find_finished(tiny_config).path == run.path
    Trainer(dataclasses.replace(tiny_config, total_epoch=4, resume="last"))
    assert find_finished(tiny_config) is None


def test_a_run_killed_before_its_results_is_only_judged_again(tiny_config, in_process):
    Trainer(tiny_config).run()
    run = RunFolder(only_run(tiny_config.save_dir))
    expected, trained = json.loads(run.results.read_text()), run.log.read_text().count("  loss ")
    iterations = sorted(run.checkpoints.glob("iteration_*"))
    run.results.write_text('{"loss": 1')  # by another program's hand; ours writes all or nothing
    (done,) = run_sweep(Sweep({"seed": (tiny_config.seed,)}, [({}, tiny_config)]))
    assert done.folder != str(run.path), "a sweep goes on with its own runs alone"
    RunFolder(Path(done.folder)).results.unlink()
    (done,) = run_sweep(Sweep({"seed": (tiny_config.seed,)}, [({}, tiny_config)]))
    again = RunFolder(Path(done.folder))
    assert (len(again.starts()), again.log.read_text().count("  loss ")) == (2, trained)
    Trainer(dataclasses.replace(tiny_config, resume=str(run.last))).run()  # by hand
    found = json.loads(run.results.read_text())
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert (found["last"], found["best"]) == (expected["last"], expected["best"])
    assert sorted(run.checkpoints.glob("iteration_*")) == iterations


def test_a_run_whose_last_test_failed_is_judged_again(tiny_config, in_process):
    sweep = Sweep({"seed": (tiny_config.seed,)}, [({}, tiny_config)])
    (done,) = run_sweep(sweep)
    run = RunFolder(Path(done.folder))
    trained = run.log.read_text().count("  loss ")
    run.results.write_text(json.dumps({**json.loads(run.results.read_text()), "last": {}}))
    with pytest.raises(DataError, match="test sets were not evaluated"):
        SweepRun({}).finish(run.path)
    (again,) = run_sweep(sweep)
    assert (again.folder, again.last) == (done.folder, done.last)
    assert run.log.read_text().count("  loss ") == trained


def begin_sweep(flags, save_dir, script=("-c", FORKING)):
    """A sweep's process when its first run has a checkpoint of iteration 4."""
    process = start_script(*script, *flags, own_group=True)
    deadline = time.monotonic() + 120
    while not list(save_dir.glob("*/checkpoints/iteration_00000004.pt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.parametrize(
    ("tell", "script"), [(os.kill, ("-c", FORKING)), (os.killpg, ("Train.py",))]
)
def test_a_sweep_that_is_told_to_stop_saves_its_run_and_goes_on_later(
    tiny_faces, tmp_path, tell, script
):
    flags = [*tiny_faces.flags, "--save_dir", str(tmp_path), "--total_epoch", "4000"]
    if script == ("Train.py",):  # whose runs are new interpreters, and know no network of tests
        flags += ["--backbone", "MobileFaceNet"]
    process = begin_sweep([*flags, "--sweep", "seed=5,6"], tmp_path, script)
    tell(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "The same command continues" in out
    assert "[2/2]" not in out
    (run,) = (path.parent for path in tmp_path.glob("*/settings.json"))
    assert "asked to stop after" in (run / "train.log").read_text()
    (record,) = tmp_path.glob("sweep_*/sweep.json")
    assert [r["state"] for r in json.loads(record.read_text())["runs"]] == ["waiting"] * 2


def test_an_interrupt_of_the_sweep_alone_ends_its_run_too(tiny_faces, tmp_path):
    flags = [*tiny_faces.flags, "--save_dir", str(tmp_path), "--total_epoch", "4000"]
    process = begin_sweep([*flags, "--sweep", "seed=5", "--save_freq", "4"], tmp_path)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    (run,) = (path.parent for path in tmp_path.glob("*/settings.json"))
    assert "asked to stop after" in (run / "train.log").read_text()


def test_a_killed_sweep_goes_on_where_it_was(tiny_faces, tiny_config, tmp_path, in_process):
    save_dir = tmp_path / "killed"
    flags = [*tiny_faces.flags, "--save_dir", str(save_dir), "--sweep", "seed=5"]
    flags += ["--total_epoch", "12"]
    process = begin_sweep(flags, save_dir)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (lock,) = save_dir.glob("sweep_*/.lock")
    with open(lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # once the run's own process, which has it too, has ended
    (run,) = (RunFolder(path.parent) for path in save_dir.glob("*/settings.json"))
    assert not run.results.exists(), "it was over before it was killed, or went on"
    (done,) = run_sweep(read(*flags))
    assert [path.parent for path in save_dir.glob("*/settings.json")] == [run.path]
    assert (done.folder, len(run.starts())) == (str(run.path), 2)
    Trainer(dataclasses.replace(tiny_config, seed=5, total_epoch=12)).run()
    alone = only_run(tiny_config.save_dir)
    assert_same_weights(alone / "checkpoints/last.pt", run.last)


def test_one_sweep_is_not_run_twice_at_a_time(tiny_config):
    sweep = Sweep({"seed": (1,)}, [({"seed": 1}, dataclasses.replace(tiny_config, seed=1))])
    folder = Path(tiny_config.save_dir) / sweep_name(sweep)
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another process"):
            run_sweep(sweep)


def test_seeds_are_put_together_whatever_their_place_among_the_settings():
    runs = [
        SweepRun({"seed": seed, "milestones": milestones}, "done", loss=seed + len(milestones))
        for seed in (1, 2, 4)
        for milestones in ((), (2, 3))
    ]
    (settings, _), (_, figures) = figures_of(runs)
    assert settings == {"milestones": ()}
    values = torch.tensor([3.0, 4, 6], dtype=torch.float64)
    expected = (values.mean().item(), values.std(correction=1).item())
    assert (figures["loss mean"], figures["loss std"]) == pytest.approx(expected)
    lines = sweep_table(runs).splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["milestones", "none", "2,3"]
