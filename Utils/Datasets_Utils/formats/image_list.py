"""Training sets of single image files: a list of them, or one folder for each class.

A list has a line `path  label` for each image, usually with two blanks between; any white space
before the last word is allowed, so that paths may contain blanks, but not begin with one. It is
UTF-8, with or without a byte order mark. Paths are absolute or relative to the data set's folder.
"""

import io
import os
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import is_image_name, read_encoded
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


def read_class_folders(root: Path) -> Labelled:
    """The images of a tree in which each folder with images is a class, in sorted order."""
    tree = scan_tree(root)
    images = FileImages(root, PathTable(tree.images), root)
    return Labelled(images, np.array(tree.labels, np.int64))


@dataclass
class Tree:
    """What `scan_tree` finds. images: paths relative to root. labels: of the images. classes: names
    by label. empty_folders: folders without images. other_files: that are no images of a class."""

    images: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    other_files: list[str] = field(default_factory=list)


def scan_tree(root: str | Path) -> Tree:
    """Find the images of a class-per-folder tree, sorted, with contiguous labels.

    A class is a folder that itself has images; there may be folders of folders above it. Links are
    followed as by `walk_folders`. Raises DataError if root is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"the data set's folder {root} does not exist or is no folder.")
    tree = Tree()
    for folder, subfolders, files in walk_folders(root):
        name = os.path.relpath(folder, root)
        images = sorted(f for f in files if is_image_name(f))
        others = sorted(set(files) - set(images))
        tree.other_files += [os.path.normpath(os.path.join(name, f)) for f in others]
        if name == ".":
            # Images that lie directly under the root are in no class.
            tree.other_files += images
        elif images:
            tree.images += [os.path.join(name, f) for f in images]
            tree.labels += [len(tree.classes)] * len(images)
            tree.classes.append(name)
        elif not subfolders:
            tree.empty_folders.append(name)
    return tree


def walk_folders(root: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of a tree from root down, folders sorted.

    Links to folders are followed, except to a folder that the link itself is in: it would give
    every image again and again.
    """
    root = os.fspath(root)
    above = {root: frozenset({_identity(root)})}  # of each folder still to come: all above it
    for folder, subfolders, files in os.walk(root, followlinks=True):
        seen = above.pop(folder)
        found = {name: _identity(os.path.join(folder, name)) for name in sorted(subfolders)}
        subfolders[:] = [name for name, identity in found.items() if identity not in seen]
        above.update((os.path.join(folder, name), seen | {found[name]}) for name in subfolders)
        yield folder, subfolders, files


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


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
