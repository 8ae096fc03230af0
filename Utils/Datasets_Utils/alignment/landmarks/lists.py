"""Landmarks that somebody has found already: lists in the forms that the field distributes.

    image x1 y1 x2 y2 x3 y3 x4 y4 x5 y5          five points
    image x1 y1 ... x5 y5 score                  IJB's *_name_5pts_score.txt
    image label x1 y1 ... x5 y5                  RFW's *_lmk.txt
    image x1 y1 ... x68 y68                      68 points, of which five are made
    image x1 ... x5 y1 ... y5                    each of these also with all x before all y
    file,left_eye_x,left_eye_y,...               any columns under a header line that names them

Between the fields are blanks, tabs, commas or semicolons. A photograph with several faces has as
many lines. One form must fit all lines, and nothing is guessed: what could be read in two ways is
refused. Whether all x come first is told by the points, which are a face in one of the two orders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.alignment import transform
from Utils.Datasets_Utils.alignment.faces import Faces
from Utils.Datasets_Utils.alignment.landmarks.columns import Columns, find_columns
from Utils.Datasets_Utils.names import names_look, shorter, without_folders
from Utils.Datasets_Utils.text import (
    as_number,
    csv_fields,
    first_few,
    is_comment,
    numbered_lines,
)
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import DataError
from Utils.files import reading

_SAMPLE = 1000  # lines by which the form is recognised
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?|nan", re.IGNORECASE | re.ASCII)
_FIELD = re.compile(r"[^\s,;]+")
_HEADER = (
    "A first line that names the columns says which they are, such as "
    "`file,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y,left_mouth_x,left_mouth_y,"
    "right_mouth_x,right_mouth_y,score`"
)

# A line's (image, x1 y1 ... y5, score, x and y of two corners of a box), where they are known.
Face = tuple[str, np.ndarray, float, np.ndarray]
_NO_BOX = np.full(4, np.nan)


def five_of_68(points: np.ndarray) -> np.ndarray:
    """N×5×2 of N×68×2 in the order of iBUG 300-W: an eye is the mean of its two corners, as in
    insightface's recipe for such points."""
    eyes = [points[:, [36, 39]].mean(axis=1), points[:, [42, 45]].mean(axis=1)]
    return np.stack((*eyes, points[:, 30], points[:, 48], points[:, 54]), axis=1)


@dataclass(frozen=True)
class Form:
    """How a line is read. name: for people. count: of its numbers. points, score: which of them.
    x_first: whether all x are before all y."""

    name: str
    count: int
    points: slice
    score: int | None = None
    x_first: bool = False

    def read(self, values: np.ndarray) -> np.ndarray:
        """The points K×2 of a line's numbers."""
        found = values[self.points]
        return found.reshape(2, -1).T if self.x_first else found.reshape(-1, 2)

    def with_x_first(self) -> Form:
        """The same with all x before all y."""
        name = re.sub(r"x1 y1 .*y(\d+)", r"x1 ... x\1 y1 ... y\1", self.name)
        return replace(self, name=name, x_first=True)


_SCORED = Form("image x1 y1 ... x5 y5 score", 11, slice(0, 10), 10)
_LABELLED = Form("image label x1 y1 ... x5 y5", 11, slice(1, 11))
_FORMS = (
    Form("image x1 y1 ... x5 y5", 10, slice(0, 10)),
    _SCORED,
    _LABELLED,
    Form("image x1 y1 ... x68 y68", 136, slice(0, 136)),
)
_TOLD = 100  # lines by which the order of x and y is told
# The misfit of five points, see `transform`: a face turned by up to 75 degrees has less than this,
# and points whose x and y are mixed up have more.
_NO_FACE = 12.5


@dataclass(frozen=True, eq=False)
class Landmarks:
    """N faces of a list. names: of their photographs. points: float64 N×5×2; scores, boxes: see
    `Faces`. path: the list. notes: how it was read, where that is not plain."""

    path: Path
    names: list[str]
    points: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    notes: tuple[str, ...] = ()


