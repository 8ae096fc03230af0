"""Files made to do harm: readers refuse them in a paragraph, and do not crash, hang or misread.

`python -m tests.soak --only hostile mutations` tries many more.
"""

import io
import json
import pickle
import signal
import struct
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.processes import run_script
from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.alignment.landmarks.lists import read_landmarks
from Utils.Datasets_Utils.alignment.report import COLUMNS, finished
from Utils.Datasets_Utils.alignment.sources import Photographs
from Utils.Datasets_Utils.alignment.yunet import open_yunet
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.formats.rfw import _read_points
from Utils.Datasets_Utils.formats.storage import PathTable, store_arrays
from Utils.Datasets_Utils.formats.writers import RecordWriter, ShardWriter
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Datasets_Utils.images import ImageError, decode_image
from Utils.errors import CheckpointError, DataError, RunError, UserError
from Utils.Evaluation_Utils.analysis.kept_scores import read_columns
from Utils.Evaluation_Utils.analysis.quality import read_quality
from Utils.Evaluation_Utils.clean_list import read_images
from Utils.Evaluation_Utils.features import FeatureFolder
from Utils.Evaluation_Utils.ijb.lists import _read_csv, _read_images
from Utils.Evaluation_Utils.ijb.pair_list import read_pairs
from Utils.files import read_json, read_tensors
from Utils.pickle_checks import UnsafePickleError, check_pickle
from Utils.Pretrained_Utils.files import read_file
from Utils.run_folder import RunFolder, RunLock
from Utils.Training_Utils.reports.figures import Metrics, read_rows
from Utils.Training_Utils.reports.progress import open_log

POINTS = "1 2 3 4 5 6 7 8 9 {}"
# Tuples in each other as a key of a dictionary: hashing them overflows the stack of Python itself.
DEEP = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."


@pytest.fixture
def ends():
    """Ends a test that takes 20 s of CPU time: a pattern that backtracks takes years."""

    def stop(*_):
        raise AssertionError("more than 20 s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, 20)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def checkpoint(path: Path, pickled: bytes, old: bool) -> Path:
    """A file of PyTorch's with this pickle; old: as before PyTorch 1.6, the third of five."""
    out = io.BytesIO()
    torch.save({}, out, _use_new_zipfile_serialization=not old)
    if old:
        ends, out = [], io.BytesIO(out.getvalue())
        for _ in range(4):
            ends.append(out.tell())
            pickle.load(out)
        content = out.getvalue()
        path.write_bytes(content[: ends[3]] + pickled + content[out.tell() :])
        return path
    with zipfile.ZipFile(out) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("/data.pkl") else source.read(name))
    return path


@pytest.mark.parametrize("old", [False, True])
def test_weights_of_tuples_in_each_other_are_refused(tmp_path, old):
    assert read_tensors(checkpoint(tmp_path / "a.pt", b"\x80\x02}(K\x01)\x85u.", old)) == {1: ((),)}
    with pytest.raises(CheckpointError, match=r"b\.pt can.t be read: byte \d+: more than 100"):
        read_tensors(checkpoint(tmp_path / "b.pt", DEEP, old))


