"""The check of a GPU, rehearsed on the CPU; and what it says of checks that fail."""

import json
import os
import subprocess
import sys
import time

import torch

from benchmarks import gpu_check
from benchmarks.gpu_checks.check import OK, SKIPPED, WRONG, Check, row
from benchmarks.gpu_checks.running import run_checks
from tests.conftest import ROOT, run_script

CPU = torch.device("cpu")


def test_a_rehearsal_of_some_checks_finds_nothing_wrong(tmp_path):
    output = tmp_path / "found.json"
    names = ("environment", "heads", "optimizers", "memory", "megaface", "steps_fp32")
    command = ("--device", "cpu", "--quick", "--output", output, "--only", *names)
    run = run_script("-m", "benchmarks.gpu_check", *command, check=True)
    found = json.loads(output.read_text())
    verdicts = {row["name"]: row["verdict"] for row in found["rows"]}
    assert set(verdicts.values()) == {OK, SKIPPED}
    assert verdicts["head ElasticArcFacePlus"] == verdicts["step fp32, all of these"] == OK
    assert {row["check"] for row in found["rows"]} == set(names)
    assert "step fp32, sample_rate" in run.stdout.split("\n\n")[-1]  # the table at the end


def test_neither_an_optional_package_nor_pyplot_is_imported():
    optional = "yaml visdom blosc2 torchvision onnx onnxscript onnxruntime sklearn pytest".split()
    optional += "timm tensorboard wandb lmdb huggingface_hub pyarrow matplotlib.pyplot".split()
    program = f"""
import sys
sys.modules.update(dict.fromkeys({optional}))  # their import raises ImportError
import benchmarks.gpu_check, Train, Utils.Evaluation_Utils.plots"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def right(place):
    yield row("right", True)


def raises(place):
    yield row("first", True)
    raise ValueError("spoiled")


def crashes(place):
    os.abort()
    yield


def hangs(place):
    time.sleep(600)
    yield


def test_a_check_that_fails_hangs_or_crashes_fails_alone(tmp_path, capsys):
    checks = [
        Check("raises", 60, raises),
        Check("crashes", 60, crashes),
        Check("hangs", 0.5, hangs),
        Check("right", 60, right, after=("raises", "crashes"), alone=True),
    ]
    output = tmp_path / "found.json"
    assert gpu_check.run(checks, CPU, True, 120, output)  # something is wrong
    found = [(r["check"], r["name"], r["verdict"]) for r in json.loads(output.read_text())["rows"]]
    assert sorted(found) == [
        ("crashes", "crashes", WRONG),
        ("hangs", "hangs", WRONG),
        ("raises", "first", OK),
        ("raises", "raises", WRONG),
        ("right", "right", OK),
    ]
    printed = capsys.readouterr().out
    assert "spoiled at test_gpu_check.py" in printed
    assert "not done after its 2 s" in printed


def test_checks_without_time_are_skipped_and_not_passed(tmp_path):
    outcomes = []
    place = gpu_check.Place(CPU, True, tmp_path)
    run_checks([Check("right", 60, right)], place, 0, lambda *_: None, outcomes.append)
    assert [row.verdict for row in outcomes[0].rows] == [SKIPPED]
    assert outcomes[0].unfinished
