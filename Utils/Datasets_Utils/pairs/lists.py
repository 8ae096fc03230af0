"""Pairs in text files, recognised by their contents.

LFW's (http://vis-www.cs.umass.edu/lfw/README.txt): a header `folds<TAB>n`, then for each fold n
matched pairs `Name<TAB>i<TAB>j` and n mismatched ones `NameA<TAB>i<TAB>NameB<TAB>j`. Image i of a
person is `Name/Name_000i`, with a suffix that the file does not give. The header of its development
sets is `n` alone, for one fold; copies in CSV have `name,imagenum1,imagenum2` in its place; RFW's
files (http://whdeng.cn/RFW/testing.html) have no header, and their ten folds follow each other.

A list: `left right 1` for a matched pair, `left right -1` (as it circulates with AgeDB-30 and
CFP-FP) or `left right 0` for a mismatched one, with image names relative to the data set's folder;
or the flag first. CSV may have a header, which names the columns; one may be `group`.

CALFW's and CPLFW's: two lines `image label` for a pair, with one label: 0 for a mismatched pair,
otherwise 1 or (CALFW) the fold. First come all matched pairs, then all mismatched ones, each kind
in ten consecutive folds.

Other pairs are divided into ten folds, in order.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.folds import consecutive_folds, folds_by_kind
from Utils.Datasets_Utils.pairs.contents import (
    Pairs,
    PairsError,
    deleting,
    index_pairs,
    malformed,
    with_header,
)
from Utils.Datasets_Utils.pairs.lines import (
    HEADERS,
    PLAIN,
    READINGS,
    Pair,
    Reader,
    by_header,
    is_number,
    lfw_pair,
    list_pair,
)
from Utils.Datasets_Utils.text import (
    DIFFERENT_WORDS,
    FLAG_WORDS,
    IMAGE_WORDS,
    SAME_WORDS,
    fields_of,
    is_comment,
    numbered_lines,
    splits,
)

_LIST_FORM = (
    "`left right 1` or `left right -1` or `left right 0` (tabs between them if names hold blanks)"
)


class _Line(NamedTuple):
    number: int
    text: str


def parse_list(path: Path, content: bytes, encoding: str = "") -> Pairs:
    """The pairs in the bytes of a text file of any form (see above). Blank lines and comments are
    left out; LFW's names become `Name/Name_0001`, without a suffix.

    path: the file's name, for messages. Raises PairsError for a malformed line, with its number and
    text, for another number of lines than LFW's header gives, with both numbers, and for a file
    that can be read in two ways.
    """
    found = list(numbered_lines(io.BytesIO(content), path, encoding, PairsError))
    lines = [_Line(number, text) for number, text in found if not is_comment(text)]
    if not lines:
        raise PairsError(
            f"{path}: is empty, expected LFW's pairs format or lines {_LIST_FORM}; name another "
            f"pairs file, or none for a set that holds its pairs"
        )
    header = fields_of(lines[0].text)
    if len(header) <= 2 and all(map(is_number, header)):
        per_class = int(header[-1])
        fold_count = int(header[0]) if len(header) == 2 else 1
        pairs, folds = _read_lfw(path, lines, fold_count, per_class)
        lines, counted = lines[1:], lines[0].number
    elif _has_two_columns(header):
        return _read_two_lines(path, lines[1:], True)
    elif 2 * sum(map(bool, map(_labelled, lines))) > len(lines):
        named = header[0].lower().lstrip("# ") in IMAGE_WORDS and not _labelled(lines[0])
        return _read_two_lines(path, lines[1:] if named else lines, False)
    else:
        read = by_header(header)
        readings = {"the header's columns": read} if read else READINGS
        body = lines[1:] if read else lines
        if not body:
            raise PairsError(f"{path}: holds no pairs below its header {lines[0].text!r}.")
        name, pairs = _read_all(path, body, readings)
        words = {word.lower() for word in header} if read else set()
        if DIFFERENT_WORDS & words:
            pairs = [pair._replace(same=not pair.same) for pair in pairs]
        elif not SAME_WORDS & words:
            _check_flags(path, pairs, " ".join(header) if read else HEADERS[name], bool(read))
        lines, counted = body, 0
        folds = consecutive_folds(len(pairs))
    return index_pairs(pairs, folds, path, [[line.number] for line in lines], counted)


def _read_lfw(
    path: Path, lines: Sequence[_Line], fold_count: int, per_class: int
) -> tuple[list[Pair], np.ndarray]:
    """The pairs and folds of LFW's file: a header, `fold_count` folds of `per_class` pairs each."""
    first, lines, block = lines[0], lines[1:], 2 * per_class
    without = f"; without its header it is read in ten folds: {deleting(path, [first.number])}"
    if not lines or len(lines) != fold_count * block:
        folds = f" ({len(lines) // block} folds)" if block and len(lines) % block == 0 else ""
        remedy = without if all(lfw_pair(line.text) for line in lines) and lines else ""
        raise PairsError(
            f"{path}: the header says {fold_count} folds of {per_class} matched and {per_class} "
            f"mismatched pairs, so {fold_count * block} lines, but {len(lines)} follow{folds}; "
            f"correct the header or restore the missing lines{remedy}"
        )
    pairs = [lfw_pair(line.text) for line in lines]
    out_of_place = [
        (line, index % block < per_class)
        for index, (line, pair) in enumerate(zip(lines, pairs, strict=True))
        if pair is None or pair.same != (index % block < per_class)
    ]
    if out_of_place:
        line, matched = out_of_place[0]
        form = "`Name<TAB>i<TAB>j`" if matched else "`NameA<TAB>i<TAB>NameB<TAB>j`"
        kind = "matched" if matched else "mismatched"
        bad = [line.number for line, pair in zip(lines, pairs, strict=True) if pair is None]
        raise malformed(
            path,
            line,
            f"a {kind} pair {form}, as the header's number of pairs puts one here",
            [first.number, *bad],
            "without the header, and such lines, it is read in ten folds",
        )
    return pairs, np.arange(len(lines)) // block


