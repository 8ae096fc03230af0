"""`compare_losses`: what differs first between two settings, or two commits, is named."""

import json
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from Config import Config, ConfigError
from tests.conftest import ROOT, TinyFaces
from tests.processes import start_script
from Utils.errors import RunError, UserError
from Utils.Training_Utils.compare_losses import comparison, sides
from Utils.Training_Utils.compare_losses.__main__ import compare_sides
from Utils.Training_Utils.compare_losses.comparison import _how_much


@pytest.fixture
def compare(tiny_faces, monkeypatch, capsys):
    """Runs the command; returns its status and what it prints. Its processes are forked, which
    saves the seconds of importing PyTorch."""
    monkeypatch.setattr(comparison, "start", lambda words: start_script(*words))

    def run(
        a: object, b: object, *flags: object, steps: int = 2, faces: TinyFaces = tiny_faces
    ) -> tuple[int, str]:
        small = ("--steps", str(steps), *faces.flags, "--input_size", "16,16")
        words = [str(a), str(b), *small, *map(str, flags)]
        status = compare_sides(words)
        return status, capsys.readouterr().out.splitlines()[-1]

    return run


def test_equal_settings_are_equal(compare):
    status, said = compare("", "--log_freq 1")
    assert status == 0
    assert re.fullmatch(
        r"equal for 2 steps, \d+ tensors each, bit for bit, in float64, without .*", said
    )


def test_another_margin_first_changes_the_loss(compare):
    status, said = compare("", "--margin_size 0.4")
    assert status == 1
    numbers = re.fullmatch(r"step 1: loss differs: (\S+) and (\S+)", said)
    assert float(numbers[1]) < float(numbers[2])  # the larger margin


def test_weight_decay_first_changes_a_parameter_after_the_update(compare):
    status, said = compare("", "--weight_decay 0.1")
    assert status == 1
    assert said.startswith("step 1: parameter backbone.conv1.conv.weight differs: ")


def test_an_average_of_the_weights_is_compared_too(compare):
    status, said = compare("--ema_decay 0.9", "", steps=1)
    assert (status, said) == (
        1,
        "before step 1: parameter averaged.conv1.conv.weight differs: the defaults has none",
    )


def git(folder, *words):
    person = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", str(folder), *person, *words], check=True, capture_output=True)


def test_two_commits_and_uncommitted_changes_of_a_clone(compare, tiny_faces, tmp_path, monkeypatch):
    """The first commit lacks this command, as older ones do; the second only writes a comment."""
    clone = tmp_path / "clone"
    clone.mkdir()
    git(clone, "init", "--quiet")
    names = ("Backbone", "Config", "Head", "Utils", "Train.py")
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in names), str(clone)], check=True)
    (clone / ".gitignore").write_text("__pycache__\n")
    package = clone / "Utils/Training_Utils/compare_losses"
    package.rename(tmp_path / "kept")
    git(clone, "add", ".")
    git(clone, "commit", "--quiet", "--message", "one")
    margin = clone / "Head/margin.py"
    margin.write_text(margin.read_text() + "\n# A comment.\n")
    git(clone, "commit", "--quiet", "--all", "--message", "two")
    monkeypatch.setattr(sides, "ROOT", clone)
    faces = replace(tiny_faces, backbone="MobileFaceNet")  # the clone has no network of tests
    assert compare("HEAD~1", "HEAD", steps=1, faces=faces)[0] == 0
    text = margin.read_text()
    margin.write_text(text.replace("return cosine - m\n", "return cosine - 2 * m\n"))
    assert margin.read_text() != text
    status, said = compare("HEAD", clone, "--margin", "CosFace", steps=1, faces=faces)
    assert status == 1
    assert said.startswith("step 1: loss differs: ")


def test_a_settings_json_of_a_run_is_a_side(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(Config(margin="CosFace", resume="last.pt").to_dict()))
    flags = sides.find_side(str(path), [], tmp_path).flags
    assert "--margin=CosFace" in flags
    assert not any("last.pt" in flag for flag in flags)  # both sides train from the start
    assert sides.find_side("demo", ["--seed", "1"], tmp_path).flags[:2] == ["--recipe", "demo"]


@pytest.mark.parametrize("text", ["no_such_commit", "."])
def test_what_is_no_side_is_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"none of: flags|is no clone"):
        sides.find_side(text, [], tmp_path)


def test_a_side_that_cannot_be_trained_says_why(compare):
    with pytest.raises(RunError, match=r"can't be trained: setting .*did you mean 'CosFace'"):
        compare("--margin CosFac", "")
    with pytest.raises(ConfigError, match="at least 1"):
        compare("", "", steps=0)


def test_differences_are_measured_in_shares_of_the_largest_value():
    a, b = np.array([1.0, -200.0, np.nan]), np.array([1.0, -200.1, np.nan])
    said = _how_much((a, "float32"), (b, "float32"), 0.0)
    assert said == "1 of 3 values, most at [1]: -200 and -200.1, by 5.0e-04 of the largest"
    assert _how_much((a, "float32"), (b, "float32"), 1e-3) == ""
    assert "float32 and float64" in _how_much((a, "float32"), (a, "float64"), 1.0)
    assert "shapes (3,) and (2,)" in _how_much((a, "float32"), (a[:2], "float32"), 1.0)
    infinite = np.array([np.inf, -200.0, np.nan])
    assert _how_much((a, "float32"), (infinite, "float32"), 1.0)
