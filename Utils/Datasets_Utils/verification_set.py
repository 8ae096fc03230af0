"""Verification sets: unique images, and pairs of them in folds, as a pairs file lists them.

There are two formats of pairs files, recognised by their contents.

LFW's (http://vis-www.cs.umass.edu/lfw/README.txt): a header `folds<TAB>n`, then for each fold n
matched pairs `Name<TAB>i<TAB>j` and n mismatched ones `NameA<TAB>i<TAB>NameB<TAB>j`. Image i of a
person is `Name/Name_000i`, with a suffix that the file does not give.

The list that circulates with AgeDB-30 and CFP-FP: `left right 1` or `left right -1`, with image
names relative to the data set's folder. It does not define folds, so the pairs are divided into
ten, in order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, read_encoded, read_image
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import DataError, UserError
from Utils.files import reading

LIST_FOLDS = 10  # as published figures for AgeDB-30 and CFP-FP use

# The suffixes that are tried for a name, in this order.
_ADDED = ("", *IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES))
_SHOWN = 5  # missing images that an error names
_LONGEST_QUOTE = 80
_LIST_FORM = "`left right 1` or `left right -1` (tabs between them if names hold blanks)"


@dataclass(frozen=True, eq=False)
class VerificationSet:
    """P pairs of unique images.

    images: a sequence; images[i] is uint8 H×W×3 RGB. It can be pickled, so that worker processes
        can read from it.
    names: a name for each image, in the same order.
    left, right: P ints, indices into images. same: P bools. folds: P ints, from 0.
    sizes: how many images have which (height, width), None for unreadable ones; empty if the
        format does not tell it without reading every image.

    Raises ValueError if these do not fit together.
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


class PairsError(UserError, ValueError):
    """A pairs file that can't be read or understood; the text names the line and what was
    expected."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of images.

    names: the unique image names, in the order in which the file first mentions them.
    left, right: P ints, indices into names. same: P bools. folds: P ints, from 0.
    source: the pairs file.
    """

    names: list[str]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    source: Path


class _Line(NamedTuple):
    number: int
    text: str


class _Pair(NamedTuple):
    left: str
    right: str
    same: bool


def read_pairs(path: str | os.PathLike[str]) -> Pairs:
    """The pairs in a file of either format (see above). Blank lines and CRLF line ends are allowed.

    LFW's names become `Name/Name_0001`, without a suffix.

    Raises PairsError for a file that can't be read, for a malformed line, with its number and text,
    and for another number of lines than LFW's header gives, with both numbers.
    """
    path = Path(path)
    with reading(path, "pairs file", PairsError):
        content = path.read_bytes()
    return parse_pairs(path, content)


def parse_pairs(path: Path, content: bytes) -> Pairs:
    """As `read_pairs`, for the bytes of a pairs file; path: its name, for messages."""
    lines = _read_lines(path, content)
    if not lines:
        raise PairsError(f"{path}: is empty, expected LFW's pairs format or lines {_LIST_FORM}")
    header = lines[0].text.split()
    if len(header) == 2 and all(_is_number(field) for field in header):
        fold_count, per_class = map(int, header)
        pairs, folds = _read_lfw(path, lines[1:], fold_count, per_class)
    elif header[-1] in ("1", "-1"):
        pairs = [_list_pair(path, line) for line in lines]
        folds = consecutive_folds(len(pairs), LIST_FOLDS)
    else:
        raise _malformed(path, lines[0], f"LFW's header `folds<TAB>pairs`, or {_LIST_FORM}")
    return _index(pairs, folds, path)


def consecutive_folds(count: int, folds: int = LIST_FOLDS) -> np.ndarray:
    """The fold (ints from 0) of each of `count` pairs, in order; sizes differ by at most one."""
    split = np.array_split(np.arange(count), folds)
    return np.repeat(np.arange(folds), [len(fold) for fold in split])


