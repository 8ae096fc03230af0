"""Signals that ask a run to stop; runs that are killed in any place end like those left alone."""

import csv
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from tests.soak.comparing import difference
from Utils.errors import RunError
from Utils.files import write_tensors
from Utils.processes import ALONE, Processes
from Utils.run_folder import RunFolder
from Utils.Training_Utils import trainer as training
from Utils.Training_Utils.evaluation import TestSets
from Utils.Training_Utils.reports.means import ENTRIES, Means
from Utils.Training_Utils.reports.progress import close_log, open_log
from Utils.Training_Utils.stopping import StopSignals
from Utils.Training_Utils.trainer import Trainer


class Killed(BaseException):
    """As SIGKILL: nothing that comes after it is done."""


def killed(*_: object) -> None:
    raise Killed


@pytest.fixture
def config(tiny_faces, tmp_path, unpainted):
    """Two epochs of three iterations; figures at 2, 4, 6; tests and checkpoints at 3 and 6."""
    changes = {"total_epoch": 2, "milestones": (1,), "test_freq": 3, "save_freq": 10}
    return tiny_faces.config(tmp_path / "runs", **changes)


def test_killed_in_any_place_a_run_ends_as_the_one_left_alone(config, tmp_path, monkeypatch):
    alone = Trainer(dataclasses.replace(config, save_dir=str(tmp_path / "alone"))).run().run
    places = {
        "in the first test": (TestSets, "evaluate"),
        "before the best is saved": (training.CheckpointWriter, "save", lambda *a: a[-1] is True),
        "before its results": (training, "write_results"),
    }
    for name, (owner, function, *condition) in places.items():
        save_dir = tmp_path / name
        plain = getattr(owner, function)

        def kill(*given, plain=plain, condition=condition):
            return plain(*given) if condition and not condition[0](*given) else killed()

        monkeypatch.setattr(owner, function, kill)
        with pytest.raises(Killed):
            Trainer(dataclasses.replace(config, save_dir=str(save_dir))).run()
        monkeypatch.setattr(owner, function, plain)
        resumed = dataclasses.replace(config, save_dir=str(save_dir), resume="last")
        run = Trainer(resumed).run().run
        assert difference(RunFolder(run), RunFolder(alone)) is None, name


def test_a_checkpoint_from_before_they_were_saved_lacks_no_test_and_no_loss(config):
    run = RunFolder(Trainer(config).run().run)
    figures = json.loads(run.results.read_text())
    saved = torch.load(run.last, weights_only=True)
    write_tensors(run.last, {k: v for k, v in saved.items() if k not in ("tested", "means")})
    run.results.unlink()
    Trainer(dataclasses.replace(config, resume="last")).run()
    again = json.loads(run.results.read_text())
    assert again["loss"] == pytest.approx(figures["loss"], abs=1e-6)
    assert {**again, "loss": 0} == {**figures, "loss": 0}
    with open(run.metrics) as file:
        assert [row["iteration"] for row in csv.DictReader(file) if row["LFW"]] == ["3", "6"]


def test_means_of_two_processes_are_taken_over_by_any_number():
    first = dict(zip(ENTRIES, (6.0, 3.0, 1.5, 12, 3, 1.0, 0.5, 0.0), strict=True))
    second = dict(zip(ENTRIES, (9.0, 6.0, 4.5, 12, 3, 1.0, 0.5, 0.0), strict=True))
    for count in (1, 2, 3):
        means = []
        for rank in range(count):
            means.append(Means())
            means[-1].restore([first, second], Processes(rank, count))
        read = [one.read(ALONE) for one in means]
        means = [sum(column) / count for column in zip(*read, strict=True)]
        assert means == pytest.approx([15 / 3 / 2, 9 / 24, 6 / 3 / 2])


def test_signals_are_noted_a_second_ctrl_c_ends_and_what_was_ignored_stays_so(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("Utils.Training_Utils.stopping.time.monotonic", lambda: clock[0])
    before = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGHUP, signal.SIG_IGN),  # as nohup does
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        )
    }
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
            signal.raise_signal(signal.SIGTERM)
            assert (stop.asked, stop.interrupted) == (True, False)
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # the same one, passed on by another program
            assert stop.interrupted
            clock[0] += 1
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_asked_to_stop_after_the_last_iteration_a_run_has_its_results_but_not_megaface(
    config, monkeypatch
):
    trainer = Trainer(config)
    trainer.megaface = object()  # whose `evaluate` would fail
    finish = trainer.progress.finish
    monkeypatch.setattr(
        trainer.progress, "finish", lambda run: (finish(run), signal.raise_signal(signal.SIGTERM))
    )
    result = trainer.run()
    assert not result.stopped
    run = RunFolder(result.run)
    assert run.results.exists()
    assert "asked to stop before MegaFace" in run.log.read_text()


class ClosedTerminal:
    encoding = "utf-8"

    def write(self, text):
        raise OSError(5, "Input/output error")

    flush = write


def test_a_terminal_that_was_closed_does_not_end_a_run(tmp_path, monkeypatch):
    log = open_log(tmp_path / "train.log")
    monkeypatch.setattr(sys, "stdout", ClosedTerminal())
    log.info("asked to stop")
    close_log(log)
    assert "asked to stop" in (tmp_path / "train.log").read_text()


def test_two_processes_do_not_train_one_run_and_a_killed_one_does_not_hold_it(config, tmp_path):
    run = RunFolder(Trainer(config).run().run)
    reading, writing = os.pipe()
    other = os.fork()
    if other == 0:
        from Utils.run_folder import RunLock

        lock = RunLock()
        lock.take(run)
        os.write(writing, b"x")
        signal.pause()
    assert os.read(reading, 1) == b"x"
    before = {path: path.stat().st_mtime_ns for path in Path(run.path).rglob("*")}
    resumed = dataclasses.replace(config, resume="last", total_epoch=3)
    with pytest.raises(RunError, match="another process is training the run"):
        Trainer(resumed)
    assert {path: path.stat().st_mtime_ns for path in Path(run.path).rglob("*")} == before
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
    assert Trainer(resumed).run().iterations == 9
