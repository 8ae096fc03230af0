"""What became of each photograph: the lines of aligned.csv, and how an interrupted run finds them.

A run appends its lines to a hidden file as it goes, in batches. The finished report has the
lines of all photographs in their order, so that it is the same however often the run was
interrupted.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from Utils.files import atomic_path

REPORT, UNFINISHED, SETTINGS = "aligned.csv", ".aligned.part.csv", "aligned.json"

NO_FACE = "no face was found"
_OF_A_KIND = 20  # faces that the contact sheet shows

_POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
COLUMNS = (
    *("file", "face", "crop", "box_left", "box_top", "box_right", "box_bottom"),
    *(f"{point}_{axis}" for point in _POINTS for axis in "xy"),
    *("score", "doubts", "reason"),
)


_COUNT = re.compile(r"\d{1,9}", re.ASCII)


class Line(NamedTuple):
    """A face that was taken, or a photograph without one.

    file: the photograph. face: its number from 1, 0 where there is none. crop: the file that was
    written, or empty. box, points, score: texts of 4, 10 and 1 numbers, in pixels of the upright
    photograph, or empty ones. doubts: why to look at it. reason: why nothing was written.
    """

    file: str
    face: int
    crop: str
    box: tuple[str, ...]
    points: tuple[str, ...]
    score: str
    doubts: str
    reason: str

    def cells(self) -> tuple:
        """As in COLUMNS."""
        return (*self[:3], *self.box, *self.points, *self[5:])


def line_of(cells: Sequence[str]) -> Line:
    """The inverse of `Line.cells`."""
    return Line(
        cells[0], int(cells[1]), cells[2], tuple(cells[3:7]), tuple(cells[7:17]), *cells[17:]
    )


def nothing(file: str, reason: str) -> Line:
    """The line of a photograph without a face. Its reason is one line of text."""
    return Line(file, 0, "", ("",) * 4, ("",) * 10, "", "", " ".join(reason.split()))


def texts(values: np.ndarray, digits: int = 2) -> tuple[str, ...]:
    """Numbers as they are in the report; empty for NaN."""
    return tuple("" if np.isnan(v) else f"{v:.{digits}f}" for v in values.ravel().tolist())


def as_text(lines: Iterable[Line]) -> bytes:
    """The bytes of lines in a report."""
    return _as_text(line.cells() for line in lines)


def _as_text(rows: Iterable[Sequence]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def read_report(path: Path) -> Iterator[list[Line]]:
    """The lines of each photograph in a report; nothing of those that are damaged."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = (row for row in _rows(file) if len(row) == len(COLUMNS) and _COUNT.fullmatch(row[1]))
        for _, lines in groupby(map(line_of, rows), key=lambda line: line.file):
            yield list(lines)


def _rows(file: TextIO) -> Iterator[list[str]]:
    """The rows of a CSV file, up to one that is none."""
    with suppress(csv.Error):
        yield from csv.reader(file)


def finished(folder: Path, again: bool = True) -> dict[str, bytes]:
    """By photograph, the text of its lines, where its crops are all there. again: without those of
    photographs that have none: what kept them from being aligned may have been mended."""
    found: dict[str, bytes] = {}
    unfinished = _but_last(read_report(folder / UNFINISHED))  # which was being written
    for lines in chain(read_report(folder / REPORT), unfinished):
        whole = all(
            os.path.isfile(folder / line.crop) if line.crop else not again for line in lines
        )
        found.pop(lines[0].file, None)
        if whole:
            found[lines[0].file] = as_text(lines)
    return found


def _but_last(items: Iterable[list[Line]]) -> Iterator[list[Line]]:
    last = None
    for item in items:
        if last is not None:
            yield last
        last = item


@dataclass
class Summary:
    """Of a report: how many photographs and crops, why nothing was written, what is doubtful.

    to_show: the first lines of each kind of doubt, and of photographs without a face. notes: what
    else a user should know.
    """

    photographs: int = 0
    crops: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    doubtful: int = 0
    doubts: Counter[str] = field(default_factory=Counter)
    to_show: list[Line] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def add(self, lines: Sequence[Line]) -> None:
        """Count the lines of one photograph."""
        self.photographs += 1
        for line in lines:
            # Without numbers and advice, many reasons are one.
            reason = re.sub(r"\d[\d,]*", "…", line.reason.partition(";")[0])
            kinds = line.doubts.split()
            self.crops += bool(line.crop)
            self.doubtful += bool(kinds)
            if line.face or reason.startswith(NO_FACE):  # the others show no photograph
                new = [kind for kind in (*kinds, reason) if kind and self._seen(kind) < _OF_A_KIND]
                self.to_show += [line] if new else []
            self.doubts.update(kinds)
            self.reasons.update([reason] if reason else [])

    def _seen(self, kind: str) -> int:
        return self.doubts[kind] + self.reasons[kind]

    def values(self) -> dict[str, Any]:
        """As values of JSON."""
        return {
            "photographs": self.photographs,
            "crops": self.crops,
            "nothing written": dict(self.reasons.most_common()),
            "doubtful": dict(self.doubts.most_common()),
        }

    def text(self) -> list[str]:
        """Lines for printing, after the one of how many crops there are."""
        report = []
        if failed := self.reasons.total():
            report.append(f"nothing was written for {failed:,}:")
            report += [f"  {reason} ({count:,})" for reason, count in self.reasons.most_common()]
        if self.doubtful:
            kinds = ", ".join(f"{word} ({count:,})" for word, count in self.doubts.most_common())
            report.append(f"to look at: {self.doubtful:,} crops: {kinds}")
        return report


def write_report(folder: Path, texts: Iterable[bytes]) -> Summary:
    """Write the finished report, of the texts of photographs, and remove the unfinished one."""
    summary = Summary()
    with atomic_path(folder / REPORT) as temporary:
        with open(temporary, "wb") as file:
            file.write(_as_text([COLUMNS]))
            file.writelines(texts)
        for lines in read_report(temporary):
            summary.add(lines)
    (folder / UNFINISHED).unlink(missing_ok=True)
    return summary
