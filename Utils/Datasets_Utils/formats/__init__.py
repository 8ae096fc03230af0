"""The formats of data sets, and how each is recognised from what lies at a path.

One table for training and one for verification. The first row that recognises a path opens it; a
format that is told by its contents stands before one that is told by a folder alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from Utils.Datasets_Utils.formats.archive import Archive, is_archive, open_archive, tree_images
from Utils.Datasets_Utils.formats.bin_set import is_bin, open_bin
from Utils.Datasets_Utils.formats.blp_set import is_blp, open_blp
from Utils.Datasets_Utils.formats.image_list import (
    parse_list,
    parse_list_text,
    read_class_folders,
    read_image_list,
)
from Utils.Datasets_Utils.formats.record_set import find_record_file, open_records
from Utils.Datasets_Utils.formats.shards import find_shards, open_shards
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.pairs import Pairs, parse_pairs, read_pairs
from Utils.Datasets_Utils.training_set import ImageStore, TrainingSet
from Utils.Datasets_Utils.verification_set import (
    VerificationSet,
    load_pairs_set,
    load_stored_pairs,
)
from Utils.errors import DataError

Found = tuple[ImageStore, np.ndarray, np.ndarray | None]
Format = TypeVar("Format", "TrainingFormat", "VerificationFormat")

PAIRS_NAME = "pairs.txt"  # looked for in a folder or an archive where no pairs file is named


@dataclass(frozen=True)
class TrainingFormat:
    """name: for people. recognise: whether a path is of this format. find: (store, labels int64,
    rows of the store that they belong to; None: all), as they are in it, before labels are checked.
    """

    name: str
    recognise: Callable[[Path], bool]
    find: Callable[[Path], Found]


@dataclass(frozen=True)
class VerificationFormat:
    """name: for people. recognise: whether a path is of this format. open: from the path, its pairs
    or list file if one is given, and the channel order of .blp values."""

    name: str
    recognise: Callable[[Path], bool]
    open: Callable[[Path, Path | None, str], VerificationSet]


def find_images(path: Path) -> Found:
    """The images and labels (int64) at a path, and the images' rows (None: all), before labels are
    checked."""
    return _recognise(path, TRAINING_FORMATS, "training set").find(path)


def is_folder(path: Path) -> bool:
    """Whether a training set is a folder of images, and of no other format."""
    return path.is_dir() and _recognise(path, TRAINING_FORMATS, "training set") is FOLDER


def open_training(path: Path, file_list: Path | None) -> TrainingSet:
    """The training set at a path; of a list's images, where one is given."""
    chosen = _recognise(path, TRAINING_FORMATS, "training set")
    if chosen is FOLDER and file_list:
        return read_image_list(path, file_list)
    store, labels, rows = chosen.find(path)
    if not file_list:
        return TrainingSet(store, labels, path, rows)
    names, labels = _read_list(store, file_list)
    return TrainingSet(store, labels, file_list, store.rows(names, file_list))


def open_verification(path: Path, file_list: Path | None, channel_order: str) -> VerificationSet:
    """The verification set at a path, with the pairs of a file, where the format needs one."""
    chosen = _recognise(path, VERIFICATION_FORMATS, "verification set")
    return chosen.open(path, file_list, channel_order)


def _recognise(path: Path, formats: Sequence[Format], what: str) -> Format:
    for known in formats:
        if known.recognise(path):
            return known
    names = "; ".join(known.name for known in formats)
    problem = "is of no known format" if path.exists() else "does not exist"
    raise DataError(f"the {what} {path} {problem}. Expected one of: {names}.")


def _find_records(path: Path) -> Found:
    return *open_records(find_record_file(path)), None


def _find_shards(path: Path) -> Found:
    return *open_shards(path), None


def _find_in_archive(path: Path) -> Found:
    archive = open_archive(path)
    rows, labels = tree_images(archive)
    return archive, labels, rows


def _find_in_folders(path: Path) -> Found:
    found = read_class_folders(path)
    return found.images, found.labels, None


def _read_list(store: ImageStore, file_list: Path) -> tuple[PathTable, np.ndarray]:
    """A list on disk, or one inside the archive itself."""
    if isinstance(store, Archive) and not file_list.exists():
        return parse_list_text(_member(store, file_list), file_list)
    return parse_list(file_list)


def _read_archive_pairs(archive: Archive, file_list: Path | None) -> Pairs:
    """A pairs file on disk, or one inside the archive; without a name, its pairs.txt."""
    if file_list and file_list.exists():
        return read_pairs(file_list)
    member = file_list or Path(PAIRS_NAME)
    return parse_pairs(archive.source / member, _member(archive, member))


def _member(archive: Archive, name: Path) -> bytes:
    row = archive.find(name.as_posix())
    if row is None:
        raise DataError(f"{name} is no file, neither on disk nor in {archive.source}.")
    return bytes(archive.encoded(row))


def _open_archive_pairs(path: Path, file_list: Path | None, _: str) -> VerificationSet:
    archive = open_archive(path)
    return load_stored_pairs(archive, _read_archive_pairs(archive, file_list), archive.top)


def _open_store_pairs(path: Path, file_list: Path | None, _: str) -> VerificationSet:
    store, _, _ = find_images(path)
    return load_stored_pairs(store, read_pairs(_pairs_file(path, file_list)))


def _open_folder_pairs(path: Path, file_list: Path | None, _: str) -> VerificationSet:
    return load_pairs_set(path, _pairs_file(path, file_list))


def _pairs_file(path: Path, file_list: Path | None) -> Path:
    """The pairs file that is named, or else the one that lies with the images."""
    file_list = file_list or (path if path.is_dir() else path.parent) / PAIRS_NAME
    if not file_list.is_file():
        raise DataError(
            f"the pairs file {file_list} does not exist; {path} holds images but no pairs."
        )
    return file_list


def _open_bin(path: Path, file_list: Path | None, _: str) -> VerificationSet:
    if file_list:
        raise DataError(f"{path} holds its own pairs; leave out the pairs file {file_list}.")
    return open_bin(path)


def _is_records(path: Path) -> bool:
    return find_record_file(path) is not None


def _is_shards(path: Path) -> bool:
    return bool(find_shards(path))


_RECORDS = "a record file (train.rec, or the folder with it)"
_SHARDS = "tar shards (a folder of .tar files with .jpg and .cls)"
_ARCHIVE = "a .zip or uncompressed .tar of a folder tree"

FOLDER = TrainingFormat(
    "a folder of class folders, or with an image list", Path.is_dir, _find_in_folders
)

TRAINING_FORMATS = (
    TrainingFormat(_RECORDS, _is_records, _find_records),
    TrainingFormat(_SHARDS, _is_shards, _find_shards),
    TrainingFormat(_ARCHIVE, is_archive, _find_in_archive),
    FOLDER,
)

VERIFICATION_FORMATS = (
    VerificationFormat("a .bin file", is_bin, _open_bin),
    VerificationFormat("a folder of .blp chunks", is_blp, open_blp),
    VerificationFormat(f"{_RECORDS} with a pairs file", _is_records, _open_store_pairs),
    VerificationFormat(f"{_SHARDS} with a pairs file", _is_shards, _open_store_pairs),
    VerificationFormat(f"{_ARCHIVE} with a pairs file", is_archive, _open_archive_pairs),
    VerificationFormat("a folder of images with a pairs file", Path.is_dir, _open_folder_pairs),
)
