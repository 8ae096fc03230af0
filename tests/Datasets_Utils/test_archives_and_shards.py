"""Trees in .zip and .tar archives, and tar shards: written by the standard library, read in place,
compared with the same files in folders."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats import storage
from Utils.Datasets_Utils.formats.archive import open_archive
from Utils.Datasets_Utils.formats.shards import open_shards
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import DataError
from Utils.Training_Utils.data import EpochSampler, TrainingLoader


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path):
    """Folders in an order that differs between whole paths and their parts ('a b' < 'a/...')."""
    root = tmp_path / "faces"
    rng = np.random.default_rng(0)
    for name, photos in (("a", 2), ("a b", 1), ("a/deep", 2), ("Zoë", 3)):
        (root / name).mkdir(parents=True, exist_ok=True)
        for photo in range(photos):
            pixels = rng.integers(0, 256, (9, 8, 3), np.uint8)
            (root / name / f"{photo}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    (root / "stray.png").write_bytes(b"in no class")
    (root / "a" / "notes.txt").write_text("no image")
    return root


KINDS = ["stored.zip", "deflated.zip", "x.tar"]


def pack(tree, kind, top=""):
    """An archive of a tree, members in no particular order."""
    path = tree.parent / kind
    files = [file for file in sorted(tree.rglob("*"), reverse=True) if file.is_file()]
    if kind.endswith(".tar"):
        with tarfile.open(path, "w") as archive:
            archive.add(tree / "a", top + "a", recursive=False)
            for file in files:
                archive.add(file, top + str(file.relative_to(tree)))
    else:
        method = zipfile.ZIP_STORED if kind == "stored.zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(path, "w", method) as archive:
            for file in files:
                archive.write(file, top + str(file.relative_to(tree)))
    return path


def assert_same_set(a, b):
    assert len(a) == len(b)
    assert a.num_classes == b.num_classes
    for (image, label), (other, other_label) in zip(a, b, strict=True):
        assert label == other_label
        np.testing.assert_array_equal(image, other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("top", ["", "all of it/", "./"])
def test_an_archive_of_a_tree_is_the_tree(tree, kind, top):
    assert_same_set(open_training_set(pack(tree, kind, top)), open_training_set(tree))


@pytest.mark.parametrize("kind", KINDS)
def test_lists_beside_and_inside_an_archive_are_read(tree, kind):
    text = "Zoë/1.png  1\na/0.png  0\n"
    (tree / "list.txt").write_text(text, encoding="utf-8")
    (tree.parent / "beside.txt").write_text(text, encoding="utf-8")
    path, wanted = pack(tree, kind, "top/"), open_training_set(tree, tree / "list.txt")
    assert_same_set(open_training_set(path, tree.parent / "beside.txt"), wanted)
    assert_same_set(open_training_set(path, "list.txt"), wanted)
    (tree.parent / "beside.txt").write_text("a/0.png  0\na/gone.png  0\n")
    with pytest.raises(DataError, match=r"1 of 2 images are missing in .*, the first: .*gone"):
        open_training_set(path, tree.parent / "beside.txt")
    with pytest.raises(DataError, match=r"nowhere\.txt is no file, neither on disk nor in"):
        open_training_set(path, "nowhere.txt")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_photos_and_pairs_is_a_verification_set(tree, kind):
    (tree / "pairs.txt").write_text("a/0 a/1.png 1\na/deep/0 Zoë/2 -1\n", encoding="utf-8")
    wanted = open_verification_set(tree, tree / "pairs.txt")
    path = pack(tree, kind, "top/")
    for found in (open_verification_set(path), open_verification_set(path, tree / "pairs.txt")):
        np.testing.assert_array_equal(found.left, wanted.left)
        np.testing.assert_array_equal(found.same, wanted.same)
        for image, other in zip(found.images, wanted.images, strict=True):
            np.testing.assert_array_equal(image, other)


@pytest.mark.parametrize("name", ["../out.png", "a/../../out.png", "/etc/out.png", "C:\\out.png"])
def test_a_member_outside_the_archive_is_refused(tree, name):
    path = tree.parent / "bad.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/0.png", b"0" * 100)
        archive.writestr(name, b"1")
    offset = path.read_bytes().index(name.encode()) - 30
    with pytest.raises(
        DataError, match=rf"bad\.zip, byte {offset}: member .*out\.png' lies outside"
    ):
        open_training_set(path)
    with tarfile.open(tree.parent / "bad.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(DataError, match=r"bad\.tar, byte 0: member .*out\.png' lies outside"):
        open_training_set(tree.parent / "bad.tar")


def test_names_in_a_zip_are_utf8_without_the_flag_for_it_too(tmp_path):
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Jürgen/ö.png", b"x")
        archive.writestr("plain/a.png", b"x")
    assert list(open_archive(path).names) == ["Jürgen/ö.png", "plain/a.png"]
    content = path.read_bytes()
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # as macOS writes them
        at = content.index(header) + flags
        content = content[:at] + b"\0\0" + content[at + 2 :]
    path.write_bytes(content)
    assert list(open_archive(path).names) == ["Jürgen/ö.png", "plain/a.png"]
    path.write_bytes(content.replace("ü".encode(), b"\xfc\xfc").replace("ö".encode(), b"\xf6\xf6"))
    assert list(open_archive(path).names) == ["Jⁿⁿrgen/÷÷.png", "plain/a.png"]  # cp437


def test_damage_in_a_zip_is_named_with_its_place(tree):
    path = pack(tree, "deflated.zip")
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("a/0.png")
    content = bytearray(path.read_bytes())
    content[member.header_offset + 60] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"byte {member.header_offset} \(a/0\.png\)"):
        list(open_training_set(path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"deflated\.zip can't be read as an archive"):
        open_training_set(path)


def test_a_member_that_swells_is_read_no_further_than_promised(tree):
    path = tree.parent / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(10_000_000))
    content = path.read_bytes()
    promised = struct.pack("<I", 10_000_000)
    path.write_bytes(content.replace(promised, struct.pack("<I", 1000)))
    with pytest.raises(ImageError, match="check sum"):
        open_training_set(path)[0]


def test_a_tar_cut_short_is_named_with_its_place(tree):
    path = pack(tree, "x.tar")
    with tarfile.open(path) as archive:
        member = archive.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: member.offset_data + 10])
    with pytest.raises(DataError, match=rf"x\.tar, byte {member.offset}: .* cut short at \d+"):
        open_training_set(path)


@pytest.mark.parametrize("damage", ["checksum", "cut"])
def test_a_damaged_header_is_not_taken_for_the_end(tree, damage):
    path = pack(tree, "x.tar")
    with tarfile.open(path) as archive:
        header = archive.getmembers()[4].offset
    content = bytearray(path.read_bytes())
    content[header + 148] ^= 7
    path.write_bytes(content if damage == "checksum" else content[: header + 100])
    with pytest.raises(DataError, match=rf"x\.tar, byte {header}: neither a member nor"):
        open_training_set(path)


def write_shards(folder, shards):
    """Shards of (key, 2×2 image, label) samples, as webdataset's ShardWriter lays them out."""
    folder.mkdir()
    for number, samples in enumerate(shards):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as archive:
            for key, image, label in samples:
                encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
                for suffix, content in (("cls", str(label).encode()), ("png", encoded)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def numbered(count, shards, classes=3):
    samples = [(f"d/{i:04d}", np.full((2, 2, 3), i, np.uint8), i % classes) for i in range(count)]
    size = -(-count // shards)
    return [samples[start : start + size] for start in range(0, count, size)]


def test_shards_hold_their_samples_in_order(tmp_path):
    write_shards(tmp_path / "shards", numbered(50, 4))
    dataset = open_training_set(tmp_path / "shards")
    assert (len(dataset), dataset.num_classes) == (50, 3)
    assert [(image[0, 0, 0], label) for image, label in dataset] == [(i, i % 3) for i in range(50)]
    assert dataset.name(13) == "000001.tar/d/0013.png"
    one = open_training_set(tmp_path / "shards/000001.tar")
    assert [image[0, 0, 0] for image, _ in one] == list(range(13, 26))
    (tmp_path / "list.txt").write_text("000003.tar/d/0040.png  0\n000000.tar/d/0002.png  1\n")
    listed = open_training_set(tmp_path / "shards", tmp_path / "list.txt")
    assert [(image[0, 0, 0], label) for image, label in listed] == [(40, 0), (2, 1)]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors can't be counted")
def test_many_shards_do_not_use_up_the_file_descriptors(tmp_path):
    write_shards(tmp_path / "shards", numbered(150, 150))
    dataset = open_training_set(tmp_path / "shards")
    before = len(os.listdir("/proc/self/fd"))
    assert [image[0, 0, 0] for image, _ in dataset] == list(range(150))
    assert len(os.listdir("/proc/self/fd")) - before <= 70
    assert dataset[0][0][0, 0, 0] == 0  # its map was closed, and is made again


def test_an_epoch_goes_through_shards_one_by_one_shuffled_within_the_buffer(tmp_path):
    write_shards(tmp_path / "shards", numbered(120, 6))
    store = open_shards(tmp_path / "shards", buffer=20).images
    orders = [store.epoch_order(np.arange(120), np.random.default_rng(i)) for i in range(2)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(120))
        blocks = (order // 20).reshape(6, 20)  # a buffer is as large as a shard here
        assert (blocks == blocks[:, :1]).all()
        assert blocks[:, 0].tolist() != list(range(6))
        assert all((np.diff(order.reshape(6, 20)[k]) < 0).any() for k in range(6))
    assert orders[0].tolist() != orders[1].tolist()
    again = store.epoch_order(np.arange(120), np.random.default_rng(0))
    assert again.tolist() == orders[0].tolist()
    some = np.array([3, 50, 51, 119])
    assert sorted(store.epoch_order(some, np.random.default_rng(0)).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_shards_can_be_entered_anywhere(tmp_path, workers):
    write_shards(tmp_path / "shards", numbered(60, 5))
    dataset = open_training_set(tmp_path / "shards")
    dataset.images.buffer = 10
    sampler = EpochSampler(dataset, 8, seed=3)
    loader = TrainingLoader(dataset, sampler, (2, 2), num_workers=workers)
    whole = [batch.images[:, 0, 0, 0].tolist() for batch in loader.epoch(1)]
    assert [len(batch) for batch in whole] == [8] * 7
    assert [batch.images[:, 0, 0, 0].tolist() for batch in loader.epoch(1, 4)] == whole[4:]
    shards = [value // 12 for batch in whole for value in batch]
    assert len({tuple(shards[i : i + 5]) for i in range(0, 55, 5)}) > 3
    plain = TrainingLoader(dataset, EpochSampler(dataset, 8, seed=3), (2, 2))
    assert [batch.images[:, 0, 0, 0].tolist() for batch in plain.epoch(1)] == whole


def test_the_index_of_shards_is_kept_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    write_shards(tmp_path / "shards", numbered(20, 2))
    open_training_set(tmp_path / "shards")
    assert (tmp_path / "shards/shards_index.npz").is_file()
    with monkeypatch.context() as patch:
        patch.setattr("Utils.Datasets_Utils.formats.shards.tar_members", None)
        assert len(open_training_set(tmp_path / "shards")) == 20
    (tmp_path / "shards/000001.tar").unlink()
    assert len(open_training_set(tmp_path / "shards")) == 10


def test_an_index_older_than_its_shards_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    write_shards(tmp_path / "shards", numbered(20, 1))
    assert open_training_set(tmp_path / "shards").labels.tolist()[9:12] == [0, 1, 2]
    shard = tmp_path / "shards/000000.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as archive:
        content[archive.getmember("d/0010.cls").offset_data] = ord("0")
    shard.write_bytes(content)
    made = (tmp_path / "shards/shards_index.npz").stat().st_mtime
    os.utime(shard, (made + 1, made + 1))
    assert open_training_set(tmp_path / "shards").labels.tolist()[9:12] == [0, 0, 2]


def test_a_damaged_kept_index_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "SECONDS_WORTH_KEEPING", 0)
    write_shards(tmp_path / "shards", numbered(20, 2))
    open_training_set(tmp_path / "shards")
    index = tmp_path / "shards/shards_index.npz"
    index.write_bytes(index.read_bytes()[:100])
    assert len(open_training_set(tmp_path / "shards")) == 20


def test_samples_without_a_class_are_named(tmp_path):
    write_shards(tmp_path / "shards", [[("x", np.zeros((2, 2, 3), np.uint8), "cat")]])
    with pytest.raises(DataError, match=r"000000\.tar, byte 512: x\.cls holds b'cat'"):
        open_training_set(tmp_path / "shards")
    with tarfile.open(tmp_path / "shards/000000.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.jpg"), io.BytesIO())
    with pytest.raises(DataError, match=r"000000\.tar, byte 0: x\.jpg has no \.cls"):
        open_training_set(tmp_path / "shards")


@pytest.mark.parametrize(("suffix", "second"), [("jpg", True), ("mask.png", False)])
def test_a_key_has_one_image(tmp_path, suffix, second):
    (tmp_path / "shards").mkdir()
    files = {"x.cls": b"0", "x.png": b"image", f"x.{suffix}": b"another"}
    with tarfile.open(tmp_path / "shards/0.tar", "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    if second:
        with pytest.raises(DataError, match=r"0\.tar, byte 2\d+: x\.jpg is a second image"):
            open_training_set(tmp_path / "shards")
    else:
        dataset = open_training_set(tmp_path / "shards")
        assert [dataset.name(i) for i in range(len(dataset))] == ["0.tar/x.png"]


def test_a_hard_link_in_a_tar_is_refused(tree):
    os.link(tree / "a/0.png", tree / "a/link.png")
    with pytest.raises(DataError, match=r"is a hard link.*--hard-dereference"):
        open_training_set(pack(tree, "x.tar"))


def test_photos_beside_their_own_archive_are_a_folder(tree):
    folder = tree / "a/deep"
    (folder / "pairs.txt").write_text("0.png 1.png 1\n")
    with tarfile.open(folder / "x.tar", "w") as archive:
        archive.add(folder / "0.png", "0.png")
    assert len(open_verification_set(folder).same) == 1


def test_a_user_without_a_home_reads_shards(tmp_path, monkeypatch):
    write_shards(tmp_path / "shards", numbered(20, 2))
    monkeypatch.delenv("XDG_CACHE_HOME")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(storage.Path, "home", home)
    assert len(open_training_set(tmp_path / "shards")) == 20


def test_a_tree_beside_its_own_archive_is_a_tree(tree):
    wanted = open_training_set(tree)
    pack(tree, "x.tar").rename(tree / "x.tar")
    assert_same_set(open_training_set(tree), wanted)


def test_an_unknown_format_is_an_error_that_lists_the_known_ones(tmp_path):
    (tmp_path / "faces.tar.gz").write_bytes(b"\x1f\x8b compressed")
    with pytest.raises(DataError, match=r"faces\.tar\.gz is of no known format.*a record file"):
        open_training_set(tmp_path / "faces.tar.gz")
    with pytest.raises(DataError, match=r"nothing does not exist\. .*a \.bin file"):
        open_verification_set(tmp_path / "nothing")
