"""Verification sets: unique images, and pairs of them in folds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, read_encoded, read_image
from Utils.Datasets_Utils.pairs import Pairs, read_pairs
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import DataError

# What is added to a name that has no file as it is, in this order.
_ADDED = ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))

_MISSING_NAMED = 5


@dataclass(frozen=True, eq=False)
class VerificationSet:
    """P pairs of unique images.

    images: a sequence; images[i] is uint8 H×W×3, RGB. It can be pickled, so that loader processes
        may read from it.
    names: what to call each image, in the same order.
    left, right: P ints, indices into images. same: P bools. folds: P ints, from 0.
    sizes: how many images have which (height, width), None for unreadable ones; where the format
        lets it be told without reading every image.

    Raises ValueError when these do not fit together.
    """

    images: Sequence[np.ndarray]
    names: list[str]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    sizes: dict[tuple[int, int] | None, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.images):
            raise ValueError(
                f"verification set: {len(self.names)} names for {len(self.images)} images; "
                "expected one for each"
            )
        sizes = {name: len(getattr(self, name)) for name in ("left", "right", "same", "folds")}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"verification set: expected one entry per pair in each of {sizes}")
        for name in ("left", "right"):
            rows = np.asarray(getattr(self, name))
            if rows.size and not 0 <= rows.min() <= rows.max() < len(self.images):
                raise ValueError(
                    f"verification set: {name} refers to images {rows.min()} to {rows.max()}, but "
                    f"there are {len(self.images)}, numbered from 0"
                )


class ImageFiles(Sequence[np.ndarray]):
    """A sequence of images in files, each read when asked for: uint8 H×W×3, RGB.

    Indexing raises ImageError, naming the file, where one cannot be decoded.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_image(self.paths[index])

    def encoded(self, index: int) -> np.ndarray:
        """The bytes of the image file."""
        return read_encoded(self.paths[index])


class StoredImages(Sequence[np.ndarray]):
    """Some rows of a store (an archive, a record file, shards) as uint8 H×W×3 RGB images."""

    def __init__(self, store: ImageStore, rows: np.ndarray):
        self.store = store
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.store.decode(int(self.rows[index]))

    def encoded(self, index: int) -> bytes | np.ndarray:
        """The bytes of the image file."""
        return self.store.encoded(int(self.rows[index]))


def load_stored_pairs(store: ImageStore, pairs: Pairs, top: str = "") -> VerificationSet:
    """The verification set of a store's images and the pairs of their names.

    top: a folder, with its slash, that names may leave out.
    Raises DataError naming the first missing images.
    """
    known = {store.name(row): row for row in range(len(store))}
    candidates = ([p + name + s for p in ("", top) for s in _ADDED] for name in pairs.names)
    found = [next((known[c] for c in names if c in known), None) for names in candidates]
    missing = [name for name, row in zip(pairs.names, found, strict=True) if row is None]
    if missing:
        named = ", ".join(missing[:_MISSING_NAMED]) + (", ..." * (len(missing) > _MISSING_NAMED))
        raise DataError(
            f"{store.source}: {len(missing)} of the {len(found)} images named in {pairs.source} "
            f"are not in it: {named}."
        )
    return VerificationSet(
        images=StoredImages(store, np.array(found, np.int64)),
        names=pairs.names,
        left=pairs.left,
        right=pairs.right,
        same=pairs.same,
        folds=pairs.folds,
    )


def load_pairs_set(
    path: str | os.PathLike[str], file_list: str | os.PathLike[str]
) -> VerificationSet:
    """The verification set of a folder of images and a pairs file (see `pairs.read_pairs`).

    All images are looked for now, rather than in the middle of an evaluation; none is read yet.
    Raises DataError naming the folder and the first missing images, PairsError for a
    pairs file that cannot be understood.
    """
    folder = Path(path)
    pairs = read_pairs(file_list)
    return VerificationSet(
        images=ImageFiles(locate_images(folder, pairs.names, pairs.source)),
        names=pairs.names,
        left=pairs.left,
        right=pairs.right,
        same=pairs.same,
        folds=pairs.folds,
    )


def locate_images(folder: Path, names: Sequence[str], source: str | Path) -> list[str]:
    """The files of the images that a list names, relative to the folder.

    Suffixes are added where a name has no file as it is, never replaced: names may hold dots.
    source: the list. Raises DataError naming the folder, the list and the first missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; expected the images of {source}")
    found = [_locate(folder, name) for name in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        named = ", ".join(missing[:_MISSING_NAMED]) + (", ..." * (len(missing) > _MISSING_NAMED))
        raise DataError(
            f"{folder}: {len(missing)} of the {len(found)} images named in {source} are not "
            f"there: {named}; names are taken relative to the folder, as they are or with one of "
            f"{', '.join(IMAGE_SUFFIXES)} added: check the data set's path"
        )
    return [file for file in found if file is not None]


def _locate(folder: Path, name: str) -> str | None:
    stem = os.path.join(folder, name)
    candidates = (stem + suffix for suffix in _ADDED)
    return next((file for file in candidates if os.path.isfile(file)), None)