def _read_two_lines(path: Path, lines: Sequence[_Line], has_header: bool) -> Pairs:
    """The pairs of CALFW's and CPLFW's files: two lines `image label` for each.

    A list of images with their classes looks the same, so without a header the images' names and
    the order of the labels have to be those of pairs.
    """
    fields = [_labelled(line) for line in lines]
    for line, found in zip(lines, fields, strict=True):
        if not found:
            raise malformed(path, line, "`image label`, as the other lines are", [], "")
    if len(fields) % 2 or not fields:
        raise PairsError(
            f"{path}: lines `image label` are read as two for each pair, but there are "
            f"{len(fields)}, the last of them line {lines[-1].number if lines else 1}; give the "
            f"file of pairs that belongs to the images, {_LIST_FORM}."
        )
    pairs = []
    for at in range(0, len(fields), 2):
        (left, label), (right, other) = fields[at : at + 2]
        if int(label) != int(other):
            raise PairsError(
                f"{path}, lines {lines[at].number} and {lines[at + 1].number}: the labels {label} "
                f"and {other} differ, where two lines `image label` are a pair of one label, as in "
                f"CALFW's and CPLFW's lists; a list of images with their classes is none. Correct "
                f"them, or give pairs {_LIST_FORM}."
            )
        pairs.append(Pair(left, right, int(label) != 0, label))
    same = np.array([pair.same for pair in pairs])
    people = [(_person(pair.left), _person(pair.right)) for pair in pairs if not pair.same]
    if not has_header and (
        not same.any()
        or not people
        or all(left == right for left, right in people)
        or (np.diff(same.astype(int)) > 0).any()
    ):
        raise PairsError(
            f"{path}: may be two lines `image label` for each pair, but may also be a list of "
            f"images with their classes, as it does not have matched pairs (a label other than 0) "
            f"and then mismatched pairs of different people (label 0). If two lines are a pair, a "
            f"first line says so: {with_header(path, 'image same')}"
        )
    numbers = np.array([line.number for line in lines]).reshape(-1, 2)
    return index_pairs(pairs, folds_by_kind(same), path, numbers)


