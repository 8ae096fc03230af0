"""A user's mistake ends in one paragraph; a bug in a student's own code keeps its traceback."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from Backbone import build_backbone, describe_backbone
from Config import read_config, settings_for
from tests.conftest import ROOT, assert_one_paragraph, run_script
from Utils import errors
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.errors import UserError
from Utils.Evaluation_Utils.ijb.evaluation import evaluate_ijb
from Utils.Evaluation_Utils.megaface.evaluation import evaluate_megaface
from Utils.Evaluation_Utils.report import evaluate_checkpoint, evaluate_set
from Utils.Evaluation_Utils.tinyface.evaluation import evaluate_tinyface
from Utils.run_folder import FORMAT

# Train.py, with a function of its own in place of one of the repository's.
SCRIPT = """
import sys

sys.path.insert(0, {root!r})

import numpy as np
from tests import SmallNet
import Head.methods


def broken_margin(cosine, m, easy_margin=False):
    return np.ones((2, 3)) @ np.ones((5, 5))


def broken_in_evaluation(self, pixels):
    if self.training:
        return forward(self, pixels)
    return np.ones((2, 3)) @ np.ones((5, 5))


forward = SmallNet.forward
{change}

import Train
from Utils.errors import run_script

if __name__ == "__main__":
    run_script(Train.main)
"""
MARGIN = "Head.methods.arcface = broken_margin"
EVALUATION = "SmallNet.forward = broken_in_evaluation"


@pytest.fixture
def train(tiny_faces, tmp_path):
    """Runs the script with one of the changes, in some processes; returns what it printed."""

    def run(change: str, processes: int = 1) -> subprocess.CompletedProcess:
        script = tmp_path / "my_train.py"
        script.write_text(SCRIPT.format(root=str(ROOT), change=change))
        arguments = [script, *tiny_faces.flags, "--save_dir", tmp_path / "runs"]
        if processes == 1:
            return run_script(*arguments)
        # New interpreters, as torchrun reports a forked process's error in another way.
        launch = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
        return run_script(*launch, *arguments, "--backbone", "MobileFaceNet")

    return run


def assert_traceback(err: str, function: str) -> None:
    """The full traceback of a shape bug, from the script down to the function, once."""
    assert err.count("ValueError: matmul: Input operand 1 has a mismatch") == 1, err
    assert err.count(f"in {function}\n") == 1
    trace = err[err.index("Traceback") : err.index("ValueError: matmul")]
    for place in ("my_train.py", "Train.py", "trainer.py", "np.ones((2, 3)) @"):
        assert place in trace
    assert "Error: " not in trace


@pytest.mark.parametrize("processes", [1, 2])
def test_a_bug_in_a_margin_shows_its_traceback(train, processes):
    run = train(MARGIN, processes)
    assert run.returncode == 1
    assert_traceback(run.stderr, "broken_margin")
    # The other one is torchrun's own, which reports that a process has failed.
    assert run.stderr.count("Traceback") == processes


def test_a_bug_met_while_the_test_sets_are_evaluated_is_not_taken_for_bad_data(train, tmp_path):
    run = train(EVALUATION)
    assert run.returncode == 1
    assert_traceback(run.stderr, "broken_in_evaluation")
    assert "test sets not evaluated" not in run.stdout
    (checkpoint,) = tmp_path.glob("runs/*/checkpoints/last.pt")  # saved before the test
    assert checkpoint.is_file()


@pytest.mark.parametrize("name", ["train_file_list", "lfw_dataset_path", "resume", "pretrained"])
def test_a_missing_file_is_named_in_one_paragraph(tiny_faces, tmp_path, name):
    missing = tmp_path / "not there.txt"
    run = run_script(
        "Train.py", *tiny_faces.flags, "--save_dir", tmp_path / "runs", f"--{name}", missing
    )
    assert_one_paragraph(run, "not there.txt")
    assert not Path(tmp_path / "runs").exists()


EVALUATIONS = {
    "lfw": ("lfw_dataset_path", lambda config: evaluate_checkpoint(config, "lfw")),
    "any_set": ("data", evaluate_set),
    "megaface": ("facescrub_dataset_path", evaluate_megaface),
    "tinyface": ("tinyface_dataset_path", evaluate_tinyface),
    "ijb": ("ijb_dataset_path", evaluate_ijb),
}


@pytest.mark.parametrize("script", EVALUATIONS)
def test_data_that_are_not_there_leave_no_output_folder(script, tmp_path):
    name, evaluate = EVALUATIONS[script]
    backbone = build_backbone("SmallNet", 16, (32, 32))
    state = {"architecture": describe_backbone(backbone), "backbone": backbone.state_dict()}
    torch.save({"format": FORMAT, **state}, tmp_path / "net.pt")
    flags = ("--checkpoint", tmp_path / "net.pt", "--output", tmp_path / "out", "--device", "cpu")
    argv = [*map(str, flags), f"--{name}", str(tmp_path / "nowhere")]
    with pytest.raises(UserError, match="nowhere"):
        evaluate(read_config("", settings_for(script), argv))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["%04d.tar", "x.rec", "x.lmdb", "x.bin", "folders"])
def test_a_conversion_of_nothing_leaves_nothing(target, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        convert(tmp_path / "nowhere", tmp_path / "out" / target)
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_not_utf_8_can_be_printed(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    errors.run_script(lambda: print(b"J\xf6rg ".decode("utf-8", "surrogateescape") + "名前"))
    assert out.buffer.getvalue().decode() == "J\\udcf6rg 名前\n"
