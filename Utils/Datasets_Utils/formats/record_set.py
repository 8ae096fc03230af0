"""Training sets in a record file: `train.rec` and `train.idx`, as insightface distributes them.

There are two layouts. In insightface's, record 0 has no image but the labels [a, b]; the keys 1 to
a-1 are images with their class as label, and the keys a to b-1 are one record for each identity
with the range of its images' keys. In the plain layout of MXNet's im2rec, every record is an image,
and its first label is its class.

The file is MXNet's RecordIO container (dmlc-core, `recordio.h`), read and written without MXNet. A
record consists of one or more parts. A part is the magic number, a word with a flag in its upper 3
bits and the length in its lower 29, that many bytes, and zeros up to the next multiple of 4:

    0xced7230a | flag << 29 | length | payload | padding

Flag 0 is a whole record; 1, 2 and 3 are its first, a middle and its last part. A record is cut
where its payload has the magic number at a multiple of 4, and the number itself is left out, so
that a scan can find the next record in a damaged file.

The payload of an image record is the header of `mxnet.recordio.pack`, then the image file:

    uint32 flag | float32 label | uint64 id | uint64 id2 | `flag` float32 labels, if flag > 0
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import litter_in
from Utils.Datasets_Utils.formats.storage import (
    MappedFile,
    are_columns,
    cached_arrays,
    progress_bar,
)
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.text import COMMAND, mended, quoted
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError
from Utils.files import reading

MAGIC = 0xCED7230A
MAX_LENGTH = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)
EXACT_FLOATS = 1 << 24  # labels are float32: whole numbers below it are exact

PART = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
_MAGIC_BYTES = struct.pack("<I", MAGIC)
# The beginning of an image record up to its second label.
_BEGINNING = np.dtype(
    [(name, "<u4") for name in ("magic", "word", "flag")]
    + [("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("labels", "<f4", 2)]
)
_GATHERED = 1 << 16  # records whose headers are read together
_PROBED = 256  # evenly spaced records that are compared with what an index or identity says


class Record(NamedTuple):
    """flag: 0 for one label, else how many labels. labels: float32. content: the image file; may be
    empty. id, id2: two numbers that readers do not need."""

    flag: int
    labels: np.ndarray
    id: int
    id2: int
    content: bytes | np.ndarray


def read_record(file: MappedFile, offset: int) -> Record:
    """The record at an offset. Raises ImageError, naming file and offset, if damaged."""
    payload = read_payload(file, offset)
    if len(payload) < HEADER.size:
        raise _damaged(file, offset, f"its {len(payload)} bytes are too few for a header")
    flag, label, id_, id2 = HEADER.unpack_from(payload)
    end = HEADER.size + 4 * flag
    if end > len(payload):
        raise _damaged(file, offset, f"its header says {flag} labels, more than it holds")
    labels = np.frombuffer(payload[HEADER.size : end], "<f4") if flag else np.float32([label])
    return Record(flag, labels, id_, id2, payload[end:])


def read_payload(file: MappedFile, offset: int) -> bytes | np.ndarray:
    """The bytes of the record at an offset, its parts joined."""
    kind, start, length = _read_part(file, offset)
    if kind == WHOLE:
        return file.read(start, length)
    if kind != FIRST:
        raise _damaged(file, offset, "it is the continuation of another record")
    parts = [file.read(start, length).tobytes()]
    while kind != LAST:
        kind, start, length = _read_part(file, _aligned(start + length))
        if kind not in (MIDDLE, LAST):
            raise _damaged(file, offset, "its last part is missing")
        parts.append(file.read(start, length).tobytes())
    return _MAGIC_BYTES.join(parts)


def scan_records(file: MappedFile) -> Iterator[int]:
    """The offset of each record, found by a scan of the file.

    Raises DataError, naming file and byte, if a record is damaged or truncated.
    """
    offset, begun = 0, None
    view = memoryview(file.bytes)
    while offset < file.size:
        if offset + PART.size > file.size:
            raise DataError(f"{file.path}, byte {offset}: the file is cut short in a record.")
        magic, word = PART.unpack_from(view, offset)
        if magic != MAGIC:
            raise DataError(
                f"{file.path}, byte {offset}: {magic:#010x} stands where a record must begin with "
                f"{MAGIC:#010x}; the file is damaged or no record file."
            )
        kind, length = word >> 29, word & MAX_LENGTH
        if kind in (WHOLE, FIRST) and begun is None:
            yield offset
        elif kind not in (MIDDLE, LAST) or begun is None:
            raise DataError(f"{file.path}, byte {offset}: a record of several parts is broken.")
        begun = offset if kind in (FIRST, MIDDLE) else None
        end = offset + PART.size + length
        if end > file.size:
            raise DataError(
                f"{file.path}, byte {offset}: the record there should end at byte {end}, but the "
                f"file is cut short at {file.size}."
            )
        offset = _aligned(end)
    if begun is not None:
        raise DataError(f"{file.path}, byte {begun}: the rest of the record there is missing.")


def _read_part(file: MappedFile, offset: int) -> tuple[int, int, int]:
    """(flag, offset of the payload, its length) of the part at an offset."""
    magic, word = PART.unpack_from(file.read(offset, PART.size))
    if magic != MAGIC:
        raise _damaged(file, offset, f"it begins with {magic:#010x} in place of {MAGIC:#010x}")
    return word >> 29, offset + PART.size, word & MAX_LENGTH


def _aligned(offset: int) -> int:
    return (offset + 3) // 4 * 4


def _damaged(file: MappedFile, offset: int, why: str) -> ImageError:
    return ImageError(
        f"{file.path}, byte {offset}: no record, {why}; the file is damaged or its index belongs "
        "to another file"
    )


class RecordImages(ImageStore):
    """The images of a record file, each read at its offset.

    file: the .rec file. keys, offsets: int64 N, ascending keys of the records with images.
    """

    def __init__(self, file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> None:
        self.source = file.path
        self.file = file
        self.keys = keys
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets)

    def encoded(self, row: int) -> bytes | np.ndarray:
        return read_record(self.file, int(self.offsets[row])).content

    def name(self, row: int) -> str:
        return str(self.keys[row])

    def place(self, row: int) -> str:
        return f"{self.source}, byte {self.offsets[row]} (key {self.name(row)})"

    def rows(
        self, names: Sequence[str], file_list: Path, encoding: str = "", skip_bad: bool = False
    ) -> np.ndarray:
        """As in `ImageStore`; names are keys."""
        is_key = [name.isdecimal() and len(name) < 19 for name in names]
        wanted = np.array([int(n) if key else -1 for n, key in zip(names, is_key, strict=True)])
        rows = np.searchsorted(self.keys, wanted).clip(max=len(self) - 1)
        missing = np.flatnonzero(self.keys[rows] != wanted)
        if missing.size and not skip_bad:
            what = "its images' keys" if all(is_key) else "'key  label', as for a record file"
            command = f"{COMMAND} {quoted(file_list)} {mended(file_list)}"
            raise DataError(
                f"{file_list}: {missing.size} of {len(names)} names are no keys of images of "
                f"{self.source}, the first: {names[missing[0]]}; expected {what}. "
                f"`{command} --images {quoted(self.source)} --skip_bad` writes a list without them."
            )
        rows[missing] = -1
        return rows


def find_record_file(path: Path) -> Path | None:
    """The .rec file at a path: the path itself, or the file in that folder; None without one."""
    if path.is_dir():
        records = sorted(p for p in path.glob("*.rec") if not litter_in(p.name))
        named = path / "train.rec"
        return named if named in records else records[0] if len(records) == 1 else None
    return path if path.suffix == ".rec" and path.is_file() else None


def is_records(path: Path) -> bool:
    """Whether a path is a record file, or a folder with one."""
    return find_record_file(path) is not None


def open_records(path: Path) -> Labelled:
    """The images of a record file, or of the one in a folder, and their labels.

    Raises DataError, naming file and byte, for a damaged file or an index that does not fit it.
    """
    file = MappedFile(find_record_file(path))
    keys, offsets = _index(file)
    try:
        _check_index(file, keys, offsets)
        return _insightface_layout(file, keys, offsets) or _scanned_layout(file, keys, offsets)
    except ImageError as error:
        raise DataError(str(error)) from None


def _index(file: MappedFile) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64, sorted by key: from the .idx file, or without one from a scan."""
    path = file.path.with_suffix(".idx")
    if path.is_file():
        keys, offsets = _read_index(path)
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if twice.size:
            raise DataError(f"{path}: key {keys[twice[0]]} is in it twice.")
        return keys, offsets
    stored = file.path.with_suffix(".offsets.npz")
    found = cached_arrays(
        stored,
        [file.path],
        partial(_scan_offsets, file),
        lambda kept: are_columns(len(kept["offsets"]), kept["offsets"]),
    )
    return np.arange(len(found["offsets"])), found["offsets"]


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys and offsets (int64) of an .idx file. Raises DataError naming the file and line."""
    with reading(path, "index"):
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the index is empty.")
        try:
            keys, offsets = np.loadtxt(path, np.int64, comments=None, ndmin=2).T
            return keys, offsets
        except ValueError:
            lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    entry = re.compile(r"\s*\d{1,18}\s+\d{1,18}\s*", re.ASCII)
    number, line = next(item for item in enumerate(lines, 1) if not entry.fullmatch(item[1]))
    raise DataError(f"{path}, line {number}: {line[:80]!r} is not 'key<TAB>offset'.")


def _scan_offsets(file: MappedFile) -> dict[str, np.ndarray]:
    offsets = array("q")
    with progress_bar(f"Indexing {file.path.name}", file.size, "B") as bar:
        for offset in scan_records(file):
            offsets.append(offset)
            bar.update(offset - bar.n)
    return {"offsets": np.array(offsets, np.int64)}


def _check_index(file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> None:
    """Raise DataError for offsets outside the file, ImageError for probed ones that are not those
    of records."""
    if len(offsets) == 0:
        raise DataError(f"{file.path} holds no records.")
    outside = np.flatnonzero((offsets < 0) | (offsets >= file.size))
    if outside.size:
        first = outside[0]
        raise DataError(
            f"{file.path.with_suffix('.idx')}: key {keys[first]} lies at byte {offsets[first]}, "
            f"but {file.path} ends at {file.size}; {outside.size} of {len(offsets)} keys are past "
            f"its end. The file is cut short, or the index belongs to another one."
        )
    probes = np.linspace(0, len(offsets) - 1, min(len(offsets), _PROBED)).astype(int)
    for offset in (*offsets[probes].tolist(), int(offsets.max())):
        read_payload(file, offset)


def _insightface_layout(file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> Labelled | None:
    """Images and labels by the identity records, without reading every image's header; None if
    there are no such records, or where they contradict the images' own labels."""
    first = read_record(file, int(offsets[0]))
    if keys[0] != 0 or first.flag < 2 or len(first.content) or len(keys) >= EXACT_FLOATS:
        return None
    begin, end = first.labels[:2].astype(np.int64)
    identities = slice(*np.searchsorted(keys, (begin, end)))
    ranges = _beginnings(file, offsets[identities])["labels"].astype(np.int64)
    images = slice(1, identities.start)
    starts, ends = np.searchsorted(keys, ranges).T
    counts = ends - starts
    covered = len(ranges) and starts[0] == 1 and ends[-1] == images.stop
    if not covered or np.any(starts[1:] != ends[:-1]) or np.any(counts <= 0):
        return None
    labels = np.repeat(np.arange(len(counts)), counts)
    probed = np.linspace(0, len(counts) - 1, min(len(counts), _PROBED)).astype(int)
    for at in np.concatenate((starts[probed], ends[probed] - 1)).tolist():
        if read_record(file, int(offsets[at])).labels[0] != labels[at - 1]:
            return None
    return Labelled(RecordImages(file, keys[images], offsets[images]), labels)


