"""Training sets: a store of encoded images, and a label for each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from Utils.Datasets_Utils.images import decode_image
from Utils.errors import DataError

SHOWN = 3  # examples that an error names


class ImageStore(ABC):
    """Encoded images in files of one format, indexed by row from 0. Each format is a subclass.

    A store can be pickled; it opens its files in each process that reads them. It consists of
    arrays, without a Python object for each image.

    source: the file or folder, for messages.
    """

    source: Path

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def encoded(self, row: int) -> bytes | np.ndarray:
        """The bytes of an image file. Raises ImageError, naming the place, if damaged."""

    @abstractmethod
    def name(self, row: int) -> str:
        """The image's name in a list."""

    def place(self, row: int) -> str:
        """The file of an image and the place in it, for messages."""
        return f"{self.source}, image {self.name(row)}"

    def decode(self, row: int) -> np.ndarray:
        """The image as uint8 H×W×3 RGB. Raises ImageError, naming the place, if damaged."""
        return decode_image(self.encoded(row), self.place(row))

    def rows(self, names: Sequence[str], file_list: Path) -> np.ndarray:
        """The rows (int64) of the images that a list names. Raises DataError for unknown ones."""
        known = {self.name(row): row for row in range(len(self))}
        rows = np.array([known.get(name, -1) for name in names], np.int64)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            first = ", ".join(names[i] for i in missing[:SHOWN].tolist())
            raise DataError(
                f"{file_list}: {missing.size} of {len(names)} images are missing in {self.source}, "
                f"the first: {first}."
            )
        return rows

    def epoch_order(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A permutation of 0..N-1: the order in which an epoch reads these N rows."""
        return generator.permutation(len(rows))


class Labelled(NamedTuple):
    """The images that a format finds at a path, with the labels that are stored with them.

    labels: int64 N, not yet checked. rows: the N rows of images that have them; None: all rows.
    notes: lines for the log about how the data were read and what was left out.
    """

    images: ImageStore
    labels: np.ndarray
    rows: np.ndarray | None = None
    notes: tuple[str, ...] = ()


class TrainingSet(Dataset):
    """Images with their labels.

    images: their store. labels: ints N, 0..C-1, each at least once. source: the file or folder of
    the labels, for messages. rows: N rows of images; None: all rows in order. notes: lines for the
    log. channel_order: of the stored images: "RGB", or "BGR" if their red and blue are swapped.
    left_out: (identities, images) that `without_small` left out.

    The constructor raises DataError for no images at all, and for labels that are not 0..C-1.
    """

    def __init__(
        self,
        images: ImageStore,
        labels: np.ndarray,
        source: Path,
        rows: np.ndarray | None = None,
        notes: tuple[str, ...] = (),
        channel_order: str = "RGB",
    ) -> None:
        if len(labels) == 0:
            raise DataError("; ".join((f"{source} names no images", *notes)) + ".")
        self.images = images
        self.labels = labels
        self.rows = rows
        self.source = source
        self.notes = notes
        self.channel_order = channel_order
        self.left_out = (0, 0)
        self.num_classes = _count_classes(labels, source)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """(uint8 H×W×3 RGB, label). Raises ImageError, naming the place, if damaged."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        image = self.images.decode(self.row(index))
        if self.channel_order == "BGR":
            image = np.ascontiguousarray(image[..., ::-1])
        return image, int(self.labels[index])

    def row(self, index: int) -> int:
        """The row of an image in `images`."""
        return index % len(self) if self.rows is None else int(self.rows[index])

    def encoded(self, index: int) -> bytes | np.ndarray:
        """The bytes of the image file."""
        return self.images.encoded(self.row(index))

    def name(self, index: int) -> str:
        """What a list calls the image."""
        return self.images.name(self.row(index))

    def epoch_order(self, generator: np.random.Generator) -> np.ndarray:
        """A permutation of 0..N-1: the order in which an epoch reads the images."""
        rows = np.arange(len(self)) if self.rows is None else self.rows
        return self.images.epoch_order(rows, generator)

    def without_small(self, min_images: int) -> TrainingSet:
        """The set without the identities of fewer images, labelled from 0 again.

        Raises DataError if none is left.
        """
        counts = np.bincount(self.labels)
        if counts.min() >= min_images:
            return self
        if counts.max() < min_images:
            raise DataError(
                f"{self.source}: no identity has {min_images} images; the largest has "
                f"{counts.max()}. Set a lower min_images."
            )
        kept, labels, identities = renumber(self.labels, min_images)
        rows = kept if self.rows is None else self.rows[kept]
        rest = TrainingSet(self.images, labels, self.source, rows, self.notes, self.channel_order)
        rest.left_out = (identities, len(self) - len(kept))
        return rest


def renumber(labels: np.ndarray, min_images: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Leave out the classes of fewer than min_images, and label the others from 0 in their order.

    Returns (indices of the images that are kept, their new labels, number of classes left out).
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    large = counts >= min_images
    kept = np.flatnonzero(large[classes])
    return kept, (np.cumsum(large) - 1)[classes[kept]], int((~large).sum())


def _count_classes(labels: np.ndarray, source: Path) -> int:
    present = np.unique(labels)
    if len(present) == present[-1] + 1 and present[0] == 0:
        return len(present)
    missing = np.setdiff1d(np.arange(min(present[-1], len(present) + SHOWN)), present)[:SHOWN]
    raise DataError(
        f"{source}: the labels are not 0..C-1: {len(present)} different ones up to {present[-1]}, "
        f"without {', '.join(map(str, missing))}. A list with labels from 0 without "
        f"gaps, of a tree with a folder for each person, a record file or shards, is written by "
        f"`python -m Utils.Datasets_Utils.generate_dataset_list SOURCE LIST`."
    )
