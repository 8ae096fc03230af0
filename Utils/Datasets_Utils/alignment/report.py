"""What became of each photograph: the lines of aligned.csv, and how an interrupted run finds them.

A run appends its lines to a hidden file as it goes, in batches. The finished report has the
lines of all photographs in their order, so that it is the same however often the run was
interrupted.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.files import atomic_path

REPORT, UNFINISHED, SETTINGS = "aligned.csv", ".aligned.part.csv", "aligned.json"

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
COLUMNS = (
    *("file", "face", "crop", "box_left", "box_top", "box_right", "box_bottom"),
    *(f"{point}_{axis}" for point in POINTS for axis in "xy"),
    *("score", "doubts", "reason"),
)


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


def read_lines(path: Path) -> list[Line]:
    """The lines of a report, without the last photograph's where a killed run was writing it."""
    if not path.exists():
        return []
    content = path.read_bytes().decode("utf-8", "surrogateescape")
    whole = content[: content.rfind("\n") + 1]
    rows = [row for row in csv.reader(io.StringIO(whole, newline="")) if len(row) == len(COLUMNS)]
    lines = [line_of(row) for row in rows if row[0] != COLUMNS[0] or row[1] != COLUMNS[1]]
    if path.name == UNFINISHED and lines:
        last = lines[-1].file
        lines = [line for line in lines if line.file != last]
    return lines


def as_text(lines: Iterable[Line], header: bool = False) -> bytes:
    """The bytes of lines in a report."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(line.cells() for line in lines)
    return text.getvalue().encode("utf-8", "surrogateescape")


def write_report(folder: Path, lines: Iterable[Line]) -> None:
    """Write the finished report, and remove the unfinished one."""
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_bytes(as_text(lines, header=True))
    (folder / UNFINISHED).unlink(missing_ok=True)


def finished(folder: Path) -> dict[str, list[Line]]:
    """By photograph, the lines of those whose crops are all there. The others are done again: what
    kept a photograph from being aligned may have been mended."""
    found: dict[str, list[Line]] = {}
    for name in (REPORT, UNFINISHED):
        newer: dict[str, list[Line]] = {}
        for line in read_lines(folder / name):
            newer.setdefault(line.file, []).append(line)
        found |= newer
    return {
        file: lines
        for file, lines in found.items()
        if all(line.crop and os.path.isfile(folder / line.crop) for line in lines)
    }