def test_a_bin_set_of_tuples_in_each_other_is_refused(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(DEEP)
    with pytest.raises(DataError, match=r"a\.bin, byte 103: more than 100 tuples in each other"):
        open_verification_set(path)


@pytest.mark.parametrize(
    "step",
    [
        b"\x85",  # a tuple of one
        b"N\x86",  # of two
        b"2\x86",  # of the same one twice
        b"\x85(0",  # with a mark that is taken off again
        b"(N2t\x86",  # beside others
        b"\x85q\x000h\x00",  # put aside and taken again
        b"\x85cnumpy.core.multiarray\nscalar\n0",  # beside a name
    ],
)
def test_tuples_are_counted_whatever_is_between_them(step):
    with pytest.raises((UnsafePickleError, ValueError, LookupError)):
        check_pickle(io.BytesIO(b"\x80\x04)" + step * 300 + b"."), 1 << 20)


def test_what_is_saved_everywhere_passes():
    state = {"a": [(1, (2, (3,)))] * 300, ("k", (1, 2)): np.ones(3), "t": {"x": ({}, [()])}}
    for protocol in range(5):
        pickled = pickle.dumps(state, protocol)
        check_pickle(io.BytesIO(pickled), len(pickled))


@pytest.mark.parametrize(
    "line", ["a.png " + "123456 " * 60 + "x", "1" * 50_000 + "x", "a" + " ,;" * 20_000 + "b"]
)
def test_a_long_line_is_read_in_one_pass(tmp_path, line, ends):
    path = tmp_path / "a.txt"
    path.write_text(f"{line}\n")
    for read in (read_landmarks, parse_list, lambda path: read_quality(path, ["x"])):
        with pytest.raises(UserError):
            read(path)


@pytest.mark.parametrize("value", ["1_0", "\u0661", "9" * 5000 + "x"])
def test_numbers_that_other_programs_do_not_know_are_refused(tmp_path, value):
    names = [f"{p}_{a}" for p in ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
             for a in "xy"]  # fmt: skip
    head = f"file,{','.join(names)}\na.png,{POINTS.replace(' ', ',')}\n"
    ids = np.arange(3)
    for number, (text, read) in enumerate(
        (
            (head, read_landmarks),
            (f"a.png {POINTS}\n", read_landmarks),
            (f"a.png 0 {POINTS}\n", _read_points),
            ("a.png {}\n", lambda path: read_quality(path, ["a"])),
            ("image,name,label,angle\n0,a,{},1\n", read_images),
            ("a.png 0 {}\n", lambda path: _read_images(path, 2, int)),
            (f"a.png {POINTS} {{}}\n", lambda path: _read_images(path, 11, float)),
            ("0 1 1\n0  {} 0\n", lambda path: read_pairs(path, ids)),
            ("TEMPLATE_ID,SUBJECT_ID\n{},1\n", lambda path: _read_csv(path, "x", ids)),
        )
    ):
        path = tmp_path / f"{number}.txt"
        path.write_text(text.replace("{}", value))
        with pytest.raises(DataError, match=f"{number}.txt(, line|: its first line)"):
            read(path)


def test_whole_numbers_beyond_64_bits_are_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"TEMPLATE_ID,SUBJECT_ID\n{'9' * 20},1\n")
    with pytest.raises(DataError, match=r"line 2: .* has no whole numbers"):
        _read_csv(path, "x", np.arange(3))


@pytest.mark.parametrize("size", ["99999999999999999999", "4.5", "true", '"4"'])
def test_sizes_of_an_array_that_are_no_whole_numbers_are_refused(tmp_path, size):
    for name, text in (("sizes", f'{{"shape": [{size}, 3, 4, 4]}}'), ("storage", "{}")):
        (tmp_path / "lfw/meta").mkdir(parents=True, exist_ok=True)
        (tmp_path / "lfw/meta" / name).write_text(text)
    (tmp_path / "lfw/data").mkdir()
    with pytest.raises(DataError, match="a size that is no whole number"):
        open_verification_set(tmp_path / "lfw")


def test_json_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [{"path": 1, "b": 2, "path": 3}]}')
    with pytest.raises(DataError, match=r"a\.json is not JSON: the key 'path' is there twice"):
        read_json(path, "list")


def test_json_with_half_a_character_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"path": ["\\ud83d\\ude00.png", "\\udcff.png"]}')  # whole, and a byte
    assert read_json(path, "list") == {"path": ["\U0001f600.png", "\udcff.png"]}
    path.write_text('{"path": ["\\uD800.png"]}')
    with pytest.raises(DataError, match=r"a\.json is not JSON: .* surrogates not allowed"):
        read_json(path, "list")