def _scanned_layout(file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> Labelled:
    """Images and labels by each record's own header, in one scan whose result is stored."""
    index = file.path.with_suffix(".idx")
    sources = [file.path, *([index] if index.is_file() else [])]
    scanned = cached_arrays(
        file.path.with_suffix(".labels.npz"),
        sources,
        partial(_scan_labels, file, offsets),
        lambda kept: are_columns(len(offsets), kept["labels"]),
    )
    labels = scanned["labels"]
    image = labels >= 0  # header records have none
    images = RecordImages(file, keys[image], offsets[image])
    return Labelled(images, labels[image].astype(np.int64))


def _scan_labels(file: MappedFile, offsets: np.ndarray) -> dict[str, np.ndarray]:
    """{"labels": int32, -1 for a record without an image}."""
    labels = np.empty(len(offsets), np.int32)
    with progress_bar(f"Reading labels of {file.path.name}", len(offsets), "image") as bar:
        for start in range(0, len(offsets), _GATHERED):
            block = offsets[start : start + _GATHERED]
            beginnings = _beginnings(file, block)
            vector = beginnings["flag"] > 0
            label = np.where(vector, beginnings["labels"][:, 0], beginnings["label"])
            length = beginnings["word"] & MAX_LENGTH
            header = HEADER.size + 4 * beginnings["flag"].astype(np.int64)
            for offset in block[length < header].tolist():
                read_record(file, offset)  # raises, and says why
            empty = length == header
            _check_labels(file, block, label, empty)
            labels[start : start + _GATHERED] = np.where(empty, -1, label)
            bar.update(len(block))
    return {"labels": labels}


def _check_labels(
    file: MappedFile, offsets: np.ndarray, labels: np.ndarray, empty: np.ndarray
) -> None:
    with np.errstate(invalid="ignore"):
        bad = ~empty & ~((labels >= 0) & (labels < np.iinfo(np.int32).max) & (labels % 1 == 0))
    if bad.any():
        at = np.flatnonzero(bad)[0]
        raise DataError(
            f"{file.path}, byte {offsets[at]}: the label of this record is {labels[at]}, which is "
            f"no class number; expected whole numbers from 0."
        )


def _beginnings(file: MappedFile, offsets: np.ndarray) -> np.ndarray:
    """The first 40 bytes of records, as _BEGINNING. Raises ImageError if there is no record."""
    within = np.arange(_BEGINNING.itemsize)
    # The last record may be shorter: other bytes stand for its missing labels, which are not used.
    at_bytes = np.minimum(offsets[:, None] + within, file.size - 1)
    found = file.bytes[at_bytes].view(_BEGINNING)[:, 0] if len(offsets) else np.empty(0, _BEGINNING)
    whole = (found["magic"] == MAGIC) & (found["word"] >> 29 == WHOLE)
    for at in np.flatnonzero(~whole).tolist():
        payload = bytes(read_payload(file, int(offsets[at])))
        rest = payload[: _BEGINNING.itemsize - 8].ljust(_BEGINNING.itemsize - 8, b"\0")
        head = np.array([MAGIC, min(len(payload), MAX_LENGTH)], "<u4").tobytes()
        found[at] = np.frombuffer(head + rest, _BEGINNING)[0]
    return found
