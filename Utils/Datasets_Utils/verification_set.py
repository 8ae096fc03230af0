"""Verification sets: unique images, and pairs of them in folds; sets of images and a pairs file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.folds import folds_of_both_kinds
from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, read_encoded, read_image
from Utils.Datasets_Utils.names import (
    Finder,
    Look,
    folder_above,
    folder_look,
    folders,
    is_foreign,
    names_look,
    shorter,
)
from Utils.Datasets_Utils.pairs import Pairs, dropping, read_pairs, without_images
from Utils.Datasets_Utils.text import first_few, quoted
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import DataError

# The suffixes that are tried for a name, in this order.
_ADDED = ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
_SUFFIXES = ("", *IMAGE_SUFFIXES)


@dataclass(frozen=True, eq=False)
class VerificationSet:
    """P pairs of unique images.

    images: a sequence; images[i] is uint8 H×W×3 RGB. It can be pickled, so that worker processes
        can read from it.
    names: a name for each image, in the same order.
    left, right: P ints, indices into images. same: P bools. folds: P ints, from 0.
    sizes: how many images have which (height, width), None for unreadable ones; empty if the
        format does not tell it without reading every image.
    notes: sentences for tables about how the pairs were read, where that is not plain.
    groups: P texts, the group of each pair, "" for a pair of none; empty for a set without groups.

    Raises ValueError if these do not fit together.
    """

    images: Sequence[np.ndarray]
    names: list[str]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    sizes: dict[tuple[int, int] | None, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, str))

    def __post_init__(self) -> None:
        if len(self.names) != len(self.images):
            raise ValueError(
                f"verification set: {len(self.names)} names for {len(self.images)} images; "
                "expected one for each"
            )
        sizes = {name: len(getattr(self, name)) for name in self._columns}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"verification set: expected one entry per pair in each of {sizes}")
        for name in ("left", "right"):
            rows = np.asarray(getattr(self, name))
            if rows.size and not 0 <= rows.min() <= rows.max() < len(self.images):
                raise ValueError(
                    f"verification set: {name} refers to images {rows.min()} to {rows.max()}, but "
                    f"there are {len(self.images)}, numbered from 0"
                )

    @property
    def _columns(self) -> list[str]:
        """What there is one of for each pair."""
        return ["left", "right", "same", "folds", *(["groups"] if len(self.groups) else [])]

    def of_pairs(self, rows: np.ndarray) -> VerificationSet:
        """The set with some of its pairs (indices, or a bool for each) and all its images."""
        return replace(self, **{c: np.asarray(getattr(self, c))[rows] for c in self._columns})

    def with_usable_folds(self) -> VerificationSet:
        """The set in folds that hold pairs of both kinds, with a note where they are new."""
        folds, note = folds_of_both_kinds(self.same, self.folds)
        return replace(self, folds=folds, notes=(*self.notes, note)) if note else self

    def with_note_of_self_pairs(self) -> VerificationSet:
        """The set, with a note if there are pairs of an image with itself."""
        rows = np.flatnonzero(self.left == self.right)
        if not rows.size:
            return self
        wrong = int(np.sum(~np.asarray(self.same, bool)[rows]))
        images = first_few([self.names[self.left[row]] for row in rows])
        note = (
            f"pairs of an image with itself: {rows.size:,}, {wrong:,} of them mismatched: {images}"
        )
        return replace(self, notes=(*self.notes, note))


class ImageFiles(Sequence[np.ndarray]):
    """A sequence of images in files, each read when asked for: uint8 H×W×3 RGB.

    Indexing raises ImageError, naming the file, if it can't be decoded.
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
    """Some rows of a store as a sequence of images, each read when asked for: uint8 H×W×3 RGB.

    rows: N ints; None: all rows.
    """

    def __init__(self, store: ImageStore, rows: np.ndarray | None = None) -> None:
        self.store = store
        self.rows = np.arange(len(store)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.store.decode(int(self.rows[index]))

    def encoded(self, index: int) -> bytes | np.ndarray:
        """The bytes of the image file."""
        return self.store.encoded(int(self.rows[index]))


def load_stored_pairs(
    store: ImageStore, pairs: Pairs, top: str = "", encoding: str = ""
) -> VerificationSet:
    """The verification set of a store's images and the pairs of their names.

    top: a folder, with its slash, that names may leave out. encoding: of names that are not UTF-8;
    "" finds it out. Raises DataError naming the first missing images.
    """
    known = {store.name(row): row for row in range(len(store))}
    plain = names_look(known)

    def look(name: str) -> list[str]:
        return [fit for p in ("", top) for s in _SUFFIXES for fit in plain(p + name + s)][:2]

    candidates = ([p + name + s for p in ("", top) for s in _ADDED] for name in pairs.names)
    found = [next((c for c in names if c in known), None) for names in candidates]
    notes = _find_others(found, pairs.names, look, encoding)
    _require_all(pairs, found, store.source, look)
    rows = np.array([known[name] for name in found], np.int64)
    return _with_pairs(StoredImages(store, rows), pairs, notes)


def load_pairs_set(
    path: str | os.PathLike[str], file_list: str | os.PathLike[str], encoding: str = ""
) -> VerificationSet:
    """The verification set of a folder of images and a pairs file (see `read_pairs`).

    Every image file is looked for here, before an evaluation begins; none is read yet. encoding:
    of the pairs file; "" finds it out. Raises DataError naming the folder and the first missing
    images, PairsError for a pairs file that can't be understood.
    """
    folder, pairs = Path(path), read_pairs(file_list, encoding)
    found = _locate(folder, pairs.names, pairs.source)
    look = folder_look(folder, _SUFFIXES)
    notes = _find_others(found, pairs.names, look, encoding)
    _require_all(pairs, found, folder, look)
    return _with_pairs(ImageFiles([os.path.join(folder, name) for name in found]), pairs, notes)


def locate_images(
    folder: Path, names: Sequence[str], source: str | Path, most_missing: int = 0
) -> list[str]:
    """The files of the images that a list names, relative to the folder.

    A suffix is added where a name has no file as it is, never replaced: names may hold dots.
    source: the list. Raises DataError naming the folder, the list and the first missing images, if
    more than `most_missing` are; of fewer, reading each will be the error.
    """
    found = _locate(folder, names, source)
    missing = [name for name, place in zip(names, found, strict=True) if place is None]
    if len(missing) > most_missing:
        raise DataError(
            f"{len(missing)} of the {len(names)} images named in {source} are not in {folder}, "
            f"with or without a suffix: {first_few(missing)}; check the data set's path."
        )
    files = (name if file is None else file for name, file in zip(names, found, strict=True))
    return [os.path.join(folder, file) for file in files]


def _locate(folder: Path, names: Sequence[str], source: str | Path) -> list[str | None]:
    """The names with the suffixes of their files; None without a file."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; expected the images of {source}")
    candidates = ((name + suffix for suffix in _ADDED) for name in names)
    return [
        next((file for file in files if os.path.isfile(os.path.join(folder, file))), None)
        for files in candidates
    ]


def _find_others(
    found: list[str | None], names: Sequence[str], look: Look, encoding: str
) -> tuple[str, ...]:
    """Fill the gaps in `found` with the images that names mean; returns notes about it."""
    missing = [row for row, place in enumerate(found) if place is None]
    if not missing:
        return ()
    finder = Finder(look, (names[row] for row in missing), encoding)
    others = [finder.find(names[row]) for row in missing]
    if len({*others, *found}) < len(found) and None not in others:
        return ()  # two names of the file are not the same photo
    for row, place in zip(missing, others, strict=True):
        found[row] = place
    return tuple(finder.notes)


def _require_all(pairs: Pairs, found: Sequence[str | None], place: Path, look: Look) -> None:
    """Raise DataError for names of pairs that were not found in a place, with what would help."""
    missing = [row for row, name in enumerate(found) if name is None]
    if not missing:
        return
    names = [pairs.names[row] for row in missing]
    advice = "check the data set's path"
    if any(map(is_foreign, names)):
        advice += " and the file's encoding, which `--list_encoding NAME` names"
    if folder := folder_above(place, names, _SUFFIXES):
        advice = f"under {quoted(folder)} they are there, so give that as the data set's path"
    elif count := shorter(look, names):
        advice = f"without their first {folders(count)} they are there: {dropping(pairs, count)}"
    elif command := without_images(pairs, missing):
        advice += f"; or leave out the pairs of these images: {command}"
    raise DataError(
        f"{len(names)} of the {len(found)} images named in {pairs.source} are not in {place}, with "
        f"or without a suffix: {first_few(names)}; {advice}."
    )


def _with_pairs(
    images: Sequence[np.ndarray], pairs: Pairs, notes: tuple[str, ...]
) -> VerificationSet:
    return VerificationSet(
        images=images,
        names=pairs.names,
        left=pairs.left,
        right=pairs.right,
        same=pairs.same,
        folds=pairs.folds,
        notes=notes,
        groups=pairs.groups,
    )