def test_control_codes_in_names_are_not_printed(tmp_path):
    tree, mark = tmp_path / "tree", "\x1b]0;owned\x07\u202e"
    for name in ("ann/1.png", "bo/1.png", f"ann/.{mark}ä\u3000b.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"")
    module = "Utils.Datasets_Utils.generate_dataset_list"
    out = run_script("-m", module, tree, tmp_path / "a.txt", check=True).stdout
    assert "left out: 1 hidden" in out
    assert "ann/.]0;owned" in out
    assert "\x1b" not in out
    assert "\u202e" not in out


@pytest.mark.parametrize("name", ["ann/a\n../b.png", "ann/a\r.png", "\tann/a.png"])
def test_a_name_that_a_list_can_not_hold_is_refused(tmp_path, name):
    path = tmp_path / "tree" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    (tmp_path / "tree/ann").mkdir(exist_ok=True)
    with pytest.raises(DataError, match="can't stand in a list"):
        write_list(tmp_path / "tree", tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize(
    "size", [b"\xff" * 12, b"\x80" + b"\x7f" * 11, b"\x80\0\0\0\x7f" + b"\xff" * 7]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"L"])
def test_a_tar_member_of_an_impossible_size_is_an_error_of_the_tar(tmp_path, size, kind):
    head = bytearray(512)
    head[:5], head[124:136], head[156:157], head[257:265] = b"a.png", size, kind, b"ustar\x0000"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(head) + bytes(1024))
    with pytest.raises(DataError, match=r"a\.tar"):
        open_training_set(path)


def test_a_zip_with_a_name_that_is_no_text_is_a_damaged_file(tmp_path):
    path = checkpoint(tmp_path / "a.pt", b"\x80\x02}.", False)
    content = path.read_bytes()
    at = content.rindex(b"PK\1\2")  # of the last member: its flag says UTF-8
    content = (
        content[: at + 9] + b"\x08" + content[at + 10 : at + 46] + b"\xff" + content[at + 47 :]
    )
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt"):
        read_file(path)
    path.rename(tmp_path / "a.zip")
    with pytest.raises(DataError, match=r"a\.zip"):
        open_training_set(tmp_path / "a.zip")


def test_damaged_headers_of_arrays_are_errors_of_their_files(tmp_path):
    head = b"\x93NUMPY\1\0\4\0(1, "
    np.savez(tmp_path / "lfw_scores.npz", a=np.ones(2))
    with zipfile.ZipFile(tmp_path / "lfw_scores.npz", "w") as archive:
        archive.writestr("a.npy", head)
    with pytest.raises(DataError, match=r"lfw_scores\.npz can't be read"):
        read_columns(tmp_path / "lfw.json")
    for name, content in (("features.npy", head), ("list.json", b"[]"), ("done.bin", b"")):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"features\.npy can't be opened"):
        FeatureFolder(tmp_path).open()


