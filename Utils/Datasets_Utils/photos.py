"""Photos of a folder, by a devkit list or all that there are, as one sequence of images."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.image_list import walk_folders
from Utils.Datasets_Utils.images import is_image_name
from Utils.Datasets_Utils.photo_list import PhotoList
from Utils.Datasets_Utils.verification_set import ImageFiles, locate_images
from Utils.errors import DataError


@dataclass(frozen=True, eq=False)
class Photos:
    """N photos: their list, and images[i], uint8 H×W×3 RGB, read when asked for."""

    listed: PhotoList
    images: Sequence[np.ndarray]


def open_listed(folder: str | Path, listed: PhotoList) -> Photos:
    """The photos of a list, all looked for now and none read yet.

    Raises FileNotFoundError, naming the first missing ones.
    """
    return Photos(listed, ImageFiles(locate_images(Path(folder), listed.names, listed.source)))


def open_folder(folder: str | Path, with_ids: bool) -> Photos:
    """All photos of a folder, sorted; with_ids: each in a folder of its own person.

    What is no folder of images is opened as a training set of any format there is a reader for.
    Raises DataError where there are none, or one is in no person's folder.
    """
    names = list(_walk(Path(folder)))
    if not names:
        return _from_training_set(folder)
    people = [os.path.dirname(name) for name in names]
    if with_ids and "" in people:
        raise DataError(
            f"{folder}/{names[people.index('')]} is in no person's folder; give a list, or a "
            f"folder for each person."
        )
    listed = PhotoList(names, people, str(folder))
    return Photos(listed, ImageFiles([os.path.join(folder, name) for name in names]))


class SetImages(Sequence[np.ndarray]):
    """The images of a data set that yields (image, label)."""

    def __init__(self, dataset: Sequence) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._dataset[index][0]


def _from_training_set(path: str | Path) -> Photos:
    dataset = open_training_set(path)
    labels = [str(label) for label in dataset.labels]
    names = [f"{label}/{number:08d}" for number, label in enumerate(labels)]
    return Photos(PhotoList(names, labels, str(path)), SetImages(dataset))


def _walk(root: Path) -> Iterator[str]:
    for folder, _, files in walk_folders(root):
        for name in sorted(files):
            if is_image_name(name):
                yield os.path.normpath(os.path.join(os.path.relpath(folder, root), name))
