"""Converting and checking data sets: bytes unchanged there and back, interruptions, flaws found."""

import json
import os
import shutil
import signal
import time

import cv2
import numpy as np
import pytest

from tests.conftest import assert_one_paragraph, run_script
from tests.processes import start_script
from Utils.Datasets_Utils import convert_dataset as converter
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.convert_dataset import convert
from Utils.Datasets_Utils.formats.bin_set import read_bin
from Utils.Datasets_Utils.formats.writers import FolderWriter
from Utils.errors import DataError, RunError

CONVERT = "Utils.Datasets_Utils.convert_dataset"
CHECK = "Utils.Datasets_Utils.check_dataset"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def ms1m(shared_data):
    return shared_data / "formats" / "rec_ms1m_layout"


def assert_same_set(a, b):
    np.testing.assert_array_equal(a.labels, b.labels)
    for index in range(len(a)):
        assert bytes(a.encoded(index)) == bytes(b.encoded(index))


def test_a_record_file_comes_back_as_mxnet_wrote_it(ms1m, tmp_path):
    """record -> shards -> folder -> record: the bytes of the file and of its index."""
    convert(ms1m, tmp_path / "shards/%04d.tar", shard_size=100)
    convert(tmp_path / "shards", tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back/train.rec")
    for name in ("train.rec", "train.idx", "property"):
        assert (tmp_path / "back" / name).read_bytes() == (ms1m / name).read_bytes()
    for path in ("shards", "folder", "back"):
        assert_same_set(open_training_set(tmp_path / path), open_training_set(ms1m))
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 4


def test_a_random_order_makes_a_plain_record_file(ms1m, tmp_path):
    with pytest.raises(DataError, match="--shuffle is -1"):
        convert(ms1m, tmp_path / "x.rec", shuffle=-1)
    convert(ms1m, tmp_path / "x.rec", shuffle=5)
    order = np.random.default_rng(5).permutation(347)
    mixed, source = open_training_set(tmp_path / "x.rec"), open_training_set(ms1m)
    np.testing.assert_array_equal(mixed.labels, source.labels[order])
    assert bytes(mixed.encoded(0)) == bytes(source.encoded(order[0]))
    assert mixed.name(0) == "0"
    line = (tmp_path / "x.lst").read_text().splitlines()[0]
    assert line == f"0\t{source.labels[order[0]]}\t{source.name(order[0])}"


@pytest.mark.parametrize("target", ["folder", "set.rec", "%06d.tar"])
def test_a_bin_and_back(shared_data, tmp_path, target):
    original = shared_data / "formats/lfw_small.bin"
    convert(original, tmp_path / "there" / target)
    place = tmp_path / "there" / (target if target == "folder" else "")
    convert(place, tmp_path / "back.bin")
    encoded, same = read_bin(original)
    again, same_again = read_bin(tmp_path / "back.bin")
    assert again == encoded
    np.testing.assert_array_equal(same_again, same)
    data, labels = open_verification_set(original), open_training_set(place).labels
    # The classes are what matched pairs say: none of them has two of them.
    names = {name: i for i, name in enumerate(map(open_training_set(place).name, range(144)))}
    pairs = [line.split() for line in (place / "pairs.txt").read_text().splitlines()]
    for (left, right, flag), is_same in zip(pairs, data.same, strict=True):
        assert (flag == "1") == is_same
        assert (labels[names[left]] == labels[names[right]]) == is_same


def test_photos_and_pairs_become_a_bin(shared_data, tmp_path):
    half = shared_data / "lfw_half"
    convert(half / "images", tmp_path / "half.bin", half / "pairs.txt")
    made = open_verification_set(tmp_path / "half.bin")
    photos = open_verification_set(half / "images", half / "pairs.txt")
    for name in ("left", "right", "same", "folds"):
        np.testing.assert_array_equal(getattr(made, name), getattr(photos, name))
    np.testing.assert_array_equal(made.images[700], photos.images[700])


@pytest.mark.parametrize("target", ["x.rec", "%03d.tar", "folder"])
def test_an_interrupted_conversion_is_resumed(ms1m, tmp_path, monkeypatch, target):
    convert(ms1m, tmp_path / "whole" / target, shard_size=50)
    read, training_source = [], converter.open_training_set

    def failing(*arguments):
        source = training_source(*arguments)
        read_encoded = source.encoded

        def encoded(number):
            read.append(number)
            if number == 180 and len(read) < 300:
                raise KeyboardInterrupt
            return read_encoded(number)

        source.encoded = encoded
        return source

    monkeypatch.setattr(converter, "open_training_set", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(ms1m, tmp_path / "broken" / target, shard_size=50)
    if target == "x.rec":  # as a kill leaves it: cut anywhere
        part = tmp_path / "broken/.x.rec.part"
        os.truncate(part, part.stat().st_size - 100)
    assert not (tmp_path / "broken/x.rec").exists()
    del read[:]
    read.extend(range(-300, 0))
    convert(ms1m, tmp_path / "broken" / target, shard_size=50)
    first = {"x.rec": 179, "%03d.tar": 150, "folder": 180}[target]
    assert read[300] == first
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert {p.relative_to(broken) for p in broken.rglob("*") if p.is_file()} == set(files)
    for file in files:
        if file.suffix != ".npz":
            assert (whole / file).read_bytes() == (broken / file).read_bytes(), file


def test_a_killed_conversion_leaves_nothing_that_looks_whole(ms1m, tmp_path):
    target = tmp_path / "train.rec"
    code = (
        "import time; from Utils.Datasets_Utils.formats.writers import RecordWriter as W; "
        "w = W.write; "
        "W.write = lambda *a: (time.sleep(0.01), w(*a)); "
        f"from {CONVERT} import convert; convert({str(ms1m)!r}, {str(target)!r})"
    )
    process = start_script("-c", code)
    part = tmp_path / ".train.rec.part"
    while not (part.exists() and part.stat().st_size > 200_000):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    convert(ms1m, target)
    assert target.read_bytes() == (ms1m / "train.rec").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_targets_that_cannot_be_written_are_named(ms1m, shared_data, tmp_path):
    (tmp_path / "x.rec").write_bytes(b"something of the user's")
    with pytest.raises(RunError, match=r"x\.rec exists already"):
        convert(ms1m, tmp_path / "x.rec")
    with pytest.raises(RunError, match=r"can't be written as \.zip"):
        convert(ms1m, tmp_path / "x.zip")
    for pattern in ("%s.tar", "%d.tar", "%01d.tar"):
        with pytest.raises(RunError, match="no pattern of names for 347 images"):
            convert(ms1m, tmp_path / pattern, shard_size=30)
    assert [path.name for path in tmp_path.iterdir()] == ["x.rec"]
    with pytest.raises(DataError, match="holds pixels"):
        convert(shared_data / "formats/lfw", tmp_path / "x.bin")
    run = run_script("-m", CONVERT, ms1m, tmp_path / "x.rec")
    assert_one_paragraph(run, "x.rec exists already")
    assert (tmp_path / "x.rec").read_bytes() == b"something of the user's"


@pytest.mark.parametrize("name", ["x.idx", "x.lst", "property"])
def test_files_beside_a_record_file_are_not_overwritten(ms1m, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match=rf"{name} exists already"):
        convert(ms1m, tmp_path / "x.rec")
    assert (tmp_path / name).read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_conversion_does_not_resume_with_another_list(ms1m, tmp_path, monkeypatch):
    keys = [[1, 2, 3, 4], [1, 2, 4, 3]]
    lists = [tmp_path / "one.txt", tmp_path / "other.txt"]
    for path, order in zip(lists, keys, strict=True):
        path.write_text("".join(f"{key}  {i // 2}\n" for i, key in enumerate(order)))
    with monkeypatch.context() as patch:
        patch.setattr(converter, "_copy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert(ms1m, tmp_path / "x.rec", lists[0])
    with pytest.raises(RunError, match="another conversion to it was begun"):
        convert(ms1m, tmp_path / "x.rec", lists[1])
    convert(ms1m, tmp_path / "x.rec", lists[0])


@pytest.mark.parametrize("target", ["x.rec", "%03d.tar", "folder"])
def test_an_empty_file_is_not_converted(tmp_path, target):
    (tmp_path / "faces/a").mkdir(parents=True)
    (tmp_path / "faces/a/0.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"image 0, .*0\.jpg, is empty"):
        convert(tmp_path / "faces", tmp_path / target)


def test_folders_of_over_a_million_classes_sort_in_their_order(tmp_path):
    writer = FolderWriter(tmp_path / "x", np.array([2, 1_000_000]))
    names = [writer.name(number, b"\xff\xd8") for number in range(2)]
    assert names == sorted(names)


def test_names_that_are_no_utf8_are_copied(tmp_path):
    name = b"Jos\xe9.jpg"
    (tmp_path / "faces/a").mkdir(parents=True)
    with open(os.path.join(os.fsencode(tmp_path / "faces/a"), name), "wb") as f:
        f.write(b"an image")
    convert(tmp_path / "faces", tmp_path / "x.rec")
    assert name in (tmp_path / "x.lst").read_bytes()


@pytest.fixture
def flawed(tmp_path):
    """Three people; 9 photos, of which 4 are good."""
    root = tmp_path / "faces"
    rng = np.random.default_rng(0)

    def photo(size=(16, 16)):
        return cv2.imencode(".jpg", rng.integers(0, 256, (*size, 3), np.uint8))[1].tobytes()

    twice, shared = photo(), photo()
    image = cv2.imdecode(np.frombuffer(twice, np.uint8), cv2.IMREAD_COLOR)
    files = {
        "a/0.jpg": photo(),
        "a/1.jpg": twice,
        "a/2.png": cv2.imencode(".png", image)[1].tobytes(),  # the same pixels, other bytes
        "a/3.jpg": photo()[:-300],  # OpenCV reads this without a word
        "b/0.jpg": b"no image",
        "b/1.jpg": shared,
        "c/0.jpg": shared,
        "c/1.jpg": photo((20, 16)),
        "c/2.jpg": photo(),
        "d/0.jpg": photo(),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_every_flaw_is_found_and_the_clean_list_has_none(flawed, tmp_path):
    run = run_script("-m", CHECK, flawed, "--output", tmp_path / "out", painted=True)
    assert run.returncode == 2, run.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert (report["images"], report["identities"]) == (10, 4)
    assert report["identities with one image"] == 1
    assert report["sizes"] == "16×16 (7), unreadable (2), 20×16 (1)"
    assert [text.split(":")[0] for text in report["unreadable"]] == [
        str(flawed / "a/3.jpg"),
        str(flawed / "b/0.jpg"),
    ]
    assert report["odd sizes"] == ["c/1.jpg 20×16"]
    assert report["duplicates"] == [
        "a/2.png (label 0) = a/1.jpg (label 0)",
        "c/0.jpg (label 2) = b/1.jpg (label 1)",
    ]
    clean = (tmp_path / "out/clean_list.txt").read_text().splitlines()
    assert clean == ["a/0.jpg  0", "a/1.jpg  0", "c/2.jpg  1", "d/0.jpg  2"]
    picture = cv2.imread(str(tmp_path / "out/images_per_identity.png"))
    assert picture.std() > 0
    again = run_script(
        *("-m", CHECK, flawed, "--file_list", tmp_path / "out/clean_list.txt"),
        *("--output", tmp_path / "again", "--num_workers", "0"),
    )
    assert again.returncode == 0, again.stdout
    assert ["clean", "yes"] in [line.split() for line in again.stdout.splitlines()]


def test_a_clean_list_of_a_record_file_opens_it(shared_data, tmp_path):
    folder = tmp_path / "rec"
    shutil.copytree(shared_data / "formats/rec_ms1m_layout", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    dataset = open_training_set(folder)
    data = bytearray((folder / "train.rec").read_bytes())
    offset = int(dataset.images.offsets[2])
    data[offset + 32 : offset + 300] = bytes(268)
    (folder / "train.rec").write_bytes(data)
    run = run_script("-m", CHECK, folder, "--output", tmp_path / "out")
    assert run.returncode == 2
    assert f"byte {offset} (key 3)" in run.stdout
    clean = open_training_set(folder, tmp_path / "out/clean_list.txt")
    assert [clean.name(i) for i in range(3)] == ["1", "2", "4"]
    assert len(clean) == 346
