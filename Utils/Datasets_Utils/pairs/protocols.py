"""Pairs as two benchmarks distribute them in forms of their own.

AgeDB-30 (Moschoglou et al., 2017): `04_FINAL_protocol_30_years.mat`. `splits` is a cell of folds,
each a struct of a 2×n cell of images (a struct whose first field is the name, without a suffix, of
a file in `03_Protocol_Images`) and of n labels, 1 for a matched pair and -1 for a mismatched one.

CFP (Sengupta et al., 2016): folders `Protocol/Split/FP/01` ... `10` (frontal and profile; FF:
frontal both), each with `same.txt` and `diff.txt`. Their lines `i,j` are numbers of images in
`Protocol/Pair_list_F.txt` and `Pair_list_P.txt`, whose lines are `number path`, with paths relative
to `Protocol`.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.pairs.contents import Pairs, PairsError, index_pairs
from Utils.Datasets_Utils.pairs.lines import Pair, is_number
from Utils.Datasets_Utils.text import numbered_lines
from Utils.files import reading
from Utils.matlab_files import parse_matlab

_NO_LINES = np.empty((0, 1), np.int64)
_CFP = "folders 01 to 10 with same.txt and diff.txt, as CFP's Protocol/Split/FP and FF have them"


# --- AgeDB-30 ----------------------------------------------------------------------------------


def is_mat(path: Path, content: bytes) -> bool:
    """Whether a file is MATLAB's, by its first bytes or its name."""
    return content.startswith(b"MATLAB") or path.suffix.lower() == ".mat"


def parse_agedb(path: Path, content: bytes) -> Pairs:
    """The pairs in AgeDB's protocol file; its folds are the splits.

    Raises PairsError, naming the split and the pair, for a file of another shape.
    """
    splits = parse_matlab(path, content, ("splits",), PairsError)["splits"]
    if not isinstance(splits, np.ndarray) or splits.dtype != object or not splits.size:
        raise PairsError(
            f"{path}: the variable splits is no cell array, as in AgeDB's protocol files; give "
            f"04_FINAL_protocol_30_years.mat, or another file of the pairs of these images."
        )
    pairs, folds = [], []
    for fold, split in enumerate(splits.ravel()):
        where = f"{path}, split {fold + 1}"
        cell, labels = _fields(where, split, 2)
        labels = labels.ravel()
        if cell.dtype != object or cell.shape != (2, len(labels)) or labels.dtype.kind not in "iuf":
            raise PairsError(
                f"{where}: holds {cell.shape} of {cell.dtype} and {len(labels)} labels of "
                f"{labels.dtype}; expected a 2×n cell of images and n labels, as in AgeDB's file."
            )
        for at, label in enumerate(labels.tolist()):
            where = f"{path}, split {fold + 1}, pair {at + 1}"
            if label not in (1, -1):
                raise PairsError(
                    f"{where}: the label is {label}; expected 1 (one person) or -1 (two people)."
                )
            left, right = (_text(where, _fields(where, image, 1)[0]) for image in cell[:, at])
            pairs.append(Pair(left, right, label == 1))
            folds.append(fold)
    if not pairs:
        raise PairsError(f"{path}: its splits hold no pairs.")
    return index_pairs(pairs, np.array(folds), path, _NO_LINES)


def _fields(where: str, value: object, count: int) -> list[np.ndarray]:
    """The first fields of a 1×1 struct."""
    names = value.dtype.names if isinstance(value, np.ndarray) and value.size == 1 else None
    if not names or len(names) < count:
        raise PairsError(
            f"{where}: expected a struct of at least {count} fields, as in AgeDB's protocol file."
        )
    return [np.asarray(value[name].item()) for name in names[:count]]


def _text(where: str, value: np.ndarray) -> str:
    if value.dtype.kind != "U" or value.size != 1 or not value.item().strip():
        raise PairsError(f"{where}: the first field of an image is not its name.")
    return value.item().strip()


# --- CFP ---------------------------------------------------------------------------------------


class Files:
    """Where a protocol's files are: here, on disk."""

    def in_folders(self, folder: Path, name: str) -> list[Path]:
        """The files of that name in the folders of a folder."""
        return sorted(folder.glob(f"*/{name}"))

    def read(self, path: Path) -> bytes:
        """The bytes of a file. Raises PairsError, naming it, if it can't be read."""
        with reading(path, "file of CFP's protocol", PairsError):
            return path.read_bytes()


