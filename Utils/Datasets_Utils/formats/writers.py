"""Writing data sets: a record file, tar shards, an LMDB database, or a folder tree.

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
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.lmdb_set import SUFFIXES, values
from Utils.Datasets_Utils.formats.record_set import (
    EXACT_FLOATS,
    FIRST,
    HEADER,
    LAST,
    MAGIC,
    MAX_LENGTH,
    MIDDLE,
    PART,
    WHOLE,
    Record,
    scan_records,
)
from Utils.Datasets_Utils.formats.shards import LABEL_SUFFIX, write_shard_index
from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.Datasets_Utils.images import image_size, image_suffix
from Utils.errors import DataError, RunError
from Utils.files import atomic_path, not_written

SHARD_SIZE = 10_000
_LINE_ENDS = re.compile(r"[\r\n]")
_COMMITTED = 1000  # images of an LMDB database that are written together


class Writer(ABC):
    """Writes N images one after the other.

    labels: ints N, in the order of the images. folder: for other files of the set.
    done: how many images are already written.
    """

    def __init__(self, target: Path, labels: np.ndarray, folder: Path) -> None:
        self.target = target
        self.labels = labels
        self.folder = folder
        self.done = 0

    @abstractmethod
    def name(self, number: int, encoded: bytes) -> str:
        """The name of image `number` in the target, for a list or pairs."""

    @abstractmethod
    def write(self, number: int, encoded: bytes) -> None:
        """Write image `number`, whose bytes are not empty."""

    @abstractmethod
    def finish(self, source_names: Iterable[str]) -> None:
        """Complete the target and give it its own name; source_names: of the N images."""

    def close(self) -> None:  # noqa: B027 - not every writer holds files
        """Close open files; an unfinished target can be resumed."""


class RecordWriter(Writer):
    """`X.rec` with `X.idx`, `X.lst` and `property`, as MXNet and insightface read them.

    The layout is insightface's where the images are sorted by identity; else, and if there are
    more images than float32 counts exactly, it is the plain one (see record_set.py).
    """

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        super().__init__(target, labels, target.parent)
        steps = np.diff(labels, prepend=0)
        self.with_identities = bool(labels[0] == 0 and np.all((steps == 0) | (steps == 1)))
        self.with_identities &= bool(len(labels) + labels[-1] < EXACT_FLOATS)
        self._growing = unfinished(target)
        self._growing.touch()
        self._offsets, end = whole_records(MappedFile(self._growing))
        os.truncate(self._growing, end)
        self._file = open(self._growing, "ab")  # noqa: SIM115 - kept until finish
        if self.with_identities and not self._offsets:
            images, identities = len(labels), int(labels[-1]) + 1
            self._append(0, [images + 1, images + 1 + identities])
        self.done = len(self._offsets) - self.with_identities
        if self.done > len(labels):  # it was interrupted among the records of identities
            self.done = len(labels)
            self._file.truncate(self._offsets[self.done + 1])
            self._file.seek(0, os.SEEK_END)
            del self._offsets[self.done + 1 :]

    def name(self, number: int, encoded: bytes) -> str:
        return str(number + self.with_identities)

    def write(self, number: int, encoded: bytes) -> None:
        if number == 0:
            height, width = image_size(encoded) or (0, 0)
            with atomic_path(self.folder / "property") as temporary:
                temporary.write_text(f"{self.labels.max() + 1},{height},{width}\n")
        self._append(number + self.with_identities, [self.labels[number]], encoded)

    def finish(self, source_names: Iterable[str]) -> None:
        if self.with_identities:
            counts = np.bincount(self.labels)
            ends = np.cumsum(counts) + 1  # keys of images begin at 1
            for identity, end in enumerate(ends):
                self._append(len(self.labels) + 1 + identity, [end - counts[identity], end])
        self.close()
        index = (f"{key}\t{offset}\n" for key, offset in enumerate(self._offsets))
        _write_lines(self.target.with_suffix(".idx"), index)
        images = enumerate(zip(self.labels, source_names, strict=True), self.with_identities)
        # A name of two lines must not become two images.
        lines = (f"{key}\t{label}\t{_LINE_ENDS.sub(' ', name)}\n" for key, (label, name) in images)
        _write_lines(self.target.with_suffix(".lst"), lines)
        os.replace(self._growing, self.target)

    def close(self) -> None:
        self._file.close()

    def _append(self, key: int, labels: list, content: bytes = b"") -> None:
        flag = 0 if len(labels) == 1 else len(labels)
        packed = pack_record(Record(flag, np.array(labels, np.float32), key, 0, content))
        self._offsets.append(self._file.tell())
        self._file.write(packed)


def pack_record(record: Record) -> bytes:
    """The bytes of a record in a file: the inverse of `read_record`."""
    labels = np.asarray(record.labels, "<f4")
    if record.flag not in (0, len(labels)):
        raise ValueError(f"flag is {record.flag} for {len(labels)} labels; expected 0 or as many")
    label = 0.0 if record.flag else float(labels[0])
    header = HEADER.pack(record.flag, label, record.id, record.id2)
    vector = labels.tobytes() if record.flag else b""
    return pack_payload(b"".join((header, vector, bytes(record.content))))


def pack_payload(payload: bytes) -> bytes:
    """A payload as one part, or as several where it has the magic number at a multiple of 4.

    Raises DataError for one that is too long for the format.
    """
    if len(payload) > MAX_LENGTH:
        raise DataError(f"a record of {len(payload)} bytes is too long; the limit is 512 MB.")
    words = np.frombuffer(payload, "<u4", len(payload) // 4)
    cuts = (4 * np.flatnonzero(words == MAGIC)).tolist()
    kinds = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    packed = bytearray()
    for kind, cut, end in zip(kinds, [-4, *cuts], [*cuts, len(payload)], strict=True):
        part = payload[cut + 4 : end]
        packed += PART.pack(MAGIC, kind << 29 | len(part)) + part
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def whole_records(file: MappedFile) -> tuple[list[int], int]:
    """(offsets of the complete records, where the last ends) of a file that may be truncated."""
    offsets, whole = [], file.size % 4 == 0  # else it is truncated in the last record's padding
    try:
        for offset in scan_records(file):
            offsets.append(offset)
    except DataError:
        whole = False
    if whole:
        return offsets, file.size
    # The last record found may be the truncated one.
    return offsets[:-1], offsets[-1] if offsets else 0


class ShardWriter(Writer):
    """Tar shards by a pattern like `folder/%06d.tar`, with an index beside them."""

    def __init__(self, target: Path, labels: np.ndarray, shard_size: int = SHARD_SIZE) -> None:
        super().__init__(target, labels, target.parent)
        self.shard_size = shard_size
        shard = 0
        while self._shard_path(shard).exists():
            shard += 1
        self.done = min(shard * shard_size, len(labels))
        self._tar: tarfile.TarFile | None = None

    def name(self, number: int, encoded: bytes) -> str:
        return f"{self._shard_path(number // self.shard_size).name}/{_file_name(number, encoded)}"

    def write(self, number: int, encoded: bytes) -> None:
        shard, within = divmod(number, self.shard_size)
        path = self._shard_path(shard)
        hidden = path.with_name(f".{path.name}")
        if within == 0:
            self._tar = tarfile.open(hidden, "w")  # noqa: SIM115 - kept for a shard
        name = _file_name(number, encoded)
        self._add(name, encoded)
        self._add(Path(name).stem + LABEL_SUFFIX, str(self.labels[number]).encode())
        if within == self.shard_size - 1 or number == len(self.labels) - 1:
            self._tar.close()
            os.replace(hidden, path)

    def finish(self, source_names: Iterable[str]) -> None:
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


class LmdbWriter(Writer):
    """An LMDB database in one file, in the layout of HSFace's converter (see lmdb_set)."""

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        import lmdb

        super().__init__(target, labels, target.parent)
        self._growing = unfinished(target)
        self._full = lmdb.MapFullError
        self._failed = lmdb.Error
        try:
            self._database = lmdb.open(str(self._growing), subdir=False, lock=False, meminit=False)
        except lmdb.Error as error:
            raise RunError(not_written(target, error)) from None
        # Images are committed in their order; __len__ and the like come last.
        self.done = min(self._database.stat()["entries"], len(labels))
        self._batch: list[tuple[bytes, bytes]] = []

    def name(self, number: int, encoded: bytes) -> str:
        return str(number)

    def write(self, number: int, encoded: bytes) -> None:
        sample = values.pack_sample(encoded, int(self.labels[number]))
        self._batch.append((str(number).encode(), sample))
        if len(self._batch) == _COMMITTED:
            self._commit()

    def finish(self, source_names: Iterable[str]) -> None:
        keys = [str(number).encode() for number in range(len(self.labels))]
        self._batch += [
            (values.KEYS, values.pack_keys(keys)),
            (values.LENGTH, values.pack_number(len(keys))),
            (values.CLASSES, values.pack_number(int(self.labels.max()) + 1)),
        ]
        self.close()
        os.replace(self._growing, self.target)

    def close(self) -> None:
        self._commit()
        self._database.close()

    def _commit(self) -> None:
        """Write the batch, all of it or nothing, in a map that grows until it fits."""
        while self._batch:
            try:
                with self._database.begin(write=True) as transaction:
                    for key, value in self._batch:
                        transaction.put(key, value)
                self._batch = []
            except self._full:
                self._database.set_mapsize(2 * self._database.info()["map_size"])
            except self._failed as error:
                raise RunError(not_written(self.target, error)) from None


