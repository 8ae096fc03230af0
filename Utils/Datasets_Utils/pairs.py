"""Pairs files: which two images make a pair, whether they show one person, and in which fold.

There are two formats, recognised by their contents.

LFW's (http://vis-www.cs.umass.edu/lfw/README.txt): a header `folds<TAB>n`, then for each fold n
matched pairs `Name<TAB>i<TAB>j` and n mismatched ones `NameA<TAB>i<TAB>NameB<TAB>j`. Image i of a
person is `Name/Name_000i`, with a suffix that the file does not give.

The list that circulates with AgeDB-30 and CFP-FP: `left right 1` or `left right -1`, with image
names relative to the data set's folder. It names no folds: ten consecutive ones are made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.errors import UserError
from Utils.files import reading

LIST_FOLDS = 10  # as published figures for AgeDB-30 and CFP-FP use
_LONGEST_QUOTE = 80
_MATCHED_FORM = "a matched pair `Name<TAB>i<TAB>j`"
_MISMATCHED_FORM = "a mismatched pair `NameA<TAB>i<TAB>NameB<TAB>j`"
_LIST_FORM = "`left right 1` or `left right -1` (tabs between them if names hold blanks)"


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
    fields = _split(line.text)
    names, numbers = (fields[:1] * 2, fields[1:]) if matched else (fields[::2], fields[1::2])
    if len(fields) != (3 if matched else 4) or not all(_is_number(number) for number in numbers):
        form = _MATCHED_FORM if matched else _MISMATCHED_FORM
        raise _malformed(path, line, f"{form}, as the header's number of pairs puts one here")
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
    """Number each image once: an image in several pairs is embedded once."""
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
