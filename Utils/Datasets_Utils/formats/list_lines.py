"""The lines of an image list: which part is the path and which the label.

The form that this project writes is `path  label`. Lists of other programs are read too: the label
first; CSV; an .lst of MXNet, `index<TAB>label<TAB>path`, or of insightface,
`1<TAB>path<TAB>label` with landmarks after it; any order of columns under a header line that names
them. Labels are whole numbers, which some tools write as `3.0`, or names. One form must fit all
lines: nothing is guessed for a single line.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import is_image_name
from Utils.Datasets_Utils.text import (
    COMMAND,
    IMAGE_WORDS,
    LABEL_WORDS,
    column,
    first_few,
    is_comment,
    mended,
    numbered_lines,
    quoted,
    splits,
)
from Utils.errors import DataError
from Utils.files import reading

PLAIN = "path label"  # the form that this project writes

_TOLD = 10  # images by which labels are told from running numbers
_SAMPLE = 1000  # lines by which the form is recognised
_NUMBER = re.compile(r"(\d{1,18})(\.0*)?", re.ASCII)  # any number of 18 digits fits into an int64
_USUAL = re.compile(r"([^\t]*[^\s,;])\s+(\d{1,18})", re.ASCII)  # a line of PLAIN
_LIKE_A_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|nan", re.IGNORECASE)

Split = Callable[[str], tuple[str, str] | None]  # a line's (path, label); None for other lines


class ListLines(NamedTuple):
    """What a list says. names: N paths. labels: int64 N. classes: their names by label, where
    labels are names. notes: sentences about how it was read, where that is not plain."""

    names: PathTable
    labels: np.ndarray
    classes: list[str] | None = None
    notes: tuple[str, ...] = ()


def parse_list(
    file_list: str | Path, encoding: str = "", skip_bad: bool = False, by_folder: bool = False
) -> ListLines:
    """Read an image list. encoding: "" finds it out. skip_bad: leave out lines that are not of the
    list's form, with a note. by_folder: lines are paths alone, labelled by their first folder.

    Raises DataError for a list that can't be read, that can be read in two ways, and for a line
    that is of another form than the others.
    """
    with reading(file_list, "image list"), open(file_list, "rb") as file:
        return parse_list_file(file, Path(file_list), encoding, skip_bad, by_folder)


def parse_list_file(
    file: BinaryIO,
    file_list: Path,
    encoding: str = "",
    skip_bad: bool = False,
    by_folder: bool = False,
) -> ListLines:
    """As `parse_list`, for an open file; file_list: its name, for messages."""
    numbered = numbered_lines(file, file_list, encoding)
    lines = (line for line in numbered if line[1][0] != "#" or not is_comment(line[1]))
    sample = list(islice(lines, _SAMPLE))
    header = _by_header(sample[0][1]) if sample else None
    sample = sample[1:] if header else sample
    forms = header or FORMS
    if by_folder:
        forms = {name: partial(_labelled_by_folder, split) for name, split in forms.items()}
        forms["path"] = _folder_and_path
    form = _choose(file_list, [text for _, text in sample], forms)
    skipped = [] if skip_bad else None
    labels, numbers = array("q"), {}
    names = PathTable(_parse(chain(sample, lines), form, file_list, labels, numbers, skipped))
    found = np.frombuffer(labels, np.int64)
    classes = sorted(numbers)
    if classes:
        rank = np.empty(len(classes), np.int64)
        rank[[numbers[name] for name in classes]] = np.arange(len(classes))
        found = rank[found]
    notes = [] if form.name == PLAIN else [f"{file_list}: its lines are read as '{form.name}'"]
    if skipped:
        notes.append(f"left out: {len(skipped)} lines of another form: {first_few(skipped)}")
    if form.name != PLAIN and len(found) >= _TOLD and len(np.unique(found)) == len(found):
        raise DataError(
            f"{file_list}: read as '{form.name}', every image has a label of its own, as if that "
            f"were a running number. {_by_folder(file_list)}"
        )
    return ListLines(names, found, classes or None, tuple(notes))


@dataclass(frozen=True)
class Form:
    """How a line is read. split: a line's (path, label); None for a line of another form. named:
    whether labels are names, not numbers."""

    name: str
    split: Split
    named: bool = False

    def read(self, text: str) -> tuple[str, str] | None:
        """(path, label) of a line; None for a line of another form."""
        found = self.split(text)
        if found is None or not found[0] or not found[1]:
            return None
        path, label = found
        if not self.named:
            return found if _NUMBER.fullmatch(label) else None
        # Names are not to be mistaken for anything else: a path, or a number that is none.
        is_name = label.isdecimal() or not _LIKE_A_NUMBER.fullmatch(label)
        is_path = is_image_name(label) or "/" in label or "\\" in label
        return found if is_name and is_image_name(path) and not is_path else None


def _path_first(text: str) -> tuple[str, str] | None:
    fields = [f.strip() for f in text.split("\t") if f.strip()]
    fields = fields if "\t" in text else text.rsplit(None, 1)
    return (fields[0], fields[1]) if len(fields) == 2 and fields[0][-1] not in ",;" else None


def _label_first(text: str) -> tuple[str, str] | None:
    fields = [f.strip() for f in text.split("\t") if f.strip()]
    # Between blanks, a label that is a name could as well begin the path.
    if "\t" not in text and not _NUMBER.fullmatch((fields := text.split(None, 1))[0]):
        return None
    return _swapped(fields)


def _swapped(fields: list[str]) -> tuple[str, str] | None:
    return (fields[1], fields[0]) if len(fields) == 2 and is_image_name(fields[1]) else None


def _csv(text: str) -> tuple[str, str] | None:
    return next(((f[0], f[1]) for f in splits(text) if len(f) == 2 and _separated(text)), None)


def _csv_label_first(text: str) -> tuple[str, str] | None:
    return next(filter(None, map(_swapped, splits(text))), None) if _separated(text) else None


def _separated(text: str) -> bool:
    return "\t" not in text and ("," in text or ";" in text)


def _mxnet(text: str) -> tuple[str, str] | None:
    fields = [f.strip() for f in text.split("\t")] if "\t" in text else text.split(None, 2)
    if len(fields) < 3 or not all(map(_LIKE_A_NUMBER.fullmatch, fields[:-1])):
        return None
    # Some images are named by numbers; but then nothing else may follow, or be meant by blanks.
    plain = len(fields) == 3 and "\t" in text
    is_name = is_image_name(fields[-1]) or plain or not _LIKE_A_NUMBER.fullmatch(fields[-1])
    return (fields[-1], fields[1]) if is_name else None


def _insightface(text: str) -> tuple[str, str] | None:
    fields = [f.strip() for f in text.split("\t")]
    numbers = len(fields) >= 3 and all(map(_LIKE_A_NUMBER.fullmatch, (fields[0], *fields[2:])))
    return (fields[1], fields[2]) if numbers and not _LIKE_A_NUMBER.fullmatch(fields[1]) else None


def _labelled_by_folder(split: Split, text: str) -> tuple[str, str] | None:
    found = split(text)
    return found and _folder_and_path(found[0])


def _folder_and_path(path: str) -> tuple[str, str] | None:
    parts = path.replace("\\", "/").removeprefix("./").split("/")
    return (path, parts[0] or parts[-2]) if len(parts) > 1 else None


# The first comes before the others: there, images may have any names. To read another published
# list, add a row.
FORMS: dict[str, Split] = {
    PLAIN: _path_first,
    "label path": _label_first,
    "path,label": _csv,
    "label,path": _csv_label_first,
    "index label path": _mxnet,
    "1 path label": _insightface,
}


def _by_header(header: str) -> dict[str, Split] | None:
    """How to read the lines below a header line; None for another line."""
    for fields in splits(header):
        names = [name.lower().lstrip("# ") for name in fields]
        image, label = column(names, IMAGE_WORDS), column(names, LABEL_WORDS)
        if image is not None and label is not None:
            return {", ".join(names): partial(_columns, len(names), image, label)}
    return None


def _columns(count: int, image: int, label: int, text: str) -> tuple[str, str] | None:
    for fields in splits(text):
        if len(fields) == count:
            return fields[image], fields[label]
    # A path may have blanks, where blanks separate the columns too.
    words, after = text.split(), count - image - 1
    if len(words) < count or _separated(text) or "\t" in text:
        return None
    fields = [*words[:image], "", *words[len(words) - after :]]
    rest = text.split(None, image)[image]
    return (rest.rsplit(None, after)[0] if after else rest), fields[label]


def _choose(file_list: Path, sample: list[str], forms: dict[str, Split]) -> Form:
    """The form that fits the sample. Raises DataError if there are several."""
    by_folder = "path" in forms
    kinds = (True,) if by_folder else (False, True)
    every = [Form(name, split, named) for named in kinds for name, split in forms.items()]
    fits = {form: sum(form.read(text) is not None for text in sample) for form in every}
    # Labels of which most are numbers are numbers, and the others are mistakes.
    numbers = {form.name: count for form, count in fits.items() if not form.named}
    likely = [
        f for f in every if not f.named or 2 * numbers.get(f.name, 0) < len(sample) or by_folder
    ]
    whole = [form for form in likely if fits[form] == len(sample)]
    whole = [form for form in whole if form.name != "path"] or whole
    if len(whole) > 1 and whole[0].name != PLAIN:
        ways = ", ".join(
            f"`(echo {form.name}; cat {quoted(file_list)}) > {mended(file_list)}` for '{form.name}'"
            for form in whole
        )
        raise DataError(
            f"{file_list}: its lines, such as {sample[0][:80]!r}, can be read in several ways. A "
            f"first line that names the columns says which is right: {ways}."
        )
    unlabelled = sample and not by_folder and all(map(is_image_name, sample))
    if unlabelled and 2 * max(fits.values()) < len(sample):
        raise DataError(
            f"{file_list}: its lines, such as {sample[0][:80]!r}, are paths without labels. "
            f"{_by_folder(file_list)}"
        )
    best = whole[0] if whole else max(likely, key=fits.get)
    if sample and not fits[best]:
        raise DataError(
            f"{file_list}: its lines, such as {sample[0][:80]!r}, are of no known form; the forms "
            f"are {', '.join(FORMS)}, with labels that are names or whole numbers of at most 18 "
            f"digits. Of more columns, a first line says which they are, such as 'path label x'."
        )
    return best


def _by_folder(file_list: Path) -> str:
    return (
        f"Where the first folder of a path is the person, `{_command(file_list)} --by_folder` "
        f"writes a list with labels."
    )


def _command(file_list: Path) -> str:
    return f"{COMMAND} {quoted(file_list)} {mended(file_list)}"


def _parse(
    lines: Iterator[tuple[int, str]],
    form: Form,
    file_list: Path,
    labels: array,
    numbers: dict[str, int],
    skipped: list[int] | None,
) -> Iterator[str]:
    """The paths; appends the labels, and gives those that are names numbers in their order.

    skipped: gets the numbers of lines of another form; None: they are errors.
    """
    plain = form == Form(PLAIN, _path_first)
    for number, text in lines:
        # Millions of usual lines are read here, with fewer calls than `form.read` needs.
        if plain and (usual := _USUAL.fullmatch(text)):
            labels.append(int(usual[2]))
            yield usual[1]
            continue
        found = form.read(text)
        if found is None and skipped is None:
            raise DataError(
                f"{file_list}, line {number}: {text[:80]!r} is not 'path  label' with a whole "
                f"number of at most 18 digits as the label, or is of another form than the lines "
                f"before it. Correct it, or let `{_command(file_list)} --skip_bad` write a list "
                f"without such lines."
            )
        if found is None:
            skipped.append(number)
            continue
        path, label = found
        if form.named:
            labels.append(numbers.setdefault(label, len(numbers)))
        else:
            labels.append(int(label.partition(".")[0]))
        yield path
