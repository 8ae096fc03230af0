"""Training sets: a store of encoded images, and a label for each image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from Utils.Datasets_Utils.images import decode_image
from Utils.Datasets_Utils.names import Finder, names_look, shorter
from Utils.Datasets_Utils.text import COMMAND, SHOWN, first_few, mended, quoted
from Utils.errors import DataError


class ImageStore(ABC):
    """Encoded images in files of one format, indexed by row from 0. Each format is a subclass.

    A store can be pickled; it opens its files in each process that reads them. It consists of
    arrays, without a Python object for each image.

    source: the file or folder, for messages. notes: lines for the log about how the data, or
    the names of a list, were read and what was left out.
    """

    source: Path
    notes: tuple[str, ...] = ()

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

    def files_of(self, rows: Iterable[int]) -> Iterable[Path]:
        """The files that images are in; those that are replaced have another size or time."""
        return [self.source, *sorted(self.source.rglob("*"))]

    def decode(self, row: int) -> np.ndarray:
        """The image as uint8 H×W×3 RGB. Raises ImageError, naming the place, if damaged."""
        return decode_image(self.encoded(row), self.place(row))

    def rows(
        self, names: Sequence[str], file_list: Path, encoding: str = "", skip_bad: bool = False
    ) -> np.ndarray:
        """The rows (int64) of the images that a list names; see `names` for names that are written
        in another way, about which `notes` then says so. encoding: of such names; "" finds it out.

        Raises DataError for unknown ones; skip_bad: their rows are -1.
        """
        self.notes = ()
        known = {self.name(row): row for row in range(len(self))}
        rows = np.array([known.get(name, -1) for name in names], np.int64)
        if not np.any(missing := rows < 0):
            return rows
        look = names_look(known)
        unknown = [names[i] for i in np.flatnonzero(missing).tolist()]
        finder = Finder(look, unknown, encoding)
        rows[missing] = [known.get(finder.find(name), -1) for name in unknown]
        self.notes = tuple(finder.notes)
        left = [names[i] for i in np.flatnonzero(rows < 0).tolist()]
        if not left and len(np.unique(rows)) < len(set(names)):
            left = unknown  # two names of a list are not the same image
        if skip_bad or not left:
            return rows
        command = (
            f"{COMMAND} {quoted(file_list)} {mended(file_list)} --images {quoted(self.source)}"
        )
        advice = f"`{command} --skip_bad` writes a list without them"
        if len(left) == len(names):
            advice = "check the data set's path"
        if count := shorter(look, left):
            advice = f"`{command} --drop_folders {count}` writes a list of names that are there"
        raise DataError(
            f"{file_list}: {len(left)} of {len(names)} images are missing in {self.source}, the "
            f"first: {first_few(left)}; {advice}."
        )

    def epoch_order(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """A permutation of 0..N-1: the order in which an epoch reads these N rows."""
        return generator.permutation(len(rows))


class Labelled(NamedTuple):
    """The images that a format finds at a path, with the labels that are stored with them.

    labels: int64 N, not yet checked. rows: the N rows of images that have them; None: all rows.
    """

    images: ImageStore
    labels: np.ndarray
    rows: np.ndarray | None = None


class TrainingSet(Dataset):
    """Images with their labels.

    images: their store. labels: ints N, 0..C-1, each at least once. source: the file or folder of
    the labels, for messages. rows: N rows of images; None: all rows in order. notes: lines for the
    log. channel_order: of the stored images: "RGB", or "BGR" if their red and blue are swapped.
    left_out: (identities, images) that `without_small` left out.

    Other labels are renumbered in their order: `classes` then has the old label, or the name, of
    each class; it is None where labels are the data's own. The constructor raises DataError for no
    images at all.
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
        self.classes: list[str] | None = None
        self._number_from_zero()

    def _number_from_zero(self) -> None:
        present = np.unique(self.labels)
        self.num_classes = len(present)
        if present[0] == 0 and present[-1] == len(present) - 1:
            return
        self.notes += renumbering(present)
        self.labels = np.searchsorted(present, self.labels)
        self.classes = [str(label) for label in present.tolist()]

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
        names = self.classes or [str(label) for label in range(self.num_classes)]
        rest.classes = [names[label] for label in np.unique(self.labels[kept]).tolist()]
        rest.left_out = (identities, len(self) - len(kept))
        return rest


def renumbering(labels: np.ndarray) -> tuple[str, ...]:
    """A note for labels that are not 0..C-1; none for others."""
    present = np.unique(labels)
    if not len(present) or (present[0] == 0 and present[-1] == len(present) - 1):
        return ()
    missing = np.setdiff1d(np.arange(min(present[-1], len(present) + SHOWN + 1)), present)
    without = f", without {first_few(missing)}" if missing.size else ""
    return (
        f"the labels {present[0]} to {present[-1]}{without}, are renumbered: 0 to "
        f"{len(present) - 1}",
    )


def renumber(labels: np.ndarray, min_images: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Leave out the classes of fewer than min_images, and label the others from 0 in their order.

    Returns (indices of the images that are kept, their new labels, number of classes left out).
    """
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    large = counts >= min_images
    kept = np.flatnonzero(large[classes])
    return kept, (np.cumsum(large) - 1)[classes[kept]], int((~large).sum())
