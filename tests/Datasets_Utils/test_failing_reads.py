"""Files that fail, change or hang while they are read, and images that would fill the memory."""

import errno
import io
import os
import pickle
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import Dataset

from Config import Config
from Utils import workers
from Utils.Datasets_Utils import images as reading
from Utils.Datasets_Utils.formats.image_list import FileImages
from Utils.Datasets_Utils.formats.storage import MappedFile, PathTable
from Utils.Datasets_Utils.images import ImageError, decode_image, noting_flaws, read_encoded
from Utils.errors import DataError, RunError
from Utils.Training_Utils.reports import progress
from Utils.Training_Utils.trainer import Trainer
from Utils.workers import SteadyLoader, WorkerError


@pytest.fixture
def failing(monkeypatch):
    """A function: the next so many reads fail as a file server does that is started again."""
    left, pread, open_ = [0], os.pread, os.open
    monkeypatch.setattr(reading, "_PAUSES", (0.0, 0.0, 0.0))

    def fail_or(call):
        def called(*given):
            if left[0]:
                left[0] -= 1
                raise OSError(errno.ESTALE, "Stale file handle")
            return call(*given)

        return called

    monkeypatch.setattr(os, "pread", fail_or(pread))
    monkeypatch.setattr(os, "open", fail_or(open_))
    return lambda times: left.__setitem__(0, times)


def test_a_read_that_fails_now_and_then_is_tried_again_and_noted(tmp_path, failing):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"0123456789")
    file = MappedFile(path)
    for read in (lambda: read_encoded(path).tobytes(), lambda: file.read(0, 10).tobytes()):
        failing(3)
        with noting_flaws() as flaws:
            assert read() == b"0123456789"
        assert flaws == [f"{path}: read only when tried again, after 'Stale file handle'"]
        failing(4)
        with pytest.raises(ImageError, match=r"a.jpg.*Stale file handle"):
            read()
    with noting_flaws() as flaws:
        read_encoded(path)
    assert flaws == []


def test_what_is_no_file_or_has_no_possible_name_is_an_unreadable_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe.jpg: is no file"):
        read_encoded(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"a\x00b.jpg: cannot be opened \(embedded null"):
        read_encoded("a\0b.jpg")
    with pytest.raises(DataError, match=r"list.mat has a NUL byte in a name, 'b/\\x00c.jpg'"):
        FileImages(tmp_path, PathTable(["a.jpg", "b/\0c.jpg"]), tmp_path / "list.mat")


def test_a_file_that_changes_while_it_is_used_is_never_read_as_it_was_before(tmp_path):
    path = tmp_path / "train.rec"
    for change in (b"short", b"0123456789" * 3, b"9876543210"):
        path.write_bytes(b"0123456789")
        file = MappedFile(path)
        assert file.read(2, 3).tobytes() == b"234"
        time.sleep(0.02)  # file systems count time in steps
        path.write_bytes(change)  # the same file, which a map would show
        with pytest.raises(DataError, match=r"train.rec was changed while it was in use"):
            file.read(2, 3)
    file = MappedFile(path)
    assert file.read(2, 3).tobytes() == b"765"
    time.sleep(0.02)
    (tmp_path / "new").write_bytes(b"abcdefghij")
    os.replace(tmp_path / "new", path)  # another file: the one that is open stays
    assert file.read(2, 3).tobytes() == b"765"
    with pytest.raises(DataError, match="was changed"):  # as another process would open it
        pickle.loads(pickle.dumps(file)).read(2, 3)


class Odd(Dataset):
    """Reading an image takes long, or finds that the set has changed."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __len__(self):
        return 2

    def place(self, index):
        return f"/mnt/faces/{index}.jpg"

    def __getitem__(self, index):
        if not self.seconds:
            raise DataError("the set: was changed.\nIn two lines.")
        time.sleep(self.seconds * index)
        return index


def test_what_a_worker_finds_and_what_it_waits_for_is_said_plainly(monkeypatch):
    with pytest.raises(DataError) as error:
        list(SteadyLoader(Odd(), num_workers=1))
    assert str(error.value) == "the set: was changed.\nIn two lines."
    monkeypatch.setattr(workers, "PATIENCE", 1)
    with pytest.raises(
        WorkerError, match=r"for 1 seconds; .* still reading /mnt/faces/1.jpg. Does"
    ):
        list(SteadyLoader(Odd(seconds=60), num_workers=1))


def test_a_run_ends_where_more_than_a_tenth_can_not_be_read(tmp_path, monkeypatch, capsys):
    rng, faces = np.random.default_rng(0), tmp_path / "faces"
    for person in range(4):
        (faces / str(person)).mkdir(parents=True)
        for number in range(10):
            pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(faces / str(person) / f"{number}.png")
    config = Config(
        train_dataset="Mine",
        train_dataset_path=str(faces),
        **{"input_size": (32, 32), "feature_dim": 8, "batch_size": 8, "total_epoch": 1},
        **{"milestones": (), "log_freq": 1, "num_workers": 0, "para_adj_mode": True},
        **{"use_visdom": False, "device": "cpu"},
    )
    monkeypatch.setattr(progress, "_FEW", 11)
    trainer = Trainer(config)
    for path in faces.glob("*/[3-5].png"):
        path.write_bytes(b"")
    for batch in trainer.loader.epoch(0):
        trainer.progress._unreadable += batch.unreadable
    with pytest.raises(RunError, match=r"12 images could not be read: .*check_dataset` finds all"):
        trainer.progress.report_flaws([])
    assert "replaced by the next one (5 so far): " in capsys.readouterr().out


# --- images that would fill the memory --------------------------------------------------------


def chunk(name, content):
    end = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + end


def bombs():
    """Headers of small files that say 30,000×30,000 pixels, by format."""
    small, found = Image.new("RGB", (16, 16), (9, 99, 199)), {}
    for kind in ("JPEG", "BMP", "TIFF", "GIF", "PPM"):
        file = io.BytesIO()
        small.save(file, kind)
        found[kind] = bytearray(file.getvalue())
    side = 30_000
    frame = found["JPEG"].index(b"\xff\xc0")
    struct.pack_into(">HH", found["JPEG"], frame + 5, side, side)
    struct.pack_into("<ii", found["BMP"], 18, side, side)
    struct.pack_into("<HH", found["GIF"], 6, side, side)
    found["PPM"] = bytearray(b"P6\n30000 30000\n255\n" + bytes(99))
    entries = struct.unpack_from("<I", found["TIFF"], 4)[0]
    for at in range(entries + 2, entries + 2 + 12 * 20, 12):
        if struct.unpack_from("<H", found["TIFF"], at)[0] in (256, 257):
            struct.pack_into("<HHII", found["TIFF"], at, *(struct.unpack_from("<H", found["TIFF"],
                             at)[0], 4, 1, side))  # fmt: skip
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    found["PNG"] = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)
    found["HDR"] = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n" + bytes(99)
    return found.items()


@pytest.mark.parametrize(("kind", "content"), bombs())
def test_an_image_that_says_a_thousand_million_pixels_is_refused_before_it_is_decoded(
    kind, content
):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"a.img: .* bytes that say they are .* pixels; at most"):
        decode_image(bytes(content), "a.img")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
