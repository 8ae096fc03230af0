"""Writing data sets: a record file, tar shards, or a folder tree, a class for each.

Images are written in order from number 0, their bytes unchanged. Where an earlier writer was
interrupted, a new one for the same target has in `done` how many images are safely written, and
continues after them. An unfinished file has another name until it is complete.
"""

from __future__ import annotations

import io
import os
import re
import tarfile
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Utils.Datasets_Utils.formats.recordio import Record, pack_record, whole_records, write_index
from Utils.Datasets_Utils.formats.shards import LABEL_SUFFIX, write_shard_index
from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.Datasets_Utils.images import image_size, image_suffix
from Utils.errors import DataError, RunError
from Utils.files import atomic_path

SHARD_SIZE = 10_000
_EXACT_FLOATS = 1 << 24  # labels are float32: whole numbers below it are exact
_DIGITS = 9  # of an image's number in its name


class Writer(ABC):
    """Writes N images one after the other.

    labels: ints N, in the order of the images. done: how many images are already written.
    """

    done = 0

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        self.target = target
        self.labels = labels

    @abstractmethod
    def name(self, number: int, encoded: bytes) -> str:
        """The name of image `number` in the target, for a list or pairs."""

    def write(self, number: int, encoded: bytes, source_name: str) -> None:
        """Write image `number`; source_name: its name in the source. Raises DataError for an empty
        file: readers of some formats skip it, and number the images after it differently."""
        if not encoded:
            raise DataError(f"image {number}, {source_name}, is empty; remove it from the source.")
        self._write(number, encoded, source_name)

    @abstractmethod
    def _write(self, number: int, encoded: bytes, source_name: str) -> None:
        """Write an image that is not empty."""

    @abstractmethod
    def finish(self) -> None:
        """Complete the target and give it its own name."""

    def close(self) -> None:  # noqa: B027 - not every writer holds files
        """Close open files; an unfinished target can be resumed."""

    @property
    @abstractmethod
    def folder(self) -> Path:
        """The folder for other files of the set."""


class RecordWriter(Writer):
    """`X.rec` with `X.idx`, `X.lst` and `property`, as MXNet and insightface read them.

    The layout is insightface's where the images are sorted by identity; else, and where there are
    more images than float32 counts exactly, it is the plain one (see record_set.py).
    """

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        super().__init__(target, labels)
        steps = np.diff(labels, prepend=0)
        self.with_identities = bool(np.all((steps == 0) | (steps == 1))) and labels[0] == 0
        self.with_identities &= len(labels) + labels[-1] < _EXACT_FLOATS
        self._growing, self._names = _unfinished(target)
        self._offsets, end = whole_records(MappedFile(_touched(self._growing)))
        os.truncate(self._growing, end)
        self._file = open(self._growing, "ab")  # noqa: SIM115 - kept until finish
        if self.with_identities and not self._offsets:
            images, identities = len(labels), int(labels[-1]) + 1
            self._append(0, [images + 1, images + 1 + identities])
        self.done = min(len(self._offsets) - self.with_identities, len(labels))
        self._name_file = _lines_kept(self._names, self.done)
        self.done = min(self.done, _count_lines(self._names))
        self._drop_after(self.done + self.with_identities)

    @property
    def folder(self) -> Path:
        return self.target.parent

    def name(self, number: int, encoded: bytes) -> str:
        return str(number + self.with_identities)

    def _write(self, number: int, encoded: bytes, source_name: str) -> None:
        if number == 0:
            self._write_property(encoded)
        key = number + self.with_identities
        self._append(key, [self.labels[number]], encoded)
        line = f"{key}\t{self.labels[number]}\t{source_name}\n"
        self._name_file.write(line.encode("utf-8", "surrogateescape"))

    def finish(self) -> None:
        if self.with_identities:
            counts = np.bincount(self.labels)
            ends = np.cumsum(counts) + 1  # keys of images begin at 1
            for identity, end in enumerate(ends):
                self._append(len(self.labels) + 1 + identity, [end - counts[identity], end])
        self.close()
        index = self.target.with_suffix(".idx")
        with atomic_path(index) as temporary, open(temporary, "wb") as f:
            write_index(f, range(len(self._offsets)), self._offsets)
        os.replace(self._names, self.target.with_suffix(".lst"))
        os.replace(self._growing, self.target)

    def close(self) -> None:
        self._file.close()
        self._name_file.close()

    def _append(self, key: int, labels: list, content: bytes = b"") -> None:
        flag = 0 if len(labels) == 1 else len(labels)
        packed = pack_record(Record(flag, np.array(labels, np.float32), key, 0, content))
        self._offsets.append(self._file.tell())
        self._file.write(packed)

    def _drop_after(self, records: int) -> None:
        """Truncate the file after so many records."""
        if records < len(self._offsets):
            self._file.truncate(self._offsets[records])
            self._file.seek(0, os.SEEK_END)
            del self._offsets[records:]

    def _write_property(self, encoded: bytes) -> None:
        height, width = image_size(encoded) or (0, 0)
        with atomic_path(self.folder / "property") as temporary:
            temporary.write_text(f"{self.labels.max() + 1},{height},{width}\n")


