"""Verification sets in .bin and .blp, written by the original programs, by hand, or hostile."""

import json
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from Config import Config
from tests.conftest import ROOT, assert_one_paragraph, run_script
from Utils.Datasets_Utils import open_verification_set
from Utils.Datasets_Utils.formats import storage
from Utils.Datasets_Utils.formats.bin_set import write_bin
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import DataError
from Utils.Evaluation_Utils.inputs import find_benchmark, open_benchmark
from Utils.Evaluation_Utils.verification import combine_flip, evaluate
from Utils.processes import ALONE
from Utils.Training_Utils.start import build_state


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pairs_file(shared_data, tmp_path_factory):
    """The pairs of lfw_small.bin: of each fold of lfw_half, the first 4 of either kind."""
    lines = (shared_data / "lfw_half/pairs.txt").read_text().splitlines()[1:]
    path = tmp_path_factory.mktemp("pairs") / "pairs.txt"
    chosen = ["10\t4"]
    for fold in range(10):
        chosen += lines[100 * fold : 100 * fold + 4] + lines[100 * fold + 50 : 100 * fold + 54]
    path.write_text("\n".join(chosen) + "\n")
    return path


@pytest.fixture
def blp(shared_data, tmp_path):
    """A copy of lfw/ and lfw_list.npy that may be damaged."""
    formats = shared_data / "formats"
    shutil.copytree(formats / "lfw", tmp_path / "lfw", copy_function=shutil.copyfile)
    for folder in (tmp_path / "lfw", tmp_path / "lfw/meta", tmp_path / "lfw/data"):
        folder.chmod(0o755)
    shutil.copyfile(formats / "lfw_list.npy", tmp_path / "lfw_list.npy")
    return tmp_path / "lfw"


def assert_same_set(a, b):
    for name in ("left", "right", "same", "folds"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert len(a.images) == len(b.images)
    for one, other in zip(a.images, b.images, strict=True):
        np.testing.assert_array_equal(one, other)


def test_bin_blp_and_photos_with_pairs_are_one_set(shared_data, pairs_file):
    formats = shared_data / "formats"
    photos = open_verification_set(shared_data / "lfw_half/images", pairs_file)
    assert len(photos.same) == 80
    for path in ("lfw_small.bin", "lfw"):
        assert_same_set(open_verification_set(formats / path), photos)


def test_the_accuracy_is_the_same_to_the_last_digit(shared_data, pairs_file):
    from Utils.Evaluation_Utils.embedding import embed

    formats = shared_data / "formats"
    config = Config(input_size=(48, 48), feature_dim=32)
    backbone = build_state(config, 2, 1, torch.device("cpu"), None).backbone
    results = []
    for paths in (
        (shared_data / "lfw_half/images", pairs_file),
        (formats / "lfw_small.bin",),
        (formats / "lfw",),
    ):
        data = open_verification_set(*paths)
        rows = combine_flip(*embed(backbone, data.images, torch.device("cpu")))
        result = evaluate(rows[data.left], rows[data.right], data.same, data.folds)
        results.append(json.dumps(result.to_dict()))
    assert results[0] == results[1] == results[2]


def test_insightfaces_own_bin_is_read(shared_data):
    path = shared_data / "formats/insightface_small_lfw.bin"
    with open(path, "rb") as f:
        encoded, same = pickle.load(f)  # this one is known to be harmless
    data = open_verification_set(path)
    assert data.same.tolist() == list(same)
    assert data.sizes == {(112, 112): len(data.images)}
    for pair in range(10):
        for rows, number in ((data.left, 2 * pair), (data.right, 2 * pair + 1)):
            expected = cv2.imdecode(encoded[number], cv2.IMREAD_COLOR)[..., ::-1]
            np.testing.assert_array_equal(data.images[rows[pair]], expected)


def jpeg(value, size=(8, 8)):
    return cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["bytes", "arrays"])
