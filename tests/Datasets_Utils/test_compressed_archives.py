"""Compressed tars, unpacked once and within bounds, and zips that Windows programs write."""

import io
import lzma
import os
import subprocess
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats import archive as archive_format
from Utils.Datasets_Utils.formats import compressed
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import DataError

MODES = {"lfw.tgz": "gz", "lfw.tar.gz": "gz", "lfw.tar.xz": "xz", "lfw.tar.bz2": "bz2"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def photo(value):
    return cv2.imencode(".png", np.full((8, 8, 3), value, np.uint8))[1].tobytes()


FILES = {
    "lfw/a/a_0001.png": photo(10),
    "lfw/a/a_0002.png": photo(20),
    "lfw/b/b_0001.png": photo(30),
}
PAIRS = b"1\t1\na\t1\t2\na\t1\tb\t1\n"


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def pack(path, files=FILES):
    with tarfile.open(path, f"w:{MODES[path.name]}") as archive:
        for name, content in files.items():
            add(archive, name, content)
    return path


def kept(folder):
    return sorted(name for name in os.listdir(folder) if name.endswith(".tar"))


@pytest.mark.parametrize("name", MODES)
def test_a_compressed_tar_is_read_and_unpacked_once(tmp_path, monkeypatch, name):
    path = pack(tmp_path / name, {**FILES, "lfw/pairs.txt": PAIRS})
    data = open_training_set(path)
    assert [(image[0, 0, 0], label) for image, label in data] == [(10, 0), (20, 0), (30, 1)]
    assert len(kept(tmp_path)) == 1
    assert kept(tmp_path)[0].startswith(f".{name}.")
    monkeypatch.setattr(compressed, "_unpack", None)
    assert open_verification_set(path).same.tolist() == [True, False]


def test_another_archive_of_the_same_name_is_unpacked_anew(tmp_path):
    pack(tmp_path / "lfw.tgz")
    assert open_training_set(tmp_path / "lfw.tgz")[0][0][0, 0, 0] == 10
    pack(tmp_path / "lfw.tgz", {"a/0.png": photo(77), "b/0.png": photo(88)})
    assert open_training_set(tmp_path / "lfw.tgz")[0][0][0, 0, 0] == 77


def test_a_folder_that_is_read_only_is_left_alone(tmp_path):
    (tmp_path / "shared").mkdir()
    path = pack(tmp_path / "shared/lfw.tgz")
    path.parent.chmod(0o555)
    assert len(open_training_set(path)) == 3
    path.parent.chmod(0o755)
    assert os.listdir(tmp_path / "shared") == ["lfw.tgz"]
    assert len(kept(tmp_path / "cache/face_recognition")) == 1


def test_an_archive_cut_short_is_named_and_leaves_nothing(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    path = pack(tmp_path / "lfw.tgz", {**FILES, "lfw/b/b_0002.png": noise})
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"lfw\.tgz can't be unpacked, it is damaged or cut short"):
        open_training_set(path)
    assert os.listdir(tmp_path) == ["lfw.tgz"]


def test_an_archive_that_swells_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_ALWAYS_ALLOWED", 1 << 20)
    path = pack(tmp_path / "lfw.tar.xz", {**FILES, "lfw/b/b_0002.png": bytes(8_000_000)})
    with pytest.raises(DataError, match=r"unpacks to more than 1,048,576 bytes") as error:
        open_training_set(path)
    assert os.listdir(tmp_path) == ["lfw.tar.xz"]
    # The command that the error names does what it says.
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    assert len(open_training_set(tmp_path / "lfw_unpacked")) == 4


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png"])
def test_a_member_outside_is_refused_and_nothing_is_written_there(tmp_path, name):
    (tmp_path / "in").mkdir()
    path = pack(tmp_path / "in/lfw.tgz", {**FILES, name: b"1"})
    with pytest.raises(DataError, match=r"member '.*out\.png' lies outside"):
        open_training_set(path)
    assert sorted(os.listdir(tmp_path)) == ["in"]


def test_links_in_a_compressed_tar_are_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(photo(99))
    with tarfile.open(tmp_path / "lfw.tgz", "w:gz") as archive:
        for name, content in FILES.items():
            add(archive, name, content)
        link = tarfile.TarInfo("lfw/c/0.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    data = open_training_set(tmp_path / "lfw.tgz")
    assert [image[0, 0, 0] for image, _ in data] == [10, 20, 30]
    assert "1 links, whose files are elsewhere: " in data.notes[-1]


def test_a_compressed_file_that_is_no_tar_is_of_no_known_format(tmp_path):
    (tmp_path / "lfw.tar.xz").write_bytes(lzma.compress(b"a list of names\n" * 1000))
    with pytest.raises(DataError, match=r"lfw\.tar\.xz is of no known format"):
        open_training_set(tmp_path / "lfw.tar.xz")
    assert os.listdir(tmp_path) == ["lfw.tar.xz"]


def test_a_zip_with_backslashes_is_a_tree(tmp_path):
    with zipfile.ZipFile(tmp_path / "lfw.zip", "w") as archive:
        for name, content in {"lfw/a/": b"", **FILES}.items():
            archive.writestr(name.replace("/", "\\"), content)
    data = open_training_set(tmp_path / "lfw.zip")
    assert [data.name(i) for i in range(3)] == list(FILES)
    assert data.labels.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "name", ["a\\..\\..\\out.png", "\\\\host\\share\\0.png", "a\\0.png:x/../../b"]
)
def test_a_zip_with_backslashes_out_of_its_folder_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "lfw.zip", "w") as archive:
        archive.writestr("a\\0.png", photo(1))
        archive.writestr(name, photo(2))
    with pytest.raises(DataError, match="lies outside the archive's own folder"):
        open_training_set(tmp_path / "lfw.zip")


def test_a_file_of_a_zip_that_would_fill_the_memory_is_not_inflated(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_format, "_LARGEST", 1000)
    with zipfile.ZipFile(tmp_path / "lfw.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", photo(1))
        archive.writestr("b/0.png", bytes(1001))
    data = open_training_set(tmp_path / "lfw.zip")
    assert data[0][1] == 0
    with pytest.raises(ImageError, match=r"b/0\.png\): unpacks to 1,001 bytes"):
        data[1]
