"""MegaFace's photos and lists as people have them: text lists, some broken distractors."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from tests.tiny_megaface import DISTRACTORS, megaface, results_of, table_of
from Utils.Datasets_Utils.photos import read_photo_list
from Utils.errors import DataError, UserError
from Utils.Evaluation_Utils.identification import evaluate

HTML = b"<html>429 Too Many Requests</html>"


@pytest.fixture
def names(tiny):
    return json.loads((tiny.root / f"megaface.json_{DISTRACTORS}_1").read_text())["path"]


@pytest.fixture
def broken(tiny, tmp_path, names):
    """A copy of the distractors in which row 3 is a web page and row 650 is missing; row 500 only
    lacks its end marker."""
    folder = tmp_path / "distractors"
    shutil.copytree(tiny.root / "distractors", folder)
    (folder / names[3]).write_bytes(HTML)
    (folder / names[650]).unlink()
    photo = folder / names[500]
    photo.write_bytes(photo.read_bytes()[:-2])
    return folder


def test_broken_distractors_are_left_out_counted_and_listed(
    tiny, tmp_path, broken, names, run_megaface
):
    out = tmp_path / "out"
    printed = run_megaface(*tiny.flags("--output", out, "--megaface_dataset_path", broken))
    values = json.loads((out / "megaface.json").read_text())
    assert [text.split(":")[0] for text in values["left_out"]] == [
        str(broken / names[row]) for row in (3, 650)
    ]
    assert "not an image" in values["left_out"][0]
    assert "No such file" in values["left_out"][1]
    assert values["flaws"] == [f"{broken / names[500]}: a JPEG without its end marker"]
    assert "2 distractors are missing or unreadable and left out" in printed
    assert [r["distractors"] for r in results_of(out)] == [9, 99, 698]
    # The same figures as without these two rows, by a table that never had them.
    kept = np.delete(table_of(out, "distractors"), (3, 650), axis=0)
    ids = np.array(json.loads((tiny.root / "facescrub.json").read_text())["id"])
    wanted = evaluate(table_of(out, "probes"), ids, kept, ranks=(1, 10, 100), fprs=(1e-2, 1e-3))
    found = results_of(out)[-1]
    assert found["rank1"] == wanted.rank1
    assert found["verification"]["all"]["negatives"] == wanted.verification["all"].negatives
    # The features that are there tell it again.
    again = run_megaface(*tiny.flags("--output", out, "--megaface_dataset_path", broken))
    assert "2 distractors are missing or unreadable and left out" in again


def test_strict_refuses_what_is_left_out_otherwise(tiny, tmp_path, broken, names, run_megaface):
    flags = tiny.flags("--output", tmp_path, "--megaface_dataset_path", broken)
    with pytest.raises(UserError, match=r"1 of the 700 images"):
        run_megaface(*flags, "--strict")
    shutil.copyfile(tiny.root / "distractors" / names[650], broken / names[650])
    with pytest.raises(UserError, match=r"3_0\.jpg: 34 bytes that are not an image"):
        run_megaface(*flags, "--strict")


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_many_broken_distractors_are_refused(tiny, tmp_path, names, run_megaface, how):
    folder = tmp_path / "distractors"
    shutil.copytree(tiny.root / "distractors", folder)
    for name in names[:36]:  # 35 are 5 %
        (folder / name).unlink()
        if how == "broken":
            (folder / name).write_bytes(HTML)
    problem = {"missing": r"36 of the 700 images", "broken": r"36 of 700 distractors could not"}
    with pytest.raises(DataError, match=problem[how]):
        run_megaface(*tiny.flags("--output", tmp_path, "--megaface_dataset_path", folder))


@pytest.mark.parametrize("content", [None, HTML])
def test_a_broken_probe_is_always_refused(tiny, tmp_path, run_megaface, content):
    shutil.copytree(tiny.root / "probes", tmp_path / "probes")
    photo = tmp_path / "probes/Zoe/Zoe_24001.png"
    photo.unlink()
    if content:
        photo.write_bytes(content)
    with pytest.raises(UserError, match=r"Zoe_24001\.png"):
        run_megaface(
            *tiny.flags("--output", tmp_path, "--facescrub_dataset_path", tmp_path / "probes")
        )


def test_two_processes_leave_out_what_one_does(tiny, tmp_path, broken):
    for count in (1, 2):
        flags = tiny.flags("--output", tmp_path / str(count), "--megaface_dataset_path", broken)
        done = megaface(*flags, processes=count)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / "megaface.json").read_text()) for n in "12")
    assert one["results"] == two["results"]
    assert one["left_out"] == two["left_out"]
    assert one["flaws"] == two["flaws"]


def test_lists_of_a_path_on_each_line_are_the_devkits(tiny, tmp_path, names, run_megaface):
    """As insightface's facescrub_lst and megaface_lst, with its folders before the names."""
    probes = json.loads((tiny.root / "facescrub.json").read_text())["path"]
    lists = {"facescrub_lst": probes, "megaface_lst": names}
    for name, paths in lists.items():
        folder = name.replace("_lst", "_images")
        text = "".join(f"data/{folder}/{path}\n" for path in paths)
        (tmp_path / name).write_text("# made by hand\n" + text)
    run_megaface(
        *tiny.flags("--output", tmp_path / "text", "--distractor_sizes", "10,100"),
        *("--facescrub_file_list", tmp_path / "facescrub_lst"),
        *("--megaface_file_list", tmp_path / "megaface_lst"),
    )
    run_megaface(*tiny.flags("--output", tmp_path / "json"))
    text, wanted = results_of(tmp_path / "text"), results_of(tmp_path / "json")
    for found in (*text, *wanted):
        del found["distractor_set"]
    assert text == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<html>\n<a href='x/y.jpg'>\n", r"line 1: '<html>' is not a photo's path"),
        ("a/0.jpg\n0.jpg\n", r"line 2: '0\.jpg' is not a photo's path with its folder"),
        ("a/0.jpg\t1\n", r"line 1: .* is not a photo's path"),
        ('{"path": ["a/0.jpg"', r"is not JSON"),
        ("", r"names no photos"),
    ],
)
def test_a_text_that_is_no_list_of_photos_is_refused(tmp_path, text, problem):
    (tmp_path / "list").write_text(text)
    with pytest.raises(DataError, match=problem):
        read_photo_list(tmp_path / "list", with_ids=True)