class ShardWriter(Writer):
    """Tar shards by a pattern like `folder/%06d.tar`, with an index beside them."""

    def __init__(self, target: Path, labels: np.ndarray, shard_size: int = SHARD_SIZE) -> None:
        super().__init__(target, labels)
        self.shard_size = shard_size
        shard = 0
        while self._shard_path(shard).exists():
            shard += 1
        self.done = min(shard * shard_size, len(labels))
        self._tar: tarfile.TarFile | None = None

    @property
    def folder(self) -> Path:
        return self.target.parent

    def name(self, number: int, encoded: bytes) -> str:
        shard = self._shard_path(number // self.shard_size)
        return f"{shard.name}/{_numbered(number)}{image_suffix(encoded)}"

    def _write(self, number: int, encoded: bytes, source_name: str) -> None:
        shard, within = divmod(number, self.shard_size)
        if within == 0:
            self._tar = tarfile.open(self._hidden(shard), "w")  # noqa: SIM115 - kept for a shard
        key = _numbered(number)
        self._add(key + image_suffix(encoded), encoded)
        self._add(key + LABEL_SUFFIX, str(self.labels[number]).encode())
        if within == self.shard_size - 1 or number == len(self.labels) - 1:
            self._tar.close()
            os.replace(self._hidden(shard), self._shard_path(shard))

    def finish(self) -> None:
        write_shard_index(self.folder)

    def close(self) -> None:
        if self._tar:
            self._tar.close()

    def _add(self, name: str, content: bytes) -> None:
        # Times and owners keep a TarInfo's defaults: the same images give the same shard.
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _shard_path(self, shard: int) -> Path:
        return self.folder / (self.target.name % shard)

    def _hidden(self, shard: int) -> Path:
        return self.folder / f".{self.target.name % shard}"


class FolderWriter(Writer):
    """A folder for each class, named by its label with zeros before it, so that it sorts right."""

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        super().__init__(target, labels)
        target.mkdir(exist_ok=True)
        self.done = 0
        for folder in target.iterdir():
            if folder.is_dir():
                self.done += sum(not file.name.startswith(".") for file in folder.iterdir())

    @property
    def folder(self) -> Path:
        return self.target

    def name(self, number: int, encoded: bytes) -> str:
        width = max(6, len(str(self.labels.max())))
        return f"{self.labels[number]:0{width}d}/{_numbered(number)}{image_suffix(encoded)}"

    def _write(self, number: int, encoded: bytes, source_name: str) -> None:
        path = self.target / self.name(number, encoded)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}")
        part.write_bytes(encoded)
        os.replace(part, path)

    def finish(self) -> None:
        """Each image has its own name already."""


def choose_writer(target: Path, labels: np.ndarray, shard_size: int) -> Writer:
    """The writer for a target's name, which `check_target` has accepted."""
    if "%" in target.name:
        return ShardWriter(target, labels, shard_size)
    return RecordWriter(target, labels) if target.suffix == ".rec" else FolderWriter(target, labels)


def check_target(target: Path, images: int, shard_size: int) -> None:
    """Raise RunError for a name that no writer accepts."""
    if "%" in target.name:
        pattern = re.fullmatch(r"[^%]*%0(\d)d[^%]*\.tar", target.name)
        # Without the zeros, or with too few, shards would not sort in their order.
        if not pattern or images > shard_size * 10 ** int(pattern[1]):
            raise RunError(
                f"{target} is no pattern of names for {images:,} images in shards of "
                f"{shard_size:,}; expected one like {target.parent / '%06d.tar'}."
            )
    elif target.suffix in (".zip", ".tar", ".bin", ".blp", ".lst", ".txt"):
        raise RunError(
            f"{target}: training images can't be written as {target.suffix}; expected a folder, "
            f"a name in .rec, or a pattern of shards like {target.parent / '%06d.tar'}."
        )


def siblings(target: Path) -> list[Path]:
    """The files beside a record file: its index, its list, and the sizes of the set."""
    return [
        *(target.with_suffix(suffix) for suffix in (".idx", ".lst")),
        target.with_name("property"),
    ]


def discard_unfinished(target: Path) -> None:
    """Remove the unfinished files of a conversion, so that the next one starts at image 0."""
    for part in _unfinished(target):
        part.unlink(missing_ok=True)


def _unfinished(target: Path) -> tuple[Path, Path]:
    """The unfinished record file and its unfinished list."""
    return target.with_name(f".{target.name}.part"), target.with_name(f".{target.name}.names")


def _numbered(number: int) -> str:
    return f"{number:0{_DIGITS}d}"


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _lines_kept(path: Path, lines: int) -> BinaryIO:
    """A text file opened to append after that many complete lines."""
    end = 0
    with suppress(FileNotFoundError), open(path, "rb") as f:
        for _ in range(lines):
            line = f.readline()
            end += len(line) if line.endswith(b"\n") else 0
    file = open(path, "ab")  # noqa: SIM115 - the caller's
    file.truncate(end)
    file.seek(end)
    return file


def _count_lines(path: Path) -> int:
    with open(path, "rb") as f:
        return sum(1 for _ in f)