class FilesBelow(Files):
    """The files of an archive, as if they lay below its path.

    names: of all its files. content: the bytes of one, by its name.
    """

    def __init__(
        self, archive: Path, names: Iterable[str], content: Callable[[Path], bytes]
    ) -> None:
        self.archive, self.content = archive, content
        self.paths = sorted(archive / name for name in names if name.endswith(tuple(_KINDS)))

    def in_folders(self, folder: Path, name: str) -> list[Path]:
        return [p for p in self.paths if p.name == name and p.parent.parent == folder]

    def read(self, path: Path) -> bytes:
        return self.content(path.relative_to(self.archive))


ON_DISK = Files()


def cfp_splits(folder: Path, files: Files = ON_DISK) -> list[Path]:
    """The folders FP and FF of CFP's splits at or below a folder: itself, in `Split`, or in
    `Protocol/Split`."""
    if files.in_folders(folder, "same.txt"):
        return [folder]
    places = (folder / below / name for below in ("", "Split", "Protocol/Split") for name in _SIDES)
    return [place for place in places if files.in_folders(place, "same.txt")]


# The lists that the two numbers of a line are from.
_SIDES = {"FP": ("Pair_list_F.txt", "Pair_list_P.txt"), "FF": ("Pair_list_F.txt",) * 2}


def read_cfp(folder: Path, files: Files = ON_DISK) -> Pairs:
    """The pairs of CFP's folder of splits, FP or FF; its folds are the folders 01, 02, ...

    Names are relative to the data set's folder: `Data/Images/001/frontal/01.jpg`. Raises
    PairsError, naming file and line, and for a folder that holds both FP and FF, or neither.
    """
    splits = cfp_splits(folder, files)
    if len(splits) != 1:
        found = " and ".join(map(str, splits))
        raise PairsError(
            f"{folder}: is a folder that holds {found}; name the one that you mean as the pairs "
            f"file (FP: frontal and profile, FF: frontal alone)."
            if splits
            else f"{folder}: is a folder; expected a pairs file, or {_CFP}."
        )
    split = splits[0].absolute()
    if split.name not in _SIDES:
        raise PairsError(
            f"{split}: expected a folder named FP (frontal and profile) or FF (frontal alone), "
            f"which says what the numbers in it count; rename it."
        )
    lists = [split.parent.parent / name for name in _SIDES[split.name]]
    left, right = (_cfp_images(file, files) for file in lists)
    pairs, folds = [], []
    parts = sorted({file.parent for name in _KINDS for file in files.in_folders(split, name)})
    for fold, part in enumerate(parts):
        if is_number(part.name) and int(part.name) != fold + 1:
            raise PairsError(
                f"{split}: the folder {fold + 1:02d} is missing, before {part.name}; expected "
                f"{_CFP}."
            )
        for name, same in _KINDS.items():
            for number, text in _lines(part / name, files):
                where = f"{part / name}, line {number}: {text!r}"
                words = [word.strip() for word in text.split(",")]
                if len(words) != 2 or not all(map(is_number, words)):
                    raise PairsError(f"{where} is not a pair; expected `i,j`, two image numbers.")
                names = []
                for word, images, file in zip(words, (left, right), lists, strict=True):
                    if int(word) not in images:
                        raise PairsError(
                            f"{where} has image {word}, but {file} numbers {len(images)} images, "
                            f"from {min(images)} to {max(images)}."
                        )
                    names.append(images[int(word)])
                pairs.append(Pair(*names, same))
                folds.append(fold)
    if not pairs:
        raise PairsError(f"{split}: its {len(parts)} folders hold no pairs; expected {_CFP}.")
    return index_pairs(pairs, np.array(folds), folder, _NO_LINES)


_KINDS = {"same.txt": True, "diff.txt": False}


def _cfp_images(path: Path, files: Files) -> dict[int, str]:
    """The names of a list's images, by their numbers."""
    images: dict[int, str] = {}
    for number, text in _lines(path, files):
        index, _, name = text.partition(" ")
        name = name.strip().replace("\\", "/")
        if not is_number(index) or not name:
            raise PairsError(
                f"{path}, line {number}: {text!r} is not an image; expected `number path`, as "
                f"`1 ../Data/Images/001/frontal/01.jpg`."
            )
        if int(index) in images:
            raise PairsError(f"{path}, line {number}: image {index} is there a second time.")
        images[int(index)] = posixpath.normpath(posixpath.join("Protocol", name))
    if not images:
        raise PairsError(f"{path}: is empty; expected lines `number path` of images.")
    return images


def _lines(path: Path, files: Files) -> list[tuple[int, str]]:
    return list(numbered_lines(io.BytesIO(files.read(path)), path, raises=PairsError))
