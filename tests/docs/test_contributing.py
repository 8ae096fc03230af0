"""The worked examples of docs/contributing.md, added to a copy of the repository and used there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT, TinyFaces, run_script
from tests.docs.pages import Block, blocks

PAGE = ROOT / "docs/contributing.md"
LONGEST = 30  # lines of an example
COPIED = ("Backbone", "Config", "Head", "Utils", "tests", "pyproject.toml")


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the product with all the examples in it."""
    root = tmp_path_factory.mktemp("copy")
    for name in [*COPIED, *(path.name for path in ROOT.glob("*.py"))]:
        source = ROOT / name
        (root / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    for block in blocks(PAGE):
        if block.language == "python":
            write_file(root, block)
        elif block.language == "diff":
            add_lines(root, block)
    return root


def write_file(root: Path, block: Block) -> None:
    first, _, code = block.text.partition("\n")
    path = root / first.removeprefix("# ")
    assert not path.exists(), f"{block.where}: {path.name} is there already"
    path.write_text(code)


def add_lines(root: Path, block: Block) -> None:
    """Put the lines with "+" below the line before them, which the file must have once, and delete
    those with "-"."""
    name, *lines = block.text.splitlines()
    text = (root / name).read_text().splitlines()
    place = 0
    for line in lines:
        if line.startswith("+"):
            text.insert(place, line[1:])
        else:
            assert text.count(line[1:]) == 1, f"{block.where}: {name} has not once {line[1:]!r}"
            place = text.index(line[1:])
            if line.startswith("-"):
                del text[place]
                continue
        place += 1
    (root / name).write_text("\n".join(text) + "\n")


# Runs the words after the copy's path as `python` would there, with the copy's modules.
IN_COPY = f"""
import os, runpy, sys
root, *sys.argv = sys.argv[1:]
ours = tuple(path.removesuffix(".py") for path in os.listdir(root))
for name in [name for name in sys.modules if name.split(".")[0] in ours]:
    del sys.modules[name]
os.chdir(root)
sys.path = [root, *(path for path in sys.path if path not in ("", {str(ROOT)!r}))]
if sys.argv[0] == "-c":
    exec(sys.argv[1], {{"__name__": "__main__"}})
elif sys.argv[0] == "-m":
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(root: Path, *arguments: object) -> subprocess.CompletedProcess:
    return run_script("-c", IN_COPY, root, *arguments)


def test_examples_are_short():
    sections = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    for section in sections:
        code = re.findall(r"^```(?:python|diff)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
        lines = [line for line in "".join(code).splitlines() if line.strip()]
        assert len(lines) < LONGEST, section.splitlines()[0]


def test_a_run_trains_the_backbone_with_the_head_on_the_format_and_tests_it(
    copy, tiny_faces: TinyFaces, tmp_path
):
    write_npz(tiny_faces, tmp_path / "faces.npz")
    pairs = ("--calfw_dataset_path", tiny_faces.lfw, "--calfw_file_list", tiny_faces.lfw_pairs)
    new = ("--margin", "LiArcFace", "--margin_size", "none")
    data = ("--train_dataset_path", tmp_path / "faces.npz")
    flags = replace(tiny_faces, backbone="PlainNet").flags
    listed = flags.index("--train_file_list")
    del flags[listed : listed + 2]
    trained = run(copy, "Train.py", *flags, *new, *data, *pairs, "--save_dir", tmp_path / "runs")
    assert trained.returncode == 0, trained.stderr
    assert "24 images, 6 identities" in trained.stdout
    assert re.search(r"test accuracy +LFW \S+ +CALFW \S+", trained.stdout)

    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoints/last.pt")
    words = ("--checkpoint", checkpoint, *pairs, "--output", tmp_path / "out", "--num_workers", 0)
    evaluated = run(copy, "CALFW_Evaluation.py", *words)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "PlainNet, 16-d" in evaluated.stdout
    values = json.loads((tmp_path / "out/calfw.json").read_text())
    assert values["benchmark"] == "CALFW"
    assert values["pairs"] == 12


def write_npz(faces: TinyFaces, path: Path) -> None:
    names, labels = zip(
        *(line.rsplit(maxsplit=1) for line in faces.train_list.read_text().splitlines()),
        strict=True,
    )
    images = [cv2.imread(str(faces.train / name))[:, :, ::-1] for name in names]
    np.savez(path, images=np.stack(images), labels=np.array(labels, int))


def test_the_head_is_what_its_formula_says(copy):
    program = """
import math, torch
from Head import build_head
torch.manual_seed(0)
head = build_head("LiArcFace", 8, 5, scale=32.0, margin=0.3).double()
x, labels = torch.randn(4, 8, dtype=torch.float64), torch.tensor([0, 4, 2, 2])
unit = torch.nn.functional.normalize
theta = torch.acos(unit(x) @ unit(head.weight).T)
m = 0.3 * torch.nn.functional.one_hot(labels, 5).double()
expected = 32 * (math.pi - 2 * (theta + m)) / math.pi
torch.testing.assert_close(head(x, labels), expected)
loss = torch.nn.functional.cross_entropy(expected, labels)
torch.testing.assert_close(head.loss(x, labels).loss, loss)
"""
    done = run(copy, "-c", program)
    assert done.returncode == 0, done.stderr


def test_the_examples_keep_to_the_layout(copy):
    files = ("tests/test_house.py", "tests/Training_Utils/test_discovery.py")
    done = run(copy, "-m", "pytest", "-q", *files, "-k", "not complete and not offered")
    assert done.returncode == 0, done.stdout