class GivenFaces:
    """The faces of the photographs in a store, by row."""

    def __init__(self, landmarks: Landmarks, rows: np.ndarray) -> None:
        order = np.argsort(rows, kind="stable")
        order = order[rows[order] >= 0]
        self.rows = rows[order]
        self.faces = Faces(landmarks.boxes[order], landmarks.points[order], landmarks.scores[order])

    def of(self, row: int) -> Faces:
        """The faces of a photograph; none if the list does not name it."""
        first, last = np.searchsorted(self.rows, (row, row + 1))
        found = self.faces
        return Faces(found.boxes[first:last], found.points[first:last], found.scores[first:last])


def read_landmarks(path: Path, encoding: str = "") -> Landmarks:
    """Read a list of landmarks. encoding: "" finds it out.

    Raises DataError, naming the line, for a list of another form or one that can be read in two
    ways, and for a line of another form than those before it.
    """
    path = Path(path)
    with reading(path, "list of landmarks"), open(path, "rb") as file:
        numbered = numbered_lines(file, path, encoding)
        lines = ((number, text) for number, text in numbered if not is_comment(text))
        sample = list(islice(lines, _SAMPLE))
        if sample and sample[0][1].isdecimal():  # CelebA's lists begin with their length
            sample = sample[1:]
        every = chain(sample, lines)
        columns = _columns(path, sample)
        if columns:
            next(every)
            faces, notes = _by_columns(path, every, columns), ()
        else:
            form = _choose(path, sample)
            faces, notes = _by_form(path, every, form), (f"{path}: read as '{form.name}'",)
        names, points, scores, boxes = [], [], [], []
        for name, values, score, box in faces:
            names.append(name)
            points.append(values)
            scores.append(score)
            boxes.append(box)
    if not names:
        raise DataError(f"{path} has no landmarks. {_HEADER}.")
    found = np.array(points).reshape(len(names), -1, 2)
    found = five_of_68(found) if found.shape[1] == 68 else found
    return Landmarks(path, names, found, np.array(scores), np.array(boxes), notes)


def given_faces(
    landmarks: Landmarks, store: ImageStore, encoding: str = "", drop_folders: int = 0
) -> tuple[GivenFaces, tuple[str, ...]]:
    """(the faces of a store's photographs, notes). drop_folders: leading folders to drop from the
    list's names; the root counts. Raises DataError if the list names no photograph of the store."""
    names = [without_folders(name, drop_folders) for name in landmarks.names]
    rows = store.rows(names, landmarks.path, encoding, skip_bad=True)
    notes = [*landmarks.notes, *store.notes]
    if (rows < 0).any():
        stems = _stems(store)
        found = np.array([stems.get(name, -1) for name in names], np.int64)
        if count := int(((rows < 0) & (found >= 0)).sum()):
            notes.append(f"{count:,} names in {landmarks.path} lack the extension")
        rows = np.where(rows < 0, found, rows)
    unknown = [landmarks.names[i] for i in np.flatnonzero(rows < 0).tolist()]
    if len(unknown) == len(names):
        count = shorter(names_look(store.name(row) for row in range(len(store))), names)
        advice = "check the names in it"
        if count:
            advice = f"they are there without leading folders: add `--drop_folders {count}`"
        raise DataError(
            f"{landmarks.path}: none of its {len(names):,} names, such as {names[0]}, is a "
            f"photograph in {store.source}; {advice}."
        )
    if unknown:
        what = f"{len(unknown):,} lines of {landmarks.path} name no photograph that is there"
        notes.append(f"{what}: {first_few(unknown)}")
    return GivenFaces(landmarks, rows), tuple(notes)


def _stems(store: ImageStore) -> dict[str, int]:
    """The rows of photographs by their names without the extension, where only one has it."""
    rows: dict[str, int] = {}
    for row in range(len(store)):
        stem = os.path.splitext(store.name(row))[0]
        rows[stem] = -1 if stem in rows else row
    return rows


def _columns(path: Path, sample: list[tuple[int, str]]) -> Columns | None:
    """The columns under a header line; None without one."""
    if not sample or _split(sample[0][1]):
        return None
    following = sample[1][1] if len(sample) > 1 else ""
    return find_columns(path, sample[0][1], following)


