"""Verification sets in .bin files as other programs pickle them, and as no program should."""

import os
import pickle
import re

import numpy as np
import pytest

from tests.conftest import run_script
from tests.Datasets_Utils.test_verification_formats import Hostile, jpeg
from Utils.Datasets_Utils import open_verification_set
from Utils.errors import DataError

FOUR = [jpeg(9 * i).tobytes() for i in range(4)]


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "content",
    [
        (tuple(FOUR), (True, False)),
        [FOUR, [1, -1]],
        (FOUR, np.array([1, -1], np.int8)),
        (FOUR, np.array([1.0, 0.0])),
        (FOUR, ["1", "0"]),
        (FOUR, ["True", "False"]),
        (FOUR, np.array(["1", "-1"])),
        (np.array(FOUR, object), np.array([True, False], object)),
        (np.array(FOUR, object).reshape(2, 2), [True, False]),
        (np.array(FOUR), [True, False]),
        ([image.decode("latin1") for image in FOUR], [True, False]),
        ([bytearray(image) for image in FOUR], [True, False]),
        ([np.frombuffer(image, np.uint8).reshape(-1, 1) for image in FOUR], [True, False]),
        ([tuple(FOUR[:2]), tuple(FOUR[2:])], [True, False]),
        {"bins": FOUR, "issame_list": [True, False]},
        ([True, False], FOUR),
    ],
    ids=lambda content: "",
)
def test_what_plain_pickles_can_say_is_read(tmp_path, protocol, content):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(content, protocol))
    data = open_verification_set(tmp_path / "x.bin")
    assert [image[0, 0, 0] for image in data.images] == [0, 9, 18, 27]
    assert data.same.tolist() == [True, False]


@pytest.mark.parametrize(
    "hide", [lambda x: np.array([x, x], object), lambda x: {"bins": [x, x], "issame": [True]}]
)
def test_a_program_inside_an_array_or_dictionary_is_refused_too(tmp_path, hide):
    trace = tmp_path / "was run"
    content = pickle.dumps((hide(Hostile(os.system, f"touch '{trace}'")), [True]))
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match=r"the pickle asks for posix\.system"):
        open_verification_set(tmp_path / "x.bin")
    assert not trace.exists()


def test_the_command_for_a_new_bin_makes_one(tmp_path, shared_data):
    (tmp_path / "x.bin").write_bytes(pickle.dumps((FOUR, [True, None])))
    with pytest.raises(DataError, match="issame is no list of bools") as error:
        open_verification_set(tmp_path / "x.bin")
    command = re.search("`python (.*)`", str(error.value))[1]
    photos, pairs_file = shared_data / "lfw_half/images", shared_data / "lfw_half/pairs.txt"
    command = command.replace("IMAGES", str(photos)).replace("PAIRS", str(pairs_file))
    run_script(*command.split(), check=True)
    data, original = (
        open_verification_set(tmp_path / "x_new.bin"),
        open_verification_set(photos, pairs_file),
    )
    assert data.same.tolist() == original.same.tolist()
    assert len(data.images) == len(original.images)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ((FOUR, [-1, 0]), "other than 0 and 1"),
        ((FOUR, [1, 2]), "other than 0 and 1"),
        ((FOUR, [1, 0.5]), "other than 0 and 1"),
        ((FOUR, [True, None]), "issame is no list of bools"),
        ((FOUR, ["yes", "maybe"]), "issame is no list of bools"),
        (([np.zeros((4, 4, 3), np.uint8)] * 2, [True]), r"array of shape \(4, 4, 3\)"),
        (([np.array([b"a", b"b"], object)] * 2, [True]), "image 0 is a list"),
        ((["Ā", "b"], [True]), "image 0 is text"),
        ({"a": FOUR, "b": [True, False], "c": 1}, r"does not hold \(images, issame\)"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, content, said):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"x\.bin.*{said}"):
        open_verification_set(tmp_path / "x.bin")


@pytest.mark.parametrize("name", ["LFW.BIN", "lfw.pkl"])
def test_a_pickle_of_another_name_is_read(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps((FOUR, [True, False])))
    assert len(open_verification_set(tmp_path / name).images) == 4


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("lfw.bin", b"<!DOCTYPE html>", "it is a web page"),
        ("lfw.bin", b"version https://git-lfs.github.com/spec/v1", "`git lfs pull`"),
        ("lfw.bin", b"\x01\x00\x00\x00" * 9, "does not start as a pickle does"),
        ("notes.pkl", b"no pickle", "is of no known format"),
    ],
)
def test_other_files_are_told_from_damaged_sets(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_verification_set(tmp_path / name)
