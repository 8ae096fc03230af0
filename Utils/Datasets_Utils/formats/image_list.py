"""Training sets of single image files: a list of them, or one folder for each class.

A list has a line `path  label` for each image, usually with two blanks between; any white space
before the last word is allowed, so that paths may contain blanks, but not begin with one. It is
UTF-8, with or without a byte order mark. Paths are absolute or relative to the data set's folder.
"""

import io
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import first_few, group_images, list_folder
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import read_encoded
from Utils.Datasets_Utils.training_set import SHOWN, ImageStore, Labelled
from Utils.errors import DataError
from Utils.files import reading

_LABEL_DIGITS = 18  # any number of 18 digits fits into an int64


class FileImages(ImageStore):
    """Single image files.

    root: the data set's folder. paths: of the images, relative to it or absolute.
    source: the list or folder that names them, for messages.

    The constructor raises DataError for missing files.
    """

    def __init__(self, root: Path, paths: PathTable, source: Path) -> None:
        self.root = Path(root)
        self.paths = paths
        self.source = source
        _check_files(self.root, paths, source)

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> np.ndarray:
        return read_encoded(self.root / self.paths[row])

    def name(self, row: int) -> str:
        return self.paths[row]

    def place(self, row: int) -> str:
        return str(self.root / self.paths[row])


def parse_list(file_list: str | Path) -> tuple[PathTable, np.ndarray]:
    """The names and labels (int64) of an image list.

    Raises DataError for a list that can't be read, and for a line that is not `path  label`.
    """
    with reading(file_list, "image list"), open(file_list, "rb") as file:
        return parse_list_file(file, Path(file_list))


def parse_list_file(file: BinaryIO, file_list: Path) -> tuple[PathTable, np.ndarray]:
    """As `parse_list`, for an open file; file_list: its name, for messages."""
    labels = array("q")
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape")
    return PathTable(_parse(lines, file_list, labels)), np.frombuffer(labels, np.int64)


def read_class_folders(root: Path, identity_folder: str = "top") -> Labelled:
    """The images of a tree with a folder for each person, sorted; see `class_tree`."""
    found = list_folder(root)
    tree = group_images(found.files, found.litter, identity_folder)
    if found.empty:
        what = f"{len(found.empty):,} folders without images"
        tree.notes.append(f"left out: {what}: {first_few(found.empty)}")
    images = FileImages(root, PathTable(found.files[row] for row in tree.rows), root)
    return Labelled(images, np.array(tree.labels, np.int64), notes=tuple(tree.notes))


def _parse(lines: Iterable[str], file_list: Path, labels: array) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > _LABEL_DIGITS:
            raise DataError(
                f"{file_list}, line {number}: {line.strip()[:80]!r} is not 'path  label' with a "
                f"whole number of at most {_LABEL_DIGITS} digits as the label."
            )
        labels.append(int(words[1]))
        yield words[0].lstrip()


def _check_files(root: Path, paths: PathTable, source: Path) -> None:
    """Raise DataError for missing files; lists each folder once instead of asking for each file."""
    missing, count = [], 0
    folder, names, seen = None, frozenset(), set()
    for path in paths:
        cut = path.rfind("/") + 1  # the slash belongs to the folder, which may be the root
        parent, name = path[:cut], path[cut:]
        if parent != folder and parent not in seen:
            folder, names = parent, _names(root / parent)
            seen.add(parent)
        # An unsorted list would list a folder again for each line: there, ask for the file.
        found = name in names if parent == folder else os.path.isfile(root / path)
        if not found:
            count += 1
            missing += [path] if len(missing) < SHOWN else []
    if count:
        raise DataError(
            f"{source}: {count} of {len(paths)} files are missing under {root}, "
            f"the first: {', '.join(missing)}."
        )


def _names(folder: Path) -> frozenset[str]:
    """The files in a folder, without folders and broken links."""
    try:
        with os.scandir(folder) as entries:
            # Only for links is this one more system call.
            return frozenset(entry.name for entry in entries if _is_file(entry))
    except OSError:
        return frozenset()


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False
