"""The lines of a pairs file: the images of a pair and whether they are of one person, in each form.

The forms are described in `lists`. Another published form is one more row in READINGS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from Utils.Datasets_Utils.text import (
    FLAG_WORDS,
    GROUP_WORDS,
    LEFT_WORDS,
    RIGHT_WORDS,
    column,
    fields_of,
    splits,
)

_MOST_DIGITS = 18
_FLAGS = {"1": True, "0": False, "-1": False, "1.0": True, "0.0": False, "-1.0": False}
_FLAGS |= {"+1": True, "true": True, "false": False}


class Pair(NamedTuple):
    """Two images, by their names."""

    left: str
    right: str
    same: bool
    flag: str = ""  # as the file has it
    group: str = ""


Reader = Callable[[str], Pair | None]  # of a line's text; None for another kind of line


def by_header(header: list[str]) -> Reader | None:
    """The reader of the lines below a header that names columns; None for another line."""
    names = [name.lower().lstrip("# ") for name in header]
    if names[0] in ("name", "name1", "person", "person1") and "imagenum1" in names:
        return lfw_pair
    places = [column(header, words) for words in (LEFT_WORDS, RIGHT_WORDS, FLAG_WORDS)]
    if None in places:
        return None
    group = column(header, GROUP_WORDS)

    def read(text: str) -> Pair | None:
        for fields in splits(text):
            if group == len(fields) == len(header) - 1 and ("\t" in text or text[-1] in ",;"):
                fields.append("")  # a pair of no group: the last column is empty
            if len(fields) == len(header) and (pair := _flagged([fields[p] for p in places])):
                return pair._replace(group="" if group is None else fields[group])
        return None

    return read


def _first(pairs: Iterable[Pair | None]) -> Pair | None:
    return next((pair for pair in pairs if pair), None)


def list_pair(text: str) -> Pair | None:
    return _first(_flagged(fields) for fields in (*splits(text), _split_flag(text)))


def _split_flag(text: str) -> list[str]:
    # Some files have a tab between the names, and a blank before the flag.
    *rest, flag = text.rsplit(maxsplit=1)
    return [*fields_of(rest[0]), flag] if rest else []


def _flag_first(text: str) -> Pair | None:
    return _first(_flagged([*fields[1:], fields[0]]) for fields in splits(text))


def _flagged(fields: list[str]) -> Pair | None:
    """The pair of three fields: left, right, flag; None for other fields."""
    if len(fields) != 3 or fields[2].lower() not in _FLAGS:
        return None
    return Pair(fields[0], fields[1], _FLAGS[fields[2].lower()], fields[2])


def lfw_pair(text: str) -> Pair | None:
    return _first(map(_names_and_numbers, splits(text)))


def _names_and_numbers(fields: list[str]) -> Pair | None:
    matched = len(fields) == 3
    names, numbers = (fields[:1] * 2, fields[1:]) if matched else (fields[::2], fields[1::2])
    if len(fields) not in (3, 4) or not all(map(is_number, numbers)):
        return None
    left, right = (
        f"{name}/{name}_{int(number):04d}" for name, number in zip(names, numbers, strict=True)
    )
    return Pair(left, right, matched)


# The forms of a line in a file without a header. A file is read in the one that fits all its lines;
# the first, in which images may have any names, before the others.
PLAIN = "left right flag"
READINGS: dict[str, Reader] = {
    PLAIN: list_pair,
    "flag left right": _flag_first,
    "LFW's name and numbers": lfw_pair,
}
# The header lines that choose between them.
HEADERS = {
    PLAIN: "left right same",
    "flag left right": "same left right",
    "LFW's name and numbers": "name imagenum1 imagenum2",
}


def is_number(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) <= _MOST_DIGITS