def _read_lines(path: Path, content: bytes) -> list[_Line]:
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise PairsError(
            f"{path}: byte {error.start} is not UTF-8 text; expected a pairs file, save it as UTF-8"
        ) from error
    # Not splitlines(): it also breaks lines at characters that a name may have.
    lines = (_Line(number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return [line for line in lines if line.text]


def _read_lfw(
    path: Path, lines: Sequence[_Line], fold_count: int, per_class: int
) -> tuple[list[_Pair], np.ndarray]:
    """The pairs and folds below an LFW header of `fold_count` folds of `per_class` pairs each."""
    block = 2 * per_class
    if not lines or len(lines) != fold_count * block:
        folds = f" ({len(lines) // block} folds)" if block and len(lines) % block == 0 else ""
        raise PairsError(
            f"{path}: the header says {fold_count} folds of {per_class} matched and {per_class} "
            f"mismatched pairs, so {fold_count * block} lines, but {len(lines)} follow{folds}; "
            f"correct the header or restore the missing lines"
        )
    pairs = [
        _lfw_pair(path, line, matched=index % block < per_class) for index, line in enumerate(lines)
    ]
    return pairs, np.arange(len(lines)) // block


def _lfw_pair(path: Path, line: _Line, matched: bool) -> _Pair:
    form = "`Name<TAB>i<TAB>j`" if matched else "`NameA<TAB>i<TAB>NameB<TAB>j`"
    fields = _split(line.text)
    names, numbers = (fields[:1] * 2, fields[1:]) if matched else (fields[::2], fields[1::2])
    if len(fields) != (3 if matched else 4) or not all(_is_number(number) for number in numbers):
        kind = "matched" if matched else "mismatched"
        expected = f"a {kind} pair {form}, as the header's number of pairs puts one here"
        raise _malformed(path, line, expected)
    left, right = (
        f"{name}/{name}_{int(number):04d}" for name, number in zip(names, numbers, strict=True)
    )
    return _Pair(left, right, matched)


def _list_pair(path: Path, line: _Line) -> _Pair:
    # The flag is split off first: some files have a tab between the names, a blank before the flag.
    *rest, flag = line.text.rsplit(maxsplit=1)
    names = _split(rest[0]) if rest else []
    if len(names) != 2 or flag not in ("1", "-1"):
        raise _malformed(path, line, _LIST_FORM)
    return _Pair(names[0], names[1], flag == "1")


def _split(text: str) -> list[str]:
    """The fields of a line: between tabs if it has any, so that names may have blanks."""
    if "\t" not in text:
        return text.split()
    return [field.strip() for field in text.split("\t") if field.strip()]


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdigit()


def _index(pairs: Sequence[_Pair], folds: np.ndarray, path: Path) -> Pairs:
    """Give each image one index, so that an image in several pairs is embedded once."""
    rows: dict[str, int] = {}
    for pair in pairs:
        rows.setdefault(pair.left, len(rows))
        rows.setdefault(pair.right, len(rows))
    return Pairs(
        names=list(rows),
        left=np.array([rows[pair.left] for pair in pairs]),
        right=np.array([rows[pair.right] for pair in pairs]),
        same=np.array([pair.same for pair in pairs]),
        folds=folds,
        source=path,
    )


def _malformed(path: Path, line: _Line, expected: str) -> PairsError:
    text = line.text if len(line.text) <= _LONGEST_QUOTE else line.text[:_LONGEST_QUOTE] + "..."
    return PairsError(f"{path}, line {line.number}: {text!r} is not a pair; expected {expected}")


def load_stored_pairs(store: ImageStore, pairs: Pairs, top: str = "") -> VerificationSet:
    """The verification set of a store's images and the pairs of their names.

    top: a folder, with its slash, that names may leave out.
    Raises DataError naming the first missing images.
    """
    known = {store.name(row): row for row in range(len(store))}
    candidates = ([p + name + s for p in ("", top) for s in _ADDED] for name in pairs.names)
    rows = [next((known[c] for c in names if c in known), None) for names in candidates]
    _require_all(pairs.names, rows, f"in {pairs.source} are not in {store.source}")
    return _with_pairs(StoredImages(store, np.array(rows, np.int64)), pairs)


def load_pairs_set(
    path: str | os.PathLike[str], file_list: str | os.PathLike[str]
) -> VerificationSet:
    """The verification set of a folder of images and a pairs file (see `read_pairs`).

    Every image file is looked for here, before an evaluation begins; none is read yet.
    Raises DataError naming the folder and the first missing images, PairsError for a pairs file
    that can't be understood.
    """
    pairs = read_pairs(file_list)
    return _with_pairs(ImageFiles(locate_images(Path(path), pairs.names, pairs.source)), pairs)


def locate_images(folder: Path, names: Sequence[str], source: str | Path) -> list[str]:
    """The files of the images that a list names, relative to the folder.

    A suffix is added where a name has no file as it is, never replaced: names may hold dots.
    source: the list. Raises DataError naming the folder, the list and the first missing images.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: is not a folder; expected the images of {source}")
    stems = [os.path.join(folder, name) for name in names]
    candidates = ((stem + suffix for suffix in _ADDED) for stem in stems)
    found = [next(filter(os.path.isfile, files), None) for files in candidates]
    _require_all(names, found, f"in {source} are not in {folder}, with or without a suffix")
    return found


def _require_all(names: Sequence[str], found: Sequence, where: str) -> None:
    """Raise DataError for names that were not found; where: the list and the place."""
    missing = [name for name, place in zip(names, found, strict=True) if place is None]
    if missing:
        first = ", ".join(missing[:_SHOWN]) + (", ..." if len(missing) > _SHOWN else "")
        raise DataError(
            f"{len(missing)} of the {len(names)} images named {where}: {first}; check the data "
            f"set's path."
        )


def _with_pairs(images: Sequence[np.ndarray], pairs: Pairs) -> VerificationSet:
    return VerificationSet(
        images=images,
        names=pairs.names,
        left=pairs.left,
        right=pairs.right,
        same=pairs.same,
        folds=pairs.folds,
    )
