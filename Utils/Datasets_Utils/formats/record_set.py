"""Training sets in a record file: `train.rec` and `train.idx`, as insightface distributes them.

There are two layouts. In insightface's, record 0 has no image but the labels [a, b]; the keys 1 to
a-1 are images with their class as label, and the keys a to b-1 are one record for each identity
with the range of its images' keys. In the plain layout of MXNet's im2rec, every record is an image,
and its first label is its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.recordio import (
    MAGIC,
    MAX_LENGTH,
    WHOLE,
    read_index,
    read_payload,
    read_record,
    scan_records,
)
from Utils.Datasets_Utils.formats.storage import MappedFile, cached_arrays, progress_bar
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError

# The beginning of an image record up to its second label (see recordio.py).
_BEGINNING = np.dtype(
    [(name, "<u4") for name in ("magic", "word", "flag")]
    + [("label", "<f4"), ("id", "<u8"), ("id2", "<u8"), ("labels", "<f4", 2)]
)
_HEADER_BYTES = 24
_GATHERED = 1 << 16  # records whose headers are read together
_PROBED_RECORDS = 256  # evenly spaced entries of an index that are compared with their records
_EXACT_FLOATS = 1 << 24  # labels are float32: above this, key ranges in them are not exact


class RecordImages(ImageStore):
    """The images of a record file, each read at its offset.

    file: the .rec file. keys, offsets: int64 N, of the records with images. The attribute `keys` is
    None where image i has key first_key + i.
    """

    def __init__(self, file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> None:
        self.file = file
        self.source = file.path
        self.offsets = offsets
        self.first_key = int(keys[0]) if len(keys) else 0
        consecutive = np.array_equal(keys, np.arange(len(keys)) + self.first_key)
        self.keys = None if consecutive else keys

    def __len__(self) -> int:
        return len(self.offsets)

    def encoded(self, row: int) -> bytes | np.ndarray:
        return read_record(self.file, int(self.offsets[row])).content

    def name(self, row: int) -> str:
        return str(self.first_key + row if self.keys is None else self.keys[row])

    def place(self, row: int) -> str:
        return f"{self.source}, byte {self.offsets[row]} (key {self.name(row)})"

    def rows(self, names: Sequence[str], file_list: Path) -> np.ndarray:
        if not all(name.isdecimal() for name in names):
            raise DataError(f"{file_list}: a record file's images are listed as 'key  label'.")
        wanted = np.array([int(name) for name in names], np.int64)
        keys = np.arange(len(self)) + self.first_key if self.keys is None else self.keys
        rows = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        missing = np.flatnonzero(keys[rows] != wanted)
        if missing.size:
            raise DataError(
                f"{file_list}: {missing.size} of {len(names)} keys are no images of {self.source}, "
                f"the first: {wanted[missing[0]]}."
            )
        return rows


def find_record_file(path: Path) -> Path | None:
    """The .rec file at a path: the path itself, or the file in that folder; None without one."""
    if path.is_dir():
        records = sorted(path.glob("*.rec"))
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
        keys, offsets = read_index(path)
        if np.any(keys[1:] <= keys[:-1]):
            order = np.argsort(keys, kind="stable")
            keys, offsets = keys[order], offsets[order]
            twice = np.flatnonzero(keys[1:] == keys[:-1])
            if twice.size:
                raise DataError(f"{path}: key {keys[twice[0]]} is in it twice.")
        return keys, offsets

    def scan() -> dict[str, np.ndarray]:
        with progress_bar(f"Indexing {file.path.name}", file.size, "B") as bar:
            return {"offsets": scan_records(file, bar.update)}

    cached = cached_arrays(file.path.with_suffix(".offsets.npz"), [file.path], scan)
    return np.arange(len(cached["offsets"])), cached["offsets"]


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
    probes = np.linspace(0, len(offsets) - 1, min(len(offsets), _PROBED_RECORDS)).astype(int)
    for offset in (*offsets[probes].tolist(), int(offsets.max())):
        read_payload(file, offset)


def _insightface_layout(file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> Labelled | None:
    """Images and labels by the identity records, without reading every image's header; None where
    there are no such records, or where they contradict the images' own labels."""
    first = read_record(file, int(offsets[0]))
    if keys[0] != 0 or first.flag < 2 or len(first.content) or len(keys) >= _EXACT_FLOATS:
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
    probed = np.linspace(0, len(counts) - 1, min(len(counts), _PROBED_RECORDS)).astype(int)
    for at in np.concatenate((starts[probed], ends[probed] - 1)).tolist():
        if read_record(file, int(offsets[at])).labels[0] != labels[at - 1]:
            return None
    return Labelled(RecordImages(file, keys[images], offsets[images]), labels)


def _scanned_layout(file: MappedFile, keys: np.ndarray, offsets: np.ndarray) -> Labelled:
    """Images and labels by each record's own header, in one scan whose result is stored."""
    index = file.path.with_suffix(".idx")
    sources = [file.path, *([index] if index.is_file() else [])]
    scanned = cached_arrays(
        file.path.with_suffix(".labels.npz"), sources, partial(_scan_labels, file, offsets)
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
            header = _HEADER_BYTES + 4 * beginnings["flag"].astype(np.int64)
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
    """The first 40 bytes of records, as _BEGINNING. Raises ImageError where there is no record."""
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
