"""Record files: those that MXNet wrote, ones packed by hand from the format's description, and
damaged ones."""

import os
import shutil
import struct

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.formats import storage
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.formats.record_set import Record, read_payload, read_record, scan_records
from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.Datasets_Utils.formats.writers import pack_payload, pack_record, whole_records
from Utils.Datasets_Utils.generate_dataset_list import write_list
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import DataError

LAYOUTS = ("rec_ms1m_layout", "rec_plain")
MAGIC = struct.pack("<I", 0xCED7230A)


def copy_folder(source, target):
    """A copy that may be damaged; the original is read-only."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    return target


@pytest.fixture
def ms1m(shared_data, tmp_path):
    return copy_folder(shared_data / "formats" / "rec_ms1m_layout", tmp_path / "ms1m")


@pytest.fixture
def plain(shared_data, tmp_path):
    return copy_folder(shared_data / "formats" / "rec_plain", tmp_path / "plain")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lst_lines(folder):
    """(path, label) as the list beside the record file says."""
    lines = (line.split("\t") for line in (folder / "train.lst").read_text().splitlines())
    return [(path, int(label)) for _, path, label in lines]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_mxnets_files_hold_the_photos_and_labels_of_their_list(shared_data, layout):
    folder = shared_data / "formats" / layout
    dataset = open_training_set(folder)
    expected = lst_lines(folder)
    assert len(dataset) == len(expected)
    assert dataset.num_classes == {"rec_ms1m_layout": 60, "rec_plain": 30}[layout]
    for (image, label), (path, listed) in zip(dataset, expected, strict=True):
        assert label == listed
        assert image.dtype == np.uint8
        photo = cv2.imread(str(shared_data / "lfw_half" / "images" / path))
        np.testing.assert_array_equal(image, photo[..., ::-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_written_again_are_mxnets_byte_for_byte(shared_data, layout):
    file = MappedFile(shared_data / "formats" / layout / "train.rec")
    offsets = list(scan_records(file))
    index = (file.path.with_suffix(".idx")).read_text().split()
    assert offsets == [int(offset) for offset in index[1::2]]
    written = b"".join(pack_record(read_record(file, offset)) for offset in offsets)
    assert written == file.path.read_bytes()


def test_a_record_that_holds_the_magic_number_is_cut_there(tmp_path):
    payload = b"abcd" + MAGIC + MAGIC + b"efghij" + MAGIC + b"kl" + MAGIC
    # The third stands at byte 18, which is no multiple of 4, and so stays; the last at 24.
    parts = [(1, b"abcd"), (2, b""), (2, b"efghij" + MAGIC + b"kl"), (3, b"")]
    by_hand = b""
    for kind, part in parts:
        by_hand += MAGIC + struct.pack("<I", kind << 29 | len(part)) + part
        by_hand += bytes(-len(part) % 4)
    path = tmp_path / "parts.rec"
    path.write_bytes(by_hand + pack_payload(b"next"))
    file = MappedFile(path)
    assert pack_payload(payload) == by_hand
    assert bytes(read_payload(file, 0)) == payload
    assert list(scan_records(file)) == [0, len(by_hand)]
    assert bytes(read_payload(file, len(by_hand))) == b"next"


@pytest.mark.parametrize("cut", range(5))
def test_a_record_cut_in_its_padding_is_not_whole(tmp_path, cut):
    record = pack_record(Record(0, np.float32([1]), 0, 0, b"x"))  # with 3 bytes of padding
    path = tmp_path / "x.rec"
    path.write_bytes((record + record)[: 2 * len(record) - cut])
    expected = ([0], len(record)) if cut else ([0, len(record)], 2 * len(record))
    assert whole_records(MappedFile(path)) == expected


def test_an_image_in_several_parts_is_one_of_the_set(tmp_path):
    """A BMP, whose pixels are stored as they are: the magic number at every place modulo 4."""
    image = np.frombuffer((MAGIC + b"x") * 48, np.uint8)[:192].reshape(8, 8, 3)
    encoded = cv2.imencode(".bmp", image)[1].tobytes()
    packed = pack_record(Record(2, np.float32([0, 1]), 7, 0, encoded))
    assert packed[7] >> 5 == 1  # the flag of a first part
    (tmp_path / "train.rec").write_bytes(packed)
    dataset = open_training_set(tmp_path / "train.rec")
    np.testing.assert_array_equal(dataset[0][0], image[..., ::-1])
    assert dataset[0][1] == 0


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_what_the_parent_reads(shared_data, start):
    dataset = open_training_set(shared_data / "formats" / "rec_ms1m_layout")
    expected = [dataset[i] for i in range(60)]  # the map is open before the workers start
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(60),
        num_workers=2 if start == "fork" else 1,  # a spawned one takes seconds to begin
        multiprocessing_context=start,
    )
    for (image, label), (wanted, wanted_label) in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)
        assert int(label) == wanted_label


def test_a_missing_index_is_made_by_a_scan_and_kept(ms1m, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    wanted = open_training_set(ms1m)
    (ms1m / "train.idx").unlink()
    first = open_training_set(ms1m)
    kept = ms1m / "train.offsets.npz"
    assert kept.is_file()
    monkeypatch.setattr(
        "Utils.Datasets_Utils.formats.record_set.scan_records", None
    )  # not scanned again
    for dataset in (first, open_training_set(ms1m)):
        np.testing.assert_array_equal(dataset.images.offsets, wanted.images.offsets)
        np.testing.assert_array_equal(dataset.labels, wanted.labels)
        assert dataset.name(0) == "1"


def test_a_read_only_folder_has_its_index_kept_elsewhere(ms1m, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    (ms1m / "train.idx").unlink()
    before = sorted(ms1m.iterdir())
    ms1m.chmod(0o555)
    try:
        open_training_set(ms1m)
        assert sorted(ms1m.iterdir()) == before
        assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1
    finally:
        ms1m.chmod(0o755)


def test_a_kept_index_of_another_file_is_not_used(ms1m, plain, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    for folder in (ms1m, plain):
        (folder / "train.idx").unlink()
        open_training_set(folder)
    shutil.copy(ms1m / "train.offsets.npz", plain / "train.offsets.npz")
    assert len(open_training_set(plain)) == 172


def test_labels_that_contradict_the_identity_records_are_read_from_the_images(ms1m):
    """The first image says class 1, the second 0: the ranges say 0 for both."""
    data = bytearray((ms1m / "train.rec").read_bytes())
    struct.pack_into("<f", data, 40 + 8 + 4, 1.0)
    (ms1m / "train.rec").write_bytes(data)
    dataset = open_training_set(ms1m)
    assert len(dataset) == 347
    assert dataset.labels[:3].tolist() == [1, 0, 0]


def test_a_list_takes_records_by_key(ms1m, tmp_path):
    (tmp_path / "list.txt").write_text("347  1\n1  0\n5  1\n")
    dataset, whole = open_training_set(ms1m, tmp_path / "list.txt"), open_training_set(ms1m)
    assert (len(dataset), dataset.num_classes) == (3, 2)
    for index, (key, label) in enumerate(((347, 1), (1, 0), (5, 1))):
        np.testing.assert_array_equal(dataset[index][0], whole[key - 1][0])
        assert dataset[index][1] == label
    (tmp_path / "list.txt").write_text("1  0\n348  0\n")
    with pytest.raises(DataError, match=r"list\.txt: 1 of 2 names are no keys .* first: 348"):
        open_training_set(ms1m, tmp_path / "list.txt")


def test_the_list_of_a_record_file_opens_it(ms1m, tmp_path):
    write_list(ms1m, tmp_path / "keys.txt")
    write_list(ms1m / "train.lst", tmp_path / "paths.txt", min_images=5)
    keys, paths = open_training_set(ms1m, tmp_path / "keys.txt"), parse_list(tmp_path / "paths.txt")
    np.testing.assert_array_equal(keys.labels, open_training_set(ms1m).labels)
    counts = np.bincount(keys.labels)
    assert len(paths[0]) == counts[counts >= 5].sum()
    assert np.bincount(paths[1]).tolist() == counts[counts >= 5].tolist()


def test_both_kinds_of_lst_are_read(tmp_path):
    (tmp_path / "mxnet.lst").write_text("0\t7.000000\tb/x y.jpg\n4\t3\t0.5\ta/1.jpg\n")
    (tmp_path / "insightface.lst").write_text("1\tb/x y.jpg\t7\n1\ta/1.jpg\t3\t10\t20\n")
    for name in ("mxnet", "insightface"):
        write_list(tmp_path / f"{name}.lst", tmp_path / "list.txt")
        assert (tmp_path / "list.txt").read_text() == "b/x y.jpg  1\na/1.jpg  0\n"
    (tmp_path / "bad.lst").write_text("1\ta.jpg\t0\nnonsense\n")
    with pytest.raises(DataError, match=r"bad\.lst, line 2: 'nonsense'"):
        write_list(tmp_path / "bad.lst", tmp_path / "list.txt")


def test_a_file_cut_short_is_named_with_the_place(ms1m):
    data = (ms1m / "train.rec").read_bytes()
    (ms1m / "train.rec").write_bytes(data[:1_000_000])
    with pytest.raises(DataError, match=r"train\.idx: key \d+ lies at byte 100\d+, .* at 1000000"):
        open_training_set(ms1m)
    (ms1m / "train.idx").unlink()
    (ms1m.parent / "whole.rec").write_bytes(data)
    last = list(scan_records(MappedFile(ms1m.parent / "whole.rec")))
    broken = max(offset for offset in last if offset < 1_000_000)
    with pytest.raises(DataError, match=rf"train\.rec, byte {broken}: .*cut short at 1000000"):
        open_training_set(ms1m)
    offsets, end = whole_records(MappedFile(ms1m / "train.rec"))
    assert offsets == [offset for offset in last if offset < broken]
    assert end == broken


def test_an_index_past_the_end_or_of_another_file_is_refused(ms1m, plain):
    index = (ms1m / "train.idx").read_text()
    (ms1m / "train.idx").write_text(index + "408\t99999999\n")
    with pytest.raises(DataError, match=r"key 408 lies at byte 99999999, but .* ends at 1334724"):
        open_training_set(ms1m)
    shutil.copy(plain / "train.idx", ms1m / "train.idx")
    with pytest.raises(DataError, match=r"train\.rec, byte 3872: no record, it begins with 0x"):
        open_training_set(ms1m)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0\t0\n1\tforty\n", r"line 2: '1\\tforty' is not 'key<TAB>offset'"),
        ("0\t0\n1\n", "line 2: '1' is not"),
        ("", "index is empty"),
        ("0\t0\n0\t40\n", "key 0 is in it twice"),
    ],
)
def test_a_bad_index_is_named_with_its_line(ms1m, text, said):
    (ms1m / "train.idx").write_text(text)
    with pytest.raises(DataError, match=said):
        open_training_set(ms1m)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "train.rec").write_bytes(b"\xff\xd8\xff\xe0 not a record file")
    with pytest.raises(DataError, match=r"train\.rec, byte 0: 0xe0ffd8ff stands where a record"):
        open_training_set(tmp_path)
    (tmp_path / "train.rec").write_bytes(b"")
    with pytest.raises(DataError, match="holds no records"):
        open_training_set(tmp_path)


def test_a_damaged_record_is_skipped_with_its_place(ms1m):
    dataset = open_training_set(ms1m)
    offset = int(dataset.images.offsets[3])
    file, before = ms1m / "train.rec", (ms1m / "train.rec").stat()
    data = bytearray(file.read_bytes())

    def damage():
        with open(file, "r+b") as f:
            f.write(data)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # a disk does not date it

    data[offset : offset + 4] = b"oops"
    damage()
    with pytest.raises(ImageError, match=rf"train\.rec, byte {offset}: no record"):
        dataset[3]
    data[offset : offset + 4] = MAGIC
    data[offset + 32 : offset + 200] = bytes(168)
    damage()
    with pytest.raises(ImageError, match=rf"train\.rec, byte {offset} \(key 4\): .* not an image"):
        dataset[3]


def test_a_label_that_is_no_class_is_named_with_its_place(plain):
    data = bytearray((plain / "train.rec").read_bytes())
    struct.pack_into("<f", data, 3872 + 32, 0.5)
    (plain / "train.rec").write_bytes(data)
    with pytest.raises(DataError, match=r"train\.rec, byte 3872: the label .* is 0\.5"):
        open_training_set(plain)


@pytest.mark.parametrize("damage", ["labels", "short"])
def test_a_record_too_short_for_its_header_is_no_empty_one(tmp_path, damage):
    records = [pack_record(Record(0, np.float32([i % 2]), i, 0, b"image")) for i in range(6)]
    records[3] = pack_payload(b"abcd" if damage == "short" else struct.pack("<I36x", 10**6))
    (tmp_path / "x.rec").write_bytes(b"".join(records))
    with pytest.raises(DataError, match=rf"x\.rec, byte {3 * len(records[0])}: no record"):
        open_training_set(tmp_path / "x.rec")


def test_a_big_index_is_held_in_arrays_alone(tmp_path):
    """A set of 200,000 small records: two arrays of 8 bytes each, whatever is in the file."""
    record = pack_record(Record(0, np.float32([0]), 0, 0, b"\xff\xd8\xff\xe0"))
    count = 200_000
    (tmp_path / "train.rec").write_bytes(record * count)
    offsets = np.arange(count) * len(record)
    lines = "".join(f"{key}\t{offset}\n" for key, offset in enumerate(offsets.tolist()))
    (tmp_path / "train.idx").write_text(lines)
    dataset = open_training_set(tmp_path)
    held = [v for v in vars(dataset.images).values() if isinstance(v, list | dict | tuple)]
    assert held == []
    assert dataset.images.offsets.nbytes + dataset.labels.nbytes == 16 * count
    assert len(dataset) == count