def _by_columns(path: Path, lines: Iterable[tuple[int, str]], columns: Columns) -> Iterator[Face]:
    places = [place for point in columns.points for place in point]
    for number, text in lines:
        fields = columns.split(text)
        if len(fields) != columns.count:
            raise DataError(
                f"{path}, line {number}: {len(fields)} fields, but its header line names "
                f"{columns.count} columns. Put a name with a separator in it between quotes."
            )
        texts = [fields[place] for place in places]
        if not any(texts):  # a photograph without a face, as in this project's own reports
            continue
        box = _numbers(path, number, [fields[place] for place in columns.box])
        yield (
            fields[columns.image],
            _numbers(path, number, texts),
            _numbers(path, number, [fields[columns.score]])[0]
            if columns.score is not None
            else np.nan,
            columns.corners(box) if columns.box else _NO_BOX,
        )


def _numbers(path: Path, number: int, texts: list[str]) -> np.ndarray:
    try:
        return np.array([as_number(text) if text else np.nan for text in texts])
    except ValueError:
        raise DataError(
            f"{path}, line {number}: {' '.join(texts)[:80]!r} has a field that is not a number."
        ) from None


def _split(text: str) -> tuple[str, list[float]] | None:
    """(image, the numbers after it) of a line; None for another line."""
    fields, numbers = list(_FIELD.finditer(text)), 0
    # From the end on: a pattern for the line would try every place where its numbers may begin.
    while numbers < len(fields) - 1 and _NUMBER.fullmatch(fields[-1 - numbers][0]):
        numbers += 1
    if not numbers:
        return None
    name = text[: fields[-1 - numbers].end()]
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = csv_fields(name)[0]
    return name, [float(field[0]) for field in fields[-numbers:]]


def _choose(path: Path, sample: list[tuple[int, str]]) -> Form:
    """The one form that fits the first lines. Raises DataError for none or several."""
    if not sample:
        raise DataError(f"{path} is empty. {_HEADER}.")
    split = [_split(text) for _, text in sample]
    counts = [len(found[1]) for found in split if found]
    usual = max(set(counts), key=counts.count, default=0)
    forms = [form for form in _FORMS if form.count == usual]
    if not forms:
        raise DataError(
            f"{path}, line {sample[0][0]}: {sample[0][1][:80]!r} is an image and {usual} numbers; "
            f"expected one of {', '.join(f'`{form.name}`' for form in _FORMS)}. {_HEADER}."
        )
    values = np.array([found[1] for found in split if found and len(found[1]) == usual])
    if len(forms) > 1:
        last, first = values[:, -1], values[:, 0]
        if ((last >= 0) & (last <= 1)).all():
            forms = [_SCORED]
        elif (first == np.round(first)).all():
            forms = [_LABELLED]
        else:
            raise DataError(
                f"{path}, line {sample[0][0]}: {sample[0][1][:80]!r} is an image and 11 numbers, "
                f"of which neither the last is a score from 0 to 1 on every line, nor the first a "
                f"label. {_HEADER}."
            )
    return _in_order(forms[0], values[:_TOLD])


def _in_order(form: Form, values: np.ndarray) -> Form:
    """The form; or the same with all x first, if so the points of more lines are faces."""
    other = form.with_x_first()
    own, others = (sum(_is_face(each.read(line)) for line in values) for each in (form, other))
    return other if others > own else form


def _is_face(points: np.ndarray) -> bool:
    five = five_of_68(points[None])[0] if len(points) == 68 else points
    if transform.problem(five):
        return False
    matrix = transform.similarity(five, transform.TEMPLATE)
    return transform.misfit(five, matrix, transform.TEMPLATE) < _NO_FACE


def _by_form(path: Path, lines: Iterable[tuple[int, str]], form: Form) -> Iterator[Face]:
    for number, text in lines:
        found = _split(text)
        if found is None or len(found[1]) != form.count:
            raise DataError(
                f"{path}, line {number}: {text[:80]!r} is not `{form.name}`, as the lines before "
                f"it are. Correct it, or take it off the list."
            )
        name, values = found
        score = np.nan if form.score is None else values[form.score]
        yield name, form.read(np.array(values)).ravel(), score, _NO_BOX
