"""IJB's list of pairs of templates: 15.7 million lines, read in a few seconds."""

import itertools
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.text import as_whole_number, numbered_lines
from Utils.errors import DataError
from Utils.files import reading

_CHUNK = 1 << 24  # bytes that are read at once
_SPACE, _NEWLINE = 32, 10
_LARGEST_TABLE = 1 << 24


def read_pairs(path: Path, template_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(int32 P and int32 P rows of template_ids, bool P), of lines `template template 1|0`.

    Raises DataError, naming the line, for another line, an unknown template, or one kind of pair.
    """
    parts = []
    with reading(path, "IJB list"):
        try:
            parts.extend(_fast_lines(path))
        except _OddLineError:  # such as other blanks, or a mistake that is named by reading on
            parts = [_slow_lines(path)]
    table = np.concatenate(parts) if parts else np.empty((0, 3), np.int32)
    if not len(table):
        raise DataError(f"{path} has no pairs; expected `template template 1|0` on each line.")
    wrong = np.flatnonzero((table[:, 2] != 0) & (table[:, 2] != 1))
    if wrong.size:
        raise DataError(
            f"{_pair_place(path, wrong[0])}: the label is {table[wrong[0], 2]}; expected 1 for "
            f"the same person and 0 for different people."
        )
    same = table[:, 2].astype(bool)
    rows = []
    for column in (0, 1):
        found = rows_of(table[:, column], template_ids)
        if (unknown := np.flatnonzero(found < 0)).size:
            raise DataError(
                f"{_pair_place(path, unknown[0])}: no image belongs to the template "
                f"{table[unknown[0], column]}; it is not in the list of images and templates."
            )
        rows.append(found)
    if same.all() or not same.any():
        kind = "genuine" if same[0] else "impostor"
        raise DataError(f"{path} has {kind} pairs only; figures need pairs of both kinds.")
    return rows[0], rows[1], same


class _OddLineError(Exception):
    """A chunk of lines is not three whole numbers with one blank between, as distributed."""


def _fast_lines(path: Path) -> Iterator[np.ndarray]:
    """int32 n×3 for each chunk of lines."""
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            chunk += file.readline()
            if not chunk.endswith(b"\n"):
                chunk += b"\n"
            letters = np.frombuffer(chunk, np.uint8)
            gaps = np.flatnonzero(letters <= _SPACE)
            if len(gaps) % 3 or (np.diff(gaps, prepend=-1) < 2).any():
                raise _OddLineError
            if (letters[gaps].reshape(-1, 3) != (_SPACE, _SPACE, _NEWLINE)).any():
                raise _OddLineError
            if (digits := letters[letters > _SPACE]).min() < ord("0") or digits.max() > ord("9"):
                raise _OddLineError
            # At most nine digits each, which int32 holds.
            if np.diff(gaps, prepend=-1).max() > 10:
                raise _OddLineError
            yield np.fromstring(chunk, np.int32, sep=" ").reshape(-1, 3)


def _slow_lines(path: Path) -> np.ndarray:
    numbers = array("q")
    with open(path, "rb") as file:
        for number, text in numbered_lines(file, path):
            try:
                left, right, label = map(as_whole_number, text.split())
                numbers.extend((left, right, label))
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: {text[:80]!r} is not a pair; expected `template "
                    f"template 1|0`, whole numbers with blanks between."
                ) from None
    return np.array(numbers).reshape(-1, 3)


def _pair_place(path: Path, pair: int) -> str:
    """The file and the line of a pair: blank lines are not counted among the pairs."""
    with open(path, "rb") as file:
        number, _ = next(itertools.islice(numbered_lines(file, path), int(pair), None))
    return f"{path}, line {number}"


def rows_of(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """int32 rows of ids among known, ascending ones; -1 for others."""
    if known[0] >= 0 and known[-1] < _LARGEST_TABLE:  # four times faster for millions of ids
        table = np.full(known[-1] + 2, -1, np.int32)
        table[known] = np.arange(len(known))
        return table[np.where((ids < 0) | (ids > known[-1]), known[-1] + 1, ids)]
    rows = np.searchsorted(known, ids).astype(np.int32)
    rows[rows == len(known)] = 0
    rows[known[rows] != ids] = -1
    return rows
