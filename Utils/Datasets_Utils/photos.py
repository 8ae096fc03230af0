"""Photos of a folder, by a devkit list or all that there are, as one sequence of images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats import find_images, is_folder
from Utils.Datasets_Utils.image_list import walk_folders
from Utils.Datasets_Utils.images import is_image_name
from Utils.Datasets_Utils.photo_list import PhotoList
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.Datasets_Utils.verification_set import ImageFiles, locate_images
from Utils.errors import DataError


@dataclass(frozen=True, eq=False)
class Photos:
    """N photos: their list, and images[i], uint8 H×W×3 RGB, read when asked for."""

    listed: PhotoList
    images: Sequence[np.ndarray]


def has_files(folder: str | Path) -> bool:
    """Whether photos are files in a folder, not stored in a file of another format."""
    return is_folder(Path(folder).absolute())


def open_listed(folder: str | Path, listed: PhotoList) -> Photos:
    """The photos of a list, all looked for now and none read yet. In a record file, in shards or
    in an archive the list has the names that an image list has there.

    Raises FileNotFoundError or DataError, naming the first missing ones.
    """
    if has_files(folder):
        return Photos(listed, ImageFiles(locate_images(Path(folder), listed.names, listed.source)))
    store, _, _ = find_images(Path(folder).absolute())
    return Photos(listed, StoredImages(store, store.rows(listed.names, Path(listed.source))))


def open_folder(folder: str | Path, with_ids: bool) -> Photos:
    """All photos of a folder, sorted; with_ids: each in a folder of its own person.

    A record file, shards or an archive do as well, with their labels for people.
    Raises DataError where there are none, or one is in no person's folder.
    """
    names = list(_walk(Path(folder)))
    if not names:
        return _from_store(folder)
    people = [os.path.dirname(name) for name in names]
    if with_ids and "" in people:
        raise DataError(
            f"{folder}/{names[people.index('')]} is in no person's folder; give a list, or a "
            f"folder for each person."
        )
    listed = PhotoList(names, people, str(folder))
    return Photos(listed, ImageFiles([os.path.join(folder, name) for name in names]))


class StoredImages(Sequence[np.ndarray]):
    """The images of some rows of a store."""

    def __init__(self, store: ImageStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._store.decode(int(self._rows[index]))


def _from_store(path: str | Path) -> Photos:
    """The people are the labels, which may be any whole numbers."""
    store, numbers, rows = find_images(Path(path).absolute())
    labels = [str(label) for label in numbers.tolist()]
    if not labels:
        raise DataError(f"{path} has no images.")
    names = [f"{label}/{number:08d}" for number, label in enumerate(labels)]
    rows = np.arange(len(labels)) if rows is None else rows
    return Photos(PhotoList(names, labels, str(path)), StoredImages(store, rows))


def _walk(root: Path) -> Iterator[str]:
    for folder, _, files in walk_folders(root):
        for name in sorted(files):
            if is_image_name(name):
                yield os.path.normpath(os.path.join(os.path.relpath(folder, root), name))