def test_every_pickle_protocol_is_read(tmp_path, protocol, kind):
    images = [jpeg(20 * i) for i in range(6)]
    stored = images if kind == "arrays" else [image.tobytes() for image in images]
    same = np.array([True, False, True]) if kind == "arrays" else [True, False, np.True_]
    (tmp_path / "x.bin").write_bytes(pickle.dumps((stored, same), protocol))
    data = open_verification_set(tmp_path / "x.bin")
    assert [image[0, 0, 0] for image in data.images] == [0, 20, 40, 60, 80, 100]
    assert data.same.tolist() == [True, False, True]


def python2_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text  # BINSTRING


def test_pickles_of_python_2_are_read(tmp_path):
    """As Python 2's cPickle writes them in protocol 2: images are its `str`, bools NEWTRUE."""
    images = b"".join(python2_string(jpeg(9 * i).tobytes()) for i in range(4))
    (tmp_path / "x.bin").write_bytes(b"\x80\x02](" + images + b"e](\x88\x89e\x86.")
    data = open_verification_set(tmp_path / "x.bin")
    assert [image[0, 0, 0] for image in data.images] == [0, 9, 18, 27]
    assert data.same.tolist() == [True, False]


def test_arrays_pickled_by_python_2_are_read(tmp_path):
    """numpy's own form of it: _reconstruct, then a state whose texts are all `str`."""
    content = b""
    for value in (3, 4):
        encoded = jpeg(value).tobytes()
        kind = b"cnumpy\ndtype\n" + python2_string(b"u1") + b"K\x00K\x01\x87R"
        kind += b"(K\x03" + python2_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        content += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        content += python2_string(b"b") + b"\x87R"
        shape = b"M" + struct.pack("<H", len(encoded)) + b"\x85"
        content += b"(K\x01" + shape + kind + b"\x89" + python2_string(encoded) + b"tb"
    (tmp_path / "x.bin").write_bytes(b"\x80\x02](" + content + b"e](\x88e\x86.")
    data = open_verification_set(tmp_path / "x.bin")
    assert [image[0, 0, 0] for image in data.images] == [3, 4]


def test_images_of_any_size_are_accepted_and_counted(tmp_path):
    images = [jpeg(1, (8, 8)), jpeg(2, (20, 10)), jpeg(3, (8, 8)), jpeg(1, (8, 8))]
    write_bin(tmp_path / "x.bin", images, [True, False])
    data = open_verification_set(tmp_path / "x.bin")
    assert data.sizes == {(8, 8): 2, (20, 10): 1}
    assert data.images[1].shape == (20, 10, 3)
    assert (data.left.tolist(), data.right.tolist()) == ([0, 2], [1, 0])  # the last is the first


class Hostile:
    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_a_program_is_refused_and_nothing_is_run(tmp_path, protocol):
    import os

    trace = tmp_path / "was run"
    hostile = pickle.dumps(([Hostile(os.system, f"touch '{trace}'")] * 2, [True]), protocol)
    (tmp_path / "x.bin").write_bytes(hostile)
    place = hostile.index(b"posix")
    with pytest.raises(
        DataError, match=r"x\.bin, byte \d+: the pickle asks for posix\.system"
    ) as e:
        open_verification_set(tmp_path / "x.bin")
    assert abs(int(str(e.value).split("byte ")[1].split(":")[0]) - place) <= 16
    assert not trace.exists()
    pickle.loads(hostile)  # this test can fail: elsewhere the same bytes are run
    assert trace.exists()


