"""Record files: the RecordIO container of MXNet (dmlc-core, `recordio.h`), without MXNet.

A record consists of one or more parts. A part is the magic number, a word with a flag in its upper
3 bits and the length in its lower 29, that many bytes, and zeros up to the next multiple of 4:

    0xced7230a | flag << 29 | length | payload | padding

Flag 0 is a whole record; 1, 2 and 3 are its first, a middle and its last part. A record is cut
where its payload has the magic number at a multiple of 4, and the number itself is left out, so
that a scan can find the next record in a damaged file.

The payload of an image record is the header of `mxnet.recordio.pack`, then the image file:

    uint32 flag | float32 label | uint64 id | uint64 id2 | `flag` float32 labels, if flag > 0
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.Datasets_Utils.images import ImageError
from Utils.errors import DataError
from Utils.files import reading

MAGIC = 0xCED7230A
MAX_LENGTH = (1 << 29) - 1
WHOLE, FIRST, MIDDLE, LAST = range(4)

_PART = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_MAGIC_BYTES = struct.pack("<I", MAGIC)


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
    if len(payload) < _HEADER.size:
        raise _damaged(file, offset, f"its {len(payload)} bytes are too few for a header")
    flag, label, id_, id2 = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if end > len(payload):
        raise _damaged(file, offset, f"its header says {flag} labels, more than it holds")
    labels = np.frombuffer(payload[_HEADER.size : end], "<f4") if flag else np.float32([label])
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


def scan_records(file: MappedFile, progress: Callable[[int], object] | None = None) -> np.ndarray:
    """The offsets (int64) of all records, found by a scan of the file.

    progress: called with the number of bytes scanned since the last call.
    Raises DataError, naming file and byte, where a record is damaged or truncated.
    """
    offsets, reported = [np.empty(0, np.int64)], 0
    block: list[int] = []
    for offset in _walk(file):
        block.append(offset)
        if len(block) == 1 << 16:
            offsets.append(np.array(block, np.int64))
            if progress:
                progress(offset - reported)
            block, reported = [], offset
    if progress:
        progress(file.size - reported)
    return np.concatenate([*offsets, np.array(block, np.int64)])


def _walk(file: MappedFile) -> Iterator[int]:
    offset, begun = 0, None
    view = memoryview(file.bytes)
    while offset < file.size:
        if offset + _PART.size > file.size:
            raise DataError(f"{file.path}, byte {offset}: the file is cut short in a record.")
        magic, word = _PART.unpack_from(view, offset)
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
        end = offset + _PART.size + length
        if end > file.size:
            raise DataError(
                f"{file.path}, byte {offset}: the record there should end at byte {end}, but the "
                f"file is cut short at {file.size}."
            )
        offset = _aligned(end)
    if begun is not None:
        raise DataError(f"{file.path}, byte {begun}: the rest of the record there is missing.")


def whole_records(file: MappedFile) -> tuple[list[int], int]:
    """(offsets of the complete records, where the last ends) of a file that may be truncated."""
    offsets, whole = [], file.size % 4 == 0  # else it is truncated in the last record's padding
    try:
        for offset in _walk(file):
            offsets.append(offset)
    except DataError:
        whole = False
    if whole:
        return offsets, file.size
    # The last record found may be the truncated one.
    return offsets[:-1], offsets[-1] if offsets else 0


def pack_record(record: Record) -> bytes:
    """The bytes of a record in a file: the inverse of `read_record`."""
    labels = np.asarray(record.labels, "<f4")
    if record.flag not in (0, len(labels)):
        raise ValueError(f"flag is {record.flag} for {len(labels)} labels; expected 0 or as many")
    label = 0.0 if record.flag else float(labels[0])
    header = _HEADER.pack(record.flag, label, record.id, record.id2)
    vector = labels.tobytes() if record.flag else b""
    return pack_payload(b"".join((header, vector, bytes(record.content))))


def pack_payload(payload: bytes) -> bytes:
    """A payload as one part, or as several where it has the magic number at a multiple of 4.

    Raises DataError for one that is too long for the format.
    """
    if len(payload) > MAX_LENGTH:
        raise DataError(f"a record of {len(payload)} bytes is too long; the limit is 512 MB.")
    parts = _split(payload)
    kinds = [WHOLE] if len(parts) == 1 else [FIRST, *[MIDDLE] * (len(parts) - 2), LAST]
    packed = bytearray()
    for kind, part in zip(kinds, parts, strict=True):
        packed += _PART.pack(MAGIC, kind << 29 | len(part)) + part
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def write_index(file: BinaryIO, keys: Sequence[int] | np.ndarray, offsets: np.ndarray) -> None:
    """Write the lines `key<TAB>offset` of an .idx file."""
    for key, offset in zip(keys, offsets, strict=True):
        file.write(f"{key}\t{offset}\n".encode())


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The keys and offsets (int64) of an .idx file. Raises DataError naming the file and line."""
    with reading(path, "index"):
        text = path.read_text(encoding="ascii", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            # Much faster than a loop, and without a Python object for each of millions of lines.
            numbers = np.fromstring(text, np.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            raise DataError(f"{path}, {_bad_line(text)}") from None
    lines = text.count("\n") + (not text.endswith("\n"))
    if len(numbers) != 2 * lines or lines == 0:
        raise DataError(f"{path}, {_bad_line(text)}")
    return numbers[::2].copy(), numbers[1::2].copy()


def _bad_line(text: str) -> str:
    if not text.strip():
        return "line 1: the index is empty."
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if len(words) != 2 or not all(word.isdecimal() for word in words):
            return f"line {number}: {line[:80]!r} is not 'key<TAB>offset'."
    return "which is not 'key<TAB>offset' a line."


def _split(payload: bytes) -> list[bytes]:
    parts, begin, found = [], 0, payload.find(_MAGIC_BYTES)
    while found >= 0:
        if found % 4 == 0:
            parts.append(payload[begin:found])
            begin = found + 4
        found = payload.find(_MAGIC_BYTES, found + (4 if found % 4 == 0 else 1))
    return [*parts, payload[begin:]]


def _read_part(file: MappedFile, offset: int) -> tuple[int, int, int]:
    """(flag, offset of the payload, its length) of the part at an offset."""
    magic, word = _PART.unpack_from(file.read(offset, _PART.size))
    if magic != MAGIC:
        raise _damaged(file, offset, f"it begins with {magic:#010x} in place of {MAGIC:#010x}")
    return word >> 29, offset + _PART.size, word & MAX_LENGTH


def _aligned(offset: int) -> int:
    return (offset + 3) // 4 * 4


def _damaged(file: MappedFile, offset: int, why: str) -> ImageError:
    return ImageError(
        f"{file.path}, byte {offset}: no record, {why}; the file is damaged or its index belongs "
        "to another file"
    )