class FolderWriter(Writer):
    """A folder for each class, named by its label with zeros before it, so that it sorts right."""

    def __init__(self, target: Path, labels: np.ndarray) -> None:
        super().__init__(target, labels, target)
        target.mkdir(exist_ok=True)
        self.done = sum(not file.name.startswith(".") for file in target.glob("*/*"))

    def name(self, number: int, encoded: bytes) -> str:
        width = max(6, len(str(self.labels.max())))
        return f"{self.labels[number]:0{width}d}/{_file_name(number, encoded)}"

    def write(self, number: int, encoded: bytes) -> None:
        path = self.target / self.name(number, encoded)
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}")
        part.write_bytes(encoded)
        os.replace(part, path)

    def finish(self, source_names: Iterable[str]) -> None:
        """Each image has its own name already."""


def choose_writer(target: Path, labels: np.ndarray, shard_size: int) -> Writer:
    """The writer for a target's name, which `check_target` has accepted."""
    if "%" in target.name:
        return ShardWriter(target, labels, shard_size)
    if target.suffix in SUFFIXES:
        return LmdbWriter(target, labels)
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
    elif target.suffix in SUFFIXES and find_spec("lmdb") is None:
        raise RunError(
            f"{target}: writing an LMDB database needs the package lmdb, which is not installed: "
            f"python -m pip install lmdb (or make extras). Reading one needs no package."
        )
    elif target.suffix in (".zip", ".tar", ".bin", ".blp", ".lst", ".txt"):
        raise RunError(
            f"{target}: training images can't be written as {target.suffix}; expected a folder, "
            f"a name in .rec or .lmdb, or a pattern of shards like {target.parent / '%06d.tar'}."
        )


def siblings(target: Path) -> list[Path]:
    """The files beside a record file: its index, its list, and the sizes of the set."""
    return [
        *(target.with_suffix(suffix) for suffix in (".idx", ".lst")),
        target.with_name("property"),
    ]


def unfinished(target: Path) -> Path:
    """A record file that is not complete yet."""
    return target.with_name(f".{target.name}.part")


def _file_name(number: int, encoded: bytes) -> str:
    return f"{number:09d}{image_suffix(encoded)}"


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape", newline="\n") as f,
    ):
        f.writelines(lines)
