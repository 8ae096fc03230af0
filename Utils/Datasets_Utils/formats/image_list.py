"""Training sets of single image files: a list of them, or one folder for each class.

A list has a line for each image, see `list_lines`. Paths are absolute or relative to the data set's
folder.
"""

import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import group_images, list_folder
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import read_encoded
from Utils.Datasets_Utils.names import (
    Finder,
    folder_above,
    folder_look,
    folders,
    is_foreign,
    shorter,
)
from Utils.Datasets_Utils.text import COMMAND, first_few, mended, quoted
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError

_TRIED = 100  # missing paths by which another folder is found


class FileImages(ImageStore):
    """Single image files.

    root: the data set's folder. paths: of the images, relative to it or absolute.
    source: the list or folder that names them, for messages.

    encoding: of paths that are not UTF-8; "" finds it out. Where a path has no file as it stands,
    `paths` then has the one file that it means, see `names`, and `notes` says so.

    The constructor raises DataError for missing files; skip_bad: `missing` has their rows.
    """

    def __init__(
        self,
        root: Path,
        paths: PathTable,
        source: Path,
        encoding: str = "",
        skip_bad: bool = False,
    ) -> None:
        self.root = Path(root)
        self.source = source
        if bad := next((path for path in paths if "\0" in path), None) if paths.has_nul() else None:
            raise DataError(f"{source} has a NUL byte in a name, {bad[:80]!r}; take it out.")
        self.paths, self.missing, self.notes = _fit_paths(self.root, paths, encoding)
        if self.missing.size and not skip_bad:
            raise _not_found(self.root, paths, self.missing, source)

    def __len__(self) -> int:
        return len(self.paths)

    def encoded(self, row: int) -> np.ndarray:
        return read_encoded(self.root / self.paths[row])

    def name(self, row: int) -> str:
        return self.paths[row]

    def place(self, row: int) -> str:
        return str(self.root / self.paths[row])

    def files_of(self, rows: Iterable[int]) -> Iterable[Path]:
        return (self.root / self.paths[row] for row in rows)


def read_class_folders(root: Path, identity_folder: str = "top") -> Labelled:
    """The images of a tree with a folder for each person, sorted; see `class_tree`."""
    found = list_folder(root)
    tree = group_images(found.files, found.litter, identity_folder)
    if found.empty:
        what = f"{len(found.empty):,} folders without images"
        tree.notes.append(f"left out: {what}: {first_few(found.empty)}")
    images = FileImages(root, PathTable(found.files[row] for row in tree.rows), root)
    images.notes = tuple(tree.notes)
    return Labelled(images, np.array(tree.labels, np.int64))


def _missing(root: Path, paths: PathTable) -> np.ndarray:
    """The rows (int64) of missing files; lists each folder once, not asking for each file."""
    missing = array("q")
    folder, names, seen = None, frozenset(), set()
    for row, path in enumerate(paths):
        cut = path.rfind("/") + 1  # the slash belongs to the folder, which may be the root
        parent, name = path[:cut], path[cut:]
        if parent != folder and parent not in seen:
            folder, names = parent, _names(root / parent)
            seen.add(parent)
        # An unsorted list would list a folder again for each line: there, ask for the file.
        found = name in names if parent == folder else os.path.isfile(root / path)
        if not found:
            missing.append(row)
    return np.frombuffer(missing, np.int64)


def _fit_paths(
    root: Path, paths: PathTable, encoding: str = ""
) -> tuple[PathTable, np.ndarray, tuple[str, ...]]:
    """Replace paths that are not there by the one file each of them means.

    Returns (the paths, rows (int64) of those without such a file, notes about the others); see
    `names`. encoding: of paths that are not UTF-8; "" finds it out.
    """
    missing = _missing(root, paths)
    if not missing.size:
        return paths, missing, ()
    finder = Finder(folder_look(root), (paths[row] for row in missing.tolist()), encoding)
    left = array("q")

    def fitted() -> Iterator[str]:
        ahead = iter(missing.tolist())
        following = next(ahead)
        for row, path in enumerate(paths):
            if row != following:
                yield path
                continue
            following = next(ahead, -1)
            found = finder.find(path)
            if found is None:
                left.append(row)
            yield found or path

    made = PathTable(fitted())
    # Two names of a list are not the same photo.
    if _distinct(made) < _distinct(paths):
        return paths, missing, ()
    return made, np.frombuffer(left, np.int64), tuple(finder.notes)


def _distinct(paths: PathTable) -> int:
    return len(np.unique(np.fromiter(map(hash, paths), np.int64, len(paths))))


def _not_found(root: Path, paths: PathTable, missing: np.ndarray, source: Path) -> DataError:
    """The error for paths without a file, with what would help."""
    names = [paths[row] for row in missing[:_TRIED].tolist()]
    command = f"{COMMAND} {quoted(source)} {mended(source)} --images {quoted(root)}"
    advice = f"`{command} --skip_bad` writes a list without them"
    if missing.size == len(paths):
        advice = "check the data set's path"
    if count := shorter(folder_look(root), names):
        advice = (
            f"they are there without their first {folders(count)}: `{command} --drop_folders "
            f"{count}` writes such a list"
        )
        if folder := folder_above(root, names):
            advice += f"; or give {quoted(folder)} as the data set's path"
    elif any(map(is_foreign, names)):
        advice = (
            "the list is not UTF-8, and its encoding is not known; `--list_encoding NAME` names it"
        )
    return DataError(
        f"{source}: {missing.size} of {len(paths)} files are missing under {root}, the first: "
        f"{first_few(names)}; {advice}."
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