def test_damaged_rows_of_own_tables_are_left_out(tmp_path):
    rows = [["iteration", "loss"], ["nan", "1"], ["inf", "2"], ["1e400", "3"], ["4", "5"]]
    (tmp_path / "metrics.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    assert read_rows(tmp_path / "metrics.csv") == [{"iteration": 4, "loss": 5.0}]
    cells = [["n" * 300, "1", "n" * 300], ["a", "9" * 5000, ""], ["b", "0", ""]]
    rows = [[*cell, *[""] * (len(COLUMNS) - 3)] for cell in cells]
    (tmp_path / "aligned.csv").write_text("".join(f"{','.join(row)}\n" for row in rows))
    assert list(finished(tmp_path, again=False)) == ["b"]


def test_a_name_longer_than_a_file_system_allows_is_a_missing_photograph(tmp_path):
    store = Photographs(tmp_path, PathTable(["n" * 300]), tmp_path, skip_bad=True)
    with pytest.raises(UserError, match="cannot be opened"):
        store.encoded(0)


def test_a_threshold_of_any_size_is_named(tmp_path):
    from Utils.Evaluation_Utils.analysis.thresholds import read_thresholds

    points = [{"far_target": 10**400, "threshold": 10**400}]
    path = tmp_path / "lfw.json"
    path.write_text(json.dumps({"results": {"cosine": {"operating_points": points}}}))
    read_thresholds(path, ["cosine"])


def test_text_of_numbers_that_are_no_characters_is_refused(tmp_path):
    names = np.array(["abc"])
    names.view(np.uint32)[1] = 0x31000061
    np.savez(tmp_path / "lfw_scores.npz", names=names)
    with pytest.raises(DataError, match=r"lfw_scores\.npz can't be read"):
        read_columns(tmp_path / "lfw.json")


def test_a_row_of_images_that_ends_before_its_name_is_refused(tmp_path):
    path = tmp_path / "images.csv"
    path.write_text("image,label,angle,name\n0,0,1,a\n1,0,2\n")
    with pytest.raises(DataError, match=r"images\.csv, line 3 is no row"):
        read_images(path)


@pytest.mark.parametrize("make", ["records", "shards"])
def test_an_index_beside_a_set_that_can_not_be_of_it_is_not_used(tmp_path, make):
    """Whoever made the set may have made the index too."""
    labels, folder = np.array([0, 1, 1]), tmp_path / "set"
    folder.mkdir()
    writer = (
        RecordWriter(folder / "a.rec", labels)
        if make == "records"
        else ShardWriter(folder / "%06d.tar", labels)
    )
    photos = [
        cv2.imencode(".png", np.full((4, 4, 3), 9 * n, np.uint8))[1].tobytes() for n in labels
    ]
    for number, photo in enumerate(photos):
        writer.write(number, photo)
    if make == "records":
        writer.finish(["a", "b", "c"])
        (folder / "a.idx").unlink()
    else:
        writer.close()
    path = folder / "a.rec" if make == "records" else folder
    sources = [path] if make == "records" else sorted(folder.glob("*.tar"))
    kept = folder / ("a.offsets.npz" if make == "records" else "shards_index.npz")
    image = np.array([(7, 0, 9, 0)] * 3, [("shard", "i4"), ("offset", "i8"), ("size", "i4"),
                                          ("label", "i4")])  # fmt: skip
    text, ends = PathTable("abc").arrays()
    for wrong in (
        {"offsets": np.array([b"0"])},
        {"other": labels},
        {"images": image, "names": text, "name_ends": ends},
        {"images": image[:0], "names": text, "name_ends": ends},
    ):
        store_arrays(kept, sources, wrong)
        data = open_training_set(path)
        assert sorted(bytes(data.encoded(row)) for row in range(3)) == sorted(photos)
        assert data.num_classes == 2


def test_a_detector_that_crashes_opencv_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="make extras installs onnx")
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [16, 3, 4, 4], np.ones(768))
    weight.dims[3] = 1 << 16  # so OpenCV reads far beyond what is there
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 4])
        for name in ("x", "y")
    ]
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[4, 4])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "yunet.onnx"
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(DataError, match="OpenCV crashes"):
        open_yunet(path)


def test_a_large_animation_is_refused_before_it_is_decoded():
    """OpenCV would take three times the memory of its pixels."""

    def chunk(kind, content):
        size, check = struct.pack(">I", len(content)), struct.pack(">I", zlib.crc32(kind + content))
        return size + kind + content + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 14000, 14000, 8, 2, 0, 0, 0))
    frames = chunk(b"acTL", struct.pack(">II", 2, 0))
    with pytest.raises(ImageError, match="an animation, not a photo"):
        decode_image(b"\x89PNG\r\n\x1a\n" + head + frames + chunk(b"IEND", b""), "a.png")
    text = chunk(b"tEXt", b"k\0acTL") + chunk(b"IDAT", b"acTL")
    with pytest.raises(ImageError, match="not an image"):  # because its pixels are none
        decode_image(b"\x89PNG\r\n\x1a\n" + head + text + chunk(b"IEND", b""), "a.png")


@pytest.mark.parametrize("there", [False, True])
def test_a_log_that_is_a_link_is_not_written(tmp_path, there):
    """A run's folder may be a stranger's, and its log a link to a file of the user's."""
    own = tmp_path / "own"
    if there:
        own.write_text("kept")
    for name in ("train.log", ".lock", "metrics.csv"):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / name).symlink_to(own)
    run = RunFolder(tmp_path / "run")
    for name in (".lock", "train.log"):
        with pytest.raises(RunError, match=rf"{name} is a link"):
            RunLock().take(run)
        with pytest.raises(OSError):
            open_log(run.path / name, screen=False)
        (run.path / name).unlink()
    metrics = Metrics(run.metrics, ["LFW"])
    with pytest.raises(RunError, match=r"metrics\.csv can't be written"):
        metrics.add({"iteration": 1})
    assert own.read_text() == "kept" if there else not own.exists()


def test_settings_of_a_run_that_are_deep_are_none(tmp_path):
    (tmp_path / "settings.json").write_text("[" * 100_000)
    assert RunFolder(tmp_path).starts() == []