@pytest.mark.parametrize(
    ("function", "argument"),
    [(eval, "1"), (getattr, "x"), (np.load, "x"), (np.fromfile, "x"), (Path, "x")],
)
def test_other_functions_are_refused_too(tmp_path, function, argument):
    content = pickle.dumps(([Hostile(function, argument)] * 2, [True]))
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(DataError, match="was refused"):
        open_verification_set(tmp_path / "x.bin")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (([b"a", b"b", b"c"], [True]), "3 images for 1 pairs"),
        (([b"a", b"b"], [True, False]), "2 images for 2 pairs"),
        (([b"a", 7], [True]), "image 1 is a int"),
        ([b"a"], r"does not hold \(images, issame\)"),
        (([b"a", b"b"], np.array(True)), "issame is no list of bools"),
        (([b"a", b"b"], np.array([[True]])), "issame is no list of bools"),
        (([], []), "issame is no list of bools"),
        (("ab", [True]), "does not hold two lists"),
    ],
)
def test_a_bin_that_does_not_fit_together_is_an_error(tmp_path, content, said):
    (tmp_path / "x.bin").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=rf"x\.bin.*{said}"):
        open_verification_set(tmp_path / "x.bin")


def test_a_small_pickle_can_not_ask_for_a_big_memo(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\x80\x02Nr" + struct.pack("<I", 1 << 27) + b".")
    with pytest.raises(DataError, match=r"x\.bin, byte 3: .* counts 134217728 objects"):
        open_verification_set(tmp_path / "x.bin")


def test_a_pickle_can_not_change_the_reader(tmp_path):
    change = b"N}X\x0c\0\0\0__defaults__\x8c\x06latin1\x85s\x86b."  # BUILD with a slot state
    (tmp_path / "x.bin").write_bytes(b"\x80\x04\x8c\x07_codecs\x8c\x06encode\x93" + change)
    with pytest.raises(DataError, match=r"damaged.*__defaults__ can't be set"):
        open_verification_set(tmp_path / "x.bin")


def test_a_bin_takes_no_pairs_file(shared_data, pairs_file):
    with pytest.raises(DataError, match=r"lfw_small\.bin holds its own pairs.*pairs\.txt"):
        open_verification_set(shared_data / "formats/lfw_small.bin", pairs_file)


def test_results_name_images_and_pairs(shared_data, pairs_file):
    images = str(shared_data / "lfw_half/images")
    config = Config(lfw_dataset_path=images, lfw_file_list=str(pairs_file))
    assert open_benchmark(config, find_benchmark("lfw"))[1] == f"{images}, {pairs_file}"


def test_a_truncated_bin_is_named_with_the_byte(shared_data, tmp_path):
    content = (shared_data / "formats/lfw_small.bin").read_bytes()
    (tmp_path / "x.bin").write_bytes(content[:50_000])
    with pytest.raises(DataError, match=r"x\.bin, byte \d+: the pickle of 50000 bytes"):
        open_verification_set(tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"x\.bin, byte 0"):
        open_verification_set(tmp_path / "x.bin")


def test_blp_chunks_are_read_only_when_they_are_needed(blp, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    wanted = [image.copy() for image in open_verification_set(blp).images]
    again = open_verification_set(blp)  # which images are the same is kept
    read = []
    decompress = type(again.images.store)._decompress
    monkeypatch.setattr(
        type(again.images.store),
        "_decompress",
        lambda array, number: read.append(number) or decompress(array, number),
    )
    for index in (0, 1, 2, 143):
        np.testing.assert_array_equal(again.images[index], wanted[index])
    assert read == [0, 53]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_blp_can_be_read_by_workers(shared_data, start):
    from torch.utils.data import DataLoader

    images = open_verification_set(shared_data / "formats/lfw").images
    expected = [images[i] for i in range(9)]
    loader = DataLoader(
        images,
        batch_size=None,
        sampler=range(9),
        num_workers=1,
        multiprocessing_context=start,
        timeout=60,
    )
    for image, wanted in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)


def test_rgb_blp_sets_keep_their_order(shared_data):
    bgr = open_verification_set(shared_data / "formats/lfw")
    rgb = open_verification_set(shared_data / "formats/lfw", blp_channel_order="RGB")
    np.testing.assert_array_equal(rgb.images[5], bgr.images[5][..., ::-1])


def test_a_blp_chunk_that_is_missing_or_damaged_is_named(blp):
    chunk = blp / "data/__7.blp"
    content = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(DataError, match=r"__7\.blp is missing: chunk 7 of the 160 images"):
        open_verification_set(blp)
    chunk.write_bytes(content[:5000])
    with pytest.raises(DataError, match=r"__7\.blp, byte 28: it should be \d+ bytes .* has 5000"):
        open_verification_set(blp)
    chunk.write_bytes(b"XXXX" + content[4:])
    with pytest.raises(DataError, match=r"__7\.blp, byte 0: .* begin with 'blpk'"):
        open_verification_set(blp)
    huge = bytearray(content)
    struct.pack_into("<I", huge, 20, 2_000_000_000)
    chunk.write_bytes(huge)
    with pytest.raises(DataError, match=r"__7\.blp, byte 20: it holds 2000000000 bytes unpacked"):
        open_verification_set(blp)
    chunk.write_bytes(content[:200] + bytes(len(content) - 200))
    with pytest.raises((DataError, ImageError), match=r"__7\.blp"):
        list(open_verification_set(blp).images)


def test_the_current_folder_can_be_a_blp_set(blp, monkeypatch):
    monkeypatch.chdir(blp)
    assert len(open_verification_set(".").same) == 80


def test_a_wrong_issame_list_is_named(blp):
    path = blp.parent / "lfw_list.npy"
    np.save(path, np.ones(79, bool))
    with pytest.raises(DataError, match=r"lfw_list\.npy holds bool of shape \[79\].* so 80"):
        open_verification_set(blp)
    np.save(path, np.array([{"a": 1}] * 80, object), allow_pickle=True)
    with pytest.raises(DataError, match=r"lfw_list\.npy can't be read"):
        open_verification_set(blp)
    path.unlink()
    with pytest.raises(DataError, match=r"lfw_list\.npy, which says .* is missing"):
        open_verification_set(blp)


def test_wrong_metadata_is_named(blp):
    sizes = blp / "meta/sizes"
    for text, said in (
        ('{"shape": [163, 3, 112, 112]}', r"__53\.blp, byte 20: it holds 150528 bytes"),
        ('{"shape": [160, 112, 112]}', r"meta/sizes says shape \[160, 112, 112\]"),
        ("nonsense", r"meta/sizes is not JSON"),
        ('{"shape": [Infinity, 3, 112, 112]}', "does not describe an array"),
        ("{}", "does not describe an array"),
    ):
        sizes.write_text(text)
        with pytest.raises(DataError, match=said):
            open_verification_set(blp)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = Config(input_size=(48, 48), feature_dim=16)
    state = build_state(config, 2, 1, torch.device("cpu"), None)
    path = tmp_path_factory.mktemp("checkpoint") / "net.pt"
    torch.save(state.checkpoint(config, 10, ALONE), path)
    return path


def test_any_set_is_judged_by_path_and_named_in_its_results(shared_data, checkpoint, tmp_path):
    shutil.copy(shared_data / "formats/lfw_small.bin", tmp_path / "calfw.bin")
    module, flags = "Utils.Evaluation_Utils", ("--checkpoint", checkpoint)
    run = run_script("-m", module, *flags, "--data", tmp_path / "calfw.bin", "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "calfw: 144 images, 80 pairs, 10 folds" in run.stdout
    assert "112×112 (144)" in run.stdout
    by_module = json.loads((tmp_path / "calfw.json").read_text())
    flags = (*flags, "--lfw_dataset_path", shared_data / "formats/lfw", "--output", tmp_path)
    run = run_script("LFW_Evaluation.py", *flags)
    assert run.returncode == 0, run.stderr
    by_script = json.loads((tmp_path / "lfw.json").read_text())
    assert by_module["results"] == by_script["results"]
    flags = ("-m", module, "--checkpoint", checkpoint, "--pairs", "pairs.txt")
    assert_one_paragraph(run_script(*flags), "no images of the pairs pairs.txt: give --data PATH")


def test_the_arithmetic_is_imported_without_anything_else():
    code = (
        "import sys, Utils.Evaluation_Utils.verification; "
        "print([m for m in ('torch', 'cv2', 'Config') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
