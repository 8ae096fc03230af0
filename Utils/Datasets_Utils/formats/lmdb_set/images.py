"""The images of an LMDB database, each read at its place, and their labels."""

from __future__ import annotations

from array import array
from functools import partial
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.class_tree import litter_in
from Utils.Datasets_Utils.formats.lmdb_set.tree import damaged, entries, is_database, read_tree
from Utils.Datasets_Utils.formats.lmdb_set.values import LENGTH, read_number, read_sample
from Utils.Datasets_Utils.formats.storage import (
    Arrays,
    MappedFile,
    PathTable,
    are_columns,
    are_paths,
    cached_arrays,
    progress_bar,
)
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError

NAME = "data.mdb"
SUFFIXES = (".lmdb", ".mdb")


class LmdbImages(ImageStore):
    """The images of a database, each read at its place, in the order of their numbers."""

    def __init__(self, file: MappedFile, index: Arrays) -> None:
        self.source = file.path
        self.file = file
        self.names = PathTable.from_arrays(index["names"], index["name_ends"])
        self.offsets, self.sizes = index["offsets"], index["sizes"]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        return f"{self.source}, byte {self.offsets[row]} (key {self.names[row]})"

    def encoded(self, row: int) -> np.ndarray:
        return self.file.read(int(self.offsets[row]), int(self.sizes[row]))


def find_lmdb(path: Path) -> Path | None:
    """The database at a path: the file itself, or the one in that folder; None without one."""
    if path.is_dir():
        files = [
            file for file in path.glob("*.lmdb") if file.is_file() and not litter_in(file.name)
        ]
        named = path / NAME
        return named if named.is_file() else files[0] if len(files) == 1 else None
    if not path.is_file():
        return None
    if path.suffix.lower() in SUFFIXES:
        return path
    with open(path, "rb") as f:
        return path if is_database(f.read(20)) else None


def is_lmdb(path: Path) -> bool:
    """Whether a path is an LMDB database, or a folder with one."""
    return find_lmdb(path) is not None


def open_lmdb(path: Path) -> Labelled:
    """The images of a database and their labels (int64), by one scan whose result is stored.

    Raises DataError, naming file and byte or key, for a database that is damaged or cut short, or
    whose values are of no known form.
    """
    file = MappedFile(find_lmdb(path))
    kept = file.path.with_suffix(".index.npz")
    index = cached_arrays(kept, [file.path], partial(_index, file), _is_index)
    images, labels, stated = LmdbImages(file, index), index["labels"], int(index["stated"])
    if stated not in (-1, len(images)):
        raise DataError(
            f"{file.path} holds {len(images):,} images, but its __len__ says {stated:,}; its "
            f"conversion was interrupted or it is damaged. Fetch or convert it again."
        )
    if stated == -1:
        images.notes = ("no __len__ says how many images there should be",)
    rows = np.flatnonzero(labels >= 0)
    if len(rows) == len(images):
        return Labelled(images, labels)
    images.notes += (
        f"{len(images) - len(rows):,} of {len(images):,} values are images without a label, "
        f"which an image list of their keys can give (--train_file_list)",
    )
    return Labelled(images, labels[rows], rows)


def _is_index(kept: Arrays) -> bool:
    count = len(kept["labels"])
    columns = [kept[name] for name in ("offsets", "sizes", "labels")]
    whole = are_columns(count, *columns) and are_columns(1, kept["stated"].reshape(-1))
    return whole and are_paths(count, kept["names"], kept["name_ends"])


def _index(file: MappedFile) -> Arrays:
    """Names, places and labels (-1: none) of the images, and the number that the set states."""
    tree = read_tree(file)
    if tree.depth == 0 and file.size > 2 * tree.page_size:  # a new one has two pages
        raise DataError(
            f"{file.path} has {file.size:,} bytes, but no images: one of its first two pages, "
            f"which say where everything is, is damaged, or its conversion was interrupted. Fetch "
            f"or convert it again."
        )
    view, stated, count = memoryview(file.bytes), -1, 0
    keys, found, last = [], array("q"), b""
    with progress_bar(f"Indexing {file.path.name}", tree.entries, "image") as bar:
        for key, offset, size in entries(file, tree, tree.root, tree.depth):
            count += 1
            if count > tree.entries:  # a circle may have no end
                raise damaged(file, offset, f"there are more than its {tree.entries:,} entries")
            if key <= last:
                raise damaged(file, offset, "the keys are not in order")
            last = key
            bar.update()
            if key == LENGTH:
                stated = read_number(view[offset : offset + size])
            if key.startswith(b"__") and key.endswith(b"__"):
                continue
            sample = read_sample(view[offset : offset + size])
            if sample is None:
                raise _unknown_value(file, key, bytes(view[offset : offset + min(size, 8)]))
            keys.append(key.decode("utf-8", "surrogateescape"))
            found.extend((offset + sample[0], *sample[1:]))
    if count != tree.entries:
        raise damaged(file, 0, f"the tree has {count:,} of its {tree.entries:,} entries")
    rows = np.array(found, np.int64).reshape(-1, 3)
    order = np.arange(len(keys))
    if all(key.isascii() and key.isdigit() and len(key) < 19 for key in keys):
        order = np.argsort(np.array(keys, np.int64) if keys else order, kind="stable")
    names, ends = PathTable(keys[i] for i in order.tolist()).arrays()
    offsets, sizes, labels = rows[order].T
    columns = {"offsets": offsets, "sizes": sizes, "labels": labels, "stated": np.int64(stated)}
    return {"names": names, "name_ends": ends, **columns}


def _unknown_value(file: MappedFile, key: bytes, start: bytes) -> DataError:
    return DataError(
        f"{file.path}: the value of the key {key[:40]!r} begins with {start.hex(' ')}; expected an "
        f"image file, or the pair (image file, label from 0) in msgpack, or in a pickle of bytes "
        f"and a whole number. Other pickles, which could run code, pyarrow's and Caffe's values "
        f"are not read: write the set again as pairs in msgpack, or extract a folder for each "
        f"class with the program that wrote it."
    )
