"""Training sets of single image files: a list of them, or one folder for each class.

A list has a line per image, `path  label` with two blanks as the lineage writes it (any white
space before the last word will do, so that paths may contain blanks). Paths are absolute or
relative to the data set's folder.
"""

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from Utils.Datasets_Utils.images import read_image
from Utils.Datasets_Utils.path_table import PathTable
from Utils.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
SHOWN = 3  # examples that an error names


class ImageListSet(Dataset):
    """Images of a folder with their labels.

    root: the data set's folder. paths: the images, relative to it or absolute.
    labels: int64, 0..C-1, each at least once.
    source: what the labels came from, for messages.

    Raises DataError, when it is made, for no images at all, labels that are not 0..C-1, and
    missing files.
    """

    def __init__(self, root: Path, paths: PathTable, labels: np.ndarray, source: Path) -> None:
        if len(paths) == 0:
            raise DataError(f"{source} names no images.")
        self.root = Path(root)
        self.paths = paths
        self.labels = labels
        self.num_classes = _count_classes(labels, source)
        _check_files(self.root, paths, source)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(uint8 H×W×3 RGB, label). Raises ImageError, naming the file, where it can't be read."""
        return read_image(self.root / self.paths[index]), int(self.labels[index])


def read_image_list(root: str | Path, file_list: str | Path) -> ImageListSet:
    """Open the images that a list names. Raises DataError as `ImageListSet` does, and for a line
    that is not `path  label`."""
    root, file_list = Path(root), Path(file_list)
    if not root.is_dir():
        raise DataError(f"the data set's folder {root} does not exist or is no folder.")
    labels = array("q")
    try:
        with open(file_list, encoding="utf-8", errors="surrogateescape") as lines:
            paths = PathTable(_parse(lines, file_list, labels))
    except OSError as error:
        raise DataError(f"the image list {file_list} can't be read: {error.strerror}.") from None
    return ImageListSet(root, paths, np.array(labels, np.int64), file_list)


def read_class_folders(root: str | Path) -> ImageListSet:
    """Open a tree in which each folder with images is a class, numbered in sorted order."""
    tree = scan_tree(root)
    labels = np.array([label for _, label in tree.images], np.int64)
    return ImageListSet(Path(root), PathTable(p for p, _ in tree.images), labels, Path(root))


class Tree:
    """What `scan_tree` finds: images as (path relative to root, label), class names by label,
    folders without images, and files that are no images."""

    def __init__(self) -> None:
        self.images: list[tuple[str, int]] = []
        self.classes: list[str] = []
        self.empty_folders: list[str] = []
        self.other_files: list[str] = []


def scan_tree(root: str | Path) -> Tree:
    """Find the images of a class-per-folder tree, sorted, with contiguous labels.

    A class is a folder that holds images itself; folders of folders may stand above it.
    Raises DataError where root is no folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"the data set's folder {root} does not exist or is no folder.")
    tree = Tree()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        subfolders.sort()
        name = os.path.relpath(folder, root)
        images = sorted(f for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES)
        others = sorted(set(files) - set(images))
        tree.other_files += [os.path.normpath(os.path.join(name, f)) for f in others]
        if name == ".":
            # Images that lie directly under the root are in no class.
            tree.other_files += images
        elif images:
            tree.images += [(os.path.join(name, f), len(tree.classes)) for f in images]
            tree.classes.append(name)
        elif not subfolders:
            tree.empty_folders.append(name)
    return tree


def _parse(lines: Iterator[str], file_list: Path, labels: array) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        words = line.rsplit(None, 1)
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal():
            raise DataError(
                f"{file_list}, line {number}: {line.strip()[:80]!r} is not 'path  label' with a "
                f"whole number as the label."
            )
        labels.append(int(words[1]))
        yield words[0]


def _count_classes(labels: np.ndarray, source: Path) -> int:
    present = np.unique(labels)
    if len(present) == present[-1] + 1:
        return len(present)
    missing = np.setdiff1d(np.arange(min(present[-1], len(present) + SHOWN)), present)[:SHOWN]
    raise DataError(
        f"{source}: the labels are not 0..C-1: {len(present)} different ones up to {present[-1]}, "
        f"without {', '.join(map(str, missing))}. generate_dataset_list.py numbers them anew."
    )


def _check_files(root: Path, paths: PathTable, source: Path) -> None:
    """Raise DataError unless every file is there, reading each folder once, not each file."""
    missing, count = [], 0
    folder, names, seen = None, frozenset(), set()
    for path in paths:
        parent, name = os.path.split(path)
        if parent != folder and parent not in seen:
            folder, names = parent, _names(root / parent)
            seen.add(parent)
        # A list in no order would read a folder again for each line: there, ask for the file.
        found = name in names if parent == folder else (root / path).exists()
        if not found:
            count += 1
            missing += [path] if len(missing) < SHOWN else []
    if count:
        raise DataError(
            f"{source}: {count} of {len(paths)} files are missing under {root}, "
            f"the first: {', '.join(missing)}."
        )


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except OSError:
        return frozenset()
