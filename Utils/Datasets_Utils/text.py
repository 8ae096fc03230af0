"""Lists in text files as people have them: their encoding, lines, fields and header lines.

UTF-8 and UTF-16 are told apart by a byte order mark or by the zero bytes of UTF-16. Text of another
code page is kept byte for byte, as Python does for names of files ("surrogateescape"): the images
on the disk show which one it is, see names.py, unless the setting `list_encoding` names it.
"""

from __future__ import annotations

import codecs
import csv
import io
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from Utils.errors import DataError, UserError

# What header lines call a column.
LEFT_WORDS = frozenset({"left", "image1", "img1", "path1", "file1", "im1", "a"})
RIGHT_WORDS = frozenset({"right", "image2", "img2", "path2", "file2", "im2", "b"})
SAME_WORDS = frozenset({"same", "issame", "is_same", "match", "matched", "ismatch", "is_match"})
DIFFERENT_WORDS = frozenset({"different", "mismatch", "mismatched"})
FLAG_WORDS = SAME_WORDS | DIFFERENT_WORDS | {"label", "flag", "target"}
GROUP_WORDS = frozenset({"group", "race", "ethnicity", "subgroup"})
IMAGE_WORDS = frozenset({"path", "image", "img", "file", "filename", "file_name", "name"}) | {
    *("image_path", "img_path", "filepath", "file_path", "image_name", "imagepath", "images")
}
LABEL_WORDS = frozenset({"label", "class", "id", "identity", "person", "target", "subject"}) | {
    *("class_id", "person_id", "identity_id", "subject_id", "classid", "label_id", "labels", "pid")
}

_LONGEST_NUMBER = 18  # characters: any such number fits into an int64
SHOWN = 3  # examples that a message names
COMMAND = "python -m Utils.Datasets_Utils.generate_dataset_list"  # writes a mended list

TEXT_SUFFIXES = (".txt", ".lst", ".csv", ".tsv", ".list")

_COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ\0")  # gzip, zip, bzip2, xz
_SAMPLE = 1 << 12  # bytes by which UTF-16 without a mark is recognised
_MARKS = (  # UTF-32's begin with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def numbered_lines(
    file: BinaryIO, path: Path, encoding: str = "", raises: type[UserError] = DataError
) -> Iterator[tuple[int, str]]:
    """(number from 1, text without blanks around it) of the lines that are not blank.

    file: opened at its beginning. path: its name, for messages. encoding: "" finds it out. Lines
    end with any of LF, CRLF and CR. Raises `raises`, naming the line, for bytes that are not text
    of that encoding, for NUL bytes, for a compressed file, and for an unknown encoding.
    """
    sample = file.read(_SAMPLE)
    file.seek(0)
    if sample.startswith(_COMPRESSED):
        raise raises(f"{path} is a compressed file or an archive: unpack it, give the list in it.")
    found = encoding or _encoding_of(sample)
    errors = "surrogateescape" if found == "utf-8-sig" else "strict"
    number = 0
    try:
        if codecs.lookup(found).name == "utf-8":
            found = "utf-8-sig"  # a byte order mark is no part of the first name
        for number, line in enumerate(io.TextIOWrapper(file, found, errors), 1):
            if "\0" in line:
                raise raises(
                    f"{path}, line {number}: there are NUL bytes in it, as a file has that was not "
                    f"written to its end. `tr -d '\\000' < {quoted(path)} > {mended(path)}` "
                    f"writes it without them."
                )
            if text := line.strip():
                yield number, text
    except LookupError:
        raise raises(
            f"list_encoding is {encoding!r}, which is no encoding that Python knows; it is such as "
            f"utf-8, utf-16, gbk, big5, cp932 or cp1252."
        ) from None
    except UnicodeError:
        raise raises(
            f"{path}, after line {number}: there are bytes that are not {encoding or found} text. "
            f"`--list_encoding NAME` names its encoding, such as gbk, big5, cp932 or cp1252."
        ) from None


def _encoding_of(sample: bytes) -> str:
    for mark, encoding in _MARKS:
        if sample.startswith(mark):
            return encoding
    # Latin letters, digits and line ends are most of any list, and have a zero byte in UTF-16.
    first, second = sample[0::2].count(0), sample[1::2].count(0)
    if 4 * max(first, second) > len(sample) and min(first, second) == 0:
        return "utf-16-le" if second else "utf-16-be"
    return "utf-8-sig"


def is_text(path: Path) -> bool:
    """Whether a file begins as text does; NUL bytes are in UTF-16 only, or in a damaged list."""
    if path.suffix.lower() in TEXT_SUFFIXES:
        return True
    with open(path, "rb") as file:
        sample = file.read(_SAMPLE)
    return _encoding_of(sample) != "utf-8-sig" or not sample.count(0)


def is_comment(text: str) -> bool:
    """Whether a line is a comment: `#` and a blank. A folder's name may begin with `#`."""
    return text.startswith("#") and not text[1:2].strip("# \t")


def fields_of(text: str) -> list[str]:
    """The fields of a line, as the first of `splits`."""
    return next(splits(text))


def splits(text: str) -> Iterator[list[str]]:
    """The ways to split a line into fields: between tabs if it has any; otherwise between commas or
    semicolons, with or without quotes, where fields but the last may be empty; between blanks."""
    if "\t" in text:
        yield [field for f in text.split("\t") if (field := f.strip())]
        return
    for separator in ",;":
        if separator in text:
            row = csv.reader([text.rstrip(f"{separator} ")], delimiter=separator)
            with suppress(csv.Error):  # a field is longer than any path
                if fields := [field.strip() for field in next(row)]:
                    yield fields
    yield text.split()


def csv_fields(text: str, separator: str = ",") -> list[str]:
    """The fields of a line of CSV; where one is longer than any path, without regard to quotes."""
    try:
        return next(csv.reader([text], delimiter=separator), [])
    except csv.Error:
        return text.split(separator)


def as_number(text: str) -> float:
    """A number as all programs write it. Raises ValueError for what Python alone reads as one, too:
    1_0, and digits of other scripts."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def as_whole_number(text: str) -> int:
    """A whole number that an int64 holds. Raises ValueError as `as_number` does."""
    if "_" in text or not text.isascii() or len(text) > _LONGEST_NUMBER:
        raise ValueError(text)
    return int(text)


def column(header: list[str], words: Collection[str]) -> int | None:
    """The only column whose name is one of these; None for none or several."""
    found = [i for i, name in enumerate(header) if name.lower().lstrip("# ") in words]
    return found[0] if len(found) == 1 else None


def first_few(names: Sequence[object], count: int = SHOWN) -> str:
    """The first names, for a message."""
    return ", ".join(map(str, names[:count])) + (", ..." if len(names) > count else "")


def quoted(path: Path) -> str:
    """A path as a shell takes it."""
    return shlex.quote(str(path))


def mended(path: Path) -> str:
    """Beside a list, the path that messages propose for a mended one, as a shell takes it."""
    return quoted(path.with_name(f"{path.stem}_mended{path.suffix}"))