def _labelled(line: _Line) -> list[str] | None:
    """[image, label] of a line of two fields; None for another line."""
    if list_pair(line.text):
        return None
    fields = (f for f in splits(line.text) if len(f) == 2 and is_number(f[1]))
    return next((f for f in fields if not is_number(f[0])), None)


def _has_two_columns(header: list[str]) -> bool:
    """Whether a line is the header of lines `image label`, two for a pair."""
    names = [name.lower().lstrip("# ") for name in header]
    return len(names) == 2 and names[0] in IMAGE_WORDS and names[1] in SAME_WORDS


def _person(name: str) -> str:
    """A name without its image number: `Ann_Lee` of `Ann_Lee_0001.jpg` or `Ann_Lee/1.jpg`."""
    stem = os.path.splitext(name)[0].rstrip("0123456789")
    return stem[:-1] if stem.endswith(("_", "/", "\\", " ")) else stem


def _read_all(
    path: Path, lines: Sequence[_Line], readings: dict[str, Reader]
) -> tuple[str, list[Pair]]:
    """(the one reading that fits all lines, their pairs)."""
    found = {}
    for name, read in readings.items():
        found[name] = [read(line.text) for line in lines]
        if name == PLAIN and None not in found[name]:
            break
    fits = [name for name, pairs in found.items() if None not in pairs]
    if len(fits) > 1:
        raise PairsError(
            f"{path}: every line can be read as {' and as '.join(fits)}. A first line that names "
            f"the columns says which it is: "
            + ", ".join(f"{with_header(path, HEADERS[name])} for {name}" for name in fits)
        )
    # Of readings that all fail, the message is about the one that fits the most lines.
    name = fits[0] if fits else min(found, key=lambda name: found[name].count(None))
    pairs = found[name]
    bad = [line for line, pair in zip(lines, pairs, strict=True) if pair is None]
    if bad:
        expected = _LIST_FORM if len(bad) < len(pairs) else f"LFW's header, or {_LIST_FORM}"
        numbers = [line.number for line in bad] if len(bad) < len(pairs) else []
        raise malformed(path, bad[0], expected, numbers, "without such lines it can be read")
    return name, pairs


def _check_flags(path: Path, pairs: Sequence[Pair], header: str, has_header: bool) -> None:
    """Raise PairsError for flags that may mean something else than they are read as.

    header: the words of a header line for the file; has_header: whether it has that line.
    """
    words = [word for word in header.split() if word.lower() in FLAG_WORDS]
    copy = "sed 1d" if has_header else "cat"
    say = {
        word: with_header(path, header.replace(words[0], word), copy)
        for word in ("same", "different")
        if words
    }
    zeros = sorted({pair.flag for pair in pairs if pair.flag and not pair.same})
    if len({zero.removesuffix(".0") for zero in zeros} & {"0", "-1"}) > 1:
        raise PairsError(
            f"{path}: some pairs have the flag 0 and others -1, of which one may mean something "
            f"else than a mismatched pair. If both mean that, a first line says so: {say['same']}"
        )
    folders = [(os.path.dirname(pair.left), os.path.dirname(pair.right)) for pair in pairs]
    shared = [left == right != "" for left, right in folders]
    if (
        say
        and len(set(shared)) == 2
        and all(inside != pair.same for inside, pair in zip(shared, pairs, strict=True))
    ):
        raise PairsError(
            f"{path}: all pairs within one folder are flagged as mismatched, and all others as "
            f"matched; does 1 mean 'different' here? A first line says what it means: "
            f"{say['different']} for different people, {say['same']} for one person."
        )
