"""A test set's images and people, and the people that both sets name."""

import posixpath
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats import holds_pairs
from Utils.Datasets_Utils.photos import (
    PhotoList,
    Photos,
    image_files,
    images_digest,
    labelled_photos,
)
from Utils.Datasets_Utils.training_set import TrainingSet


@dataclass(frozen=True, eq=False)
class Tested:
    """N images of a test set. digest: their `images_digest`. people: int N, from 0; an image that
    nothing connects with another is a person of its own."""

    photos: Photos
    names: Sequence[str]
    digest: str
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.names)


def open_tested(path: str | Path, pairs: str | Path | None = None, encoding: str = "") -> Tested:
    """Open the images of a test set.

    path: a verification set with its pairs in it or in the file `pairs`: images that matched pairs
    connect are of one person, and so are those of a folder that are named as it is, as LFW's.
    Otherwise images with labels, as training opens them. encoding: of the pairs file. Raises
    DataError or PairsError.
    """
    if not pairs and not holds_pairs(path):
        data = open_training_set(path)
        photos, digest = labelled_photos(data)
        names = [data.name(i) for i in range(len(data))]
        return Tested(photos, names, digest, np.asarray(data.labels))
    data = open_verification_set(path, pairs, list_encoding=encoding)
    count, folders = len(data.images), _own_folders(data.names)
    left = np.concatenate((data.left[data.same], np.arange(count)))
    right = np.concatenate((data.right[data.same], folders))
    graph = coo_array((np.ones(len(left)), (left, right)), (count, count))
    people = connected_components(graph, directed=False)[1]
    listed = PhotoList([str(row) for row in range(count)], None, str(path))
    digest = images_digest(data.names, image_files(data.images, Path(path)))
    return Tested(Photos(listed, data.images), data.names, digest, people)


def _own_folders(names: Sequence[str]) -> np.ndarray:
    """int N: the first image whose folder is named as this one's, if the images in it are too, as
    LFW's are; else the image itself."""
    first: dict[str, int] = {}
    found = np.arange(len(names))
    for row, name in enumerate(names):
        folder, stem = posixpath.split(name)
        person = posixpath.basename(folder)
        if person and stem.startswith(f"{person}_"):
            found[row] = first.setdefault(folder, row)
    return found


def same_names(data: TrainingSet, tested: Tested) -> dict[int, int]:
    """Class -> a test image of the person of that name, where the folders of both sets say it.

    A name has two words of letters or more, `Ada_Lovelace` or `ada-lovelace`: `images`, `m.01b2c`
    and `person_7` may be any folder.
    """
    image_of = {name: i for i, full in enumerate(tested.names) for name in _names(full)}
    found: dict[int, int] = {}
    for row in range(len(data)):
        for name in _names(data.name(row)):
            if name in image_of:
                found.setdefault(int(data.labels[row]), image_of[name])
    for label, old in enumerate(data.classes or ()):
        for name in _names(f"{old}/"):
            if name in image_of:
                found.setdefault(label, image_of[name])
    return found


def _names(path: str) -> Iterator[str]:
    """The folders of a path that can be names of people, in one spelling."""
    for folder in posixpath.dirname(path).split("/"):
        letters = unicodedata.normalize("NFKD", folder).casefold()
        letters = "".join(c for c in letters if not unicodedata.combining(c))
        words = "".join(c if c.isalnum() else " " for c in letters).split()
        if sum(map(str.isalpha, words)) > 1:
            yield " ".join(words)
