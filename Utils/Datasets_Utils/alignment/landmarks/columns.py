"""The columns of a list of landmarks, by the header line that names them.

Points are named (`left_eye_x`, `lefteye_x`, `mouth_left_y`, `nose_x`) or numbered (`x1,y1,...`,
`p1x`, `landmark_0_y`), as five or as 68. Left and right are those of the picture.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.text import IMAGE_WORDS, column, csv_fields
from Utils.errors import DataError

_IMAGES = IMAGE_WORDS | {"name_id"}  # VGGFace2's
_SCORES = ("score", "confidence", "conf", "probability", "prob", "detection_score")
_CORNERS = (  # of a box: two corners
    ("box_left", "box_top", "box_right", "box_bottom"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x1", "y1", "x2", "y2"),
)
_SIZES = (  # of a box: a corner, width and height
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
    ("x_1", "y_1", "width", "height"),  # CelebA's
)
_NAMED = ("left eye", "right eye", "nose", "left mouth", "right mouth")
_NUMBERED = re.compile(
    r"[a-z_ .\-]*?(\d{1,3})[ _.\-]*([xy])|[a-z_ .\-]*?([xy])[ _.\-]*(\d{1,3})", re.ASCII
)


@dataclass(frozen=True)
class Columns:
    """Where what is in a line. image, score: indices. points: (x, y) of 5 or 68. box: four, or
    none; is_size: whether the last two are width and height. count: of all. separator: "" for
    blanks."""

    image: int
    points: list[tuple[int, int]]
    score: int | None
    box: tuple[int, ...]
    is_size: bool
    count: int
    separator: str

    def split(self, text: str) -> list[str]:
        """The fields of a line."""
        return _split(text, self.separator)

    def corners(self, box: np.ndarray) -> np.ndarray:
        """x and y of the upper left and the lower right corner."""
        return box + np.array((0, 0, *box[:2])) if self.is_size else box


def find_columns(path: Path, header: str, following: str) -> Columns:
    """The columns that a header line names. following: the line after it.

    Raises DataError, naming the columns, where points are missing or have several columns.
    """
    separator = next((mark for mark in "\t,;" if mark in header), "")
    names = [name.lower().lstrip("# ").strip() for name in _split(header, separator)]
    # CelebA's header has no word for the first column, the image.
    if column(names, _IMAGES) is None and len(_split(following, separator)) == len(names) + 1:
        names = ["image", *names]
    image = column(names, _IMAGES)
    points = _named(path, names) or _numbered(path, names)
    if image is None or not points:
        lacking = "one column `file` of the images" if image is None else "the five points"
        raise DataError(
            f"{path}: its first line, {header[:80]!r}, is neither a line of landmarks nor a header "
            f"line with {lacking}; expected columns such as file, left_eye_x, left_eye_y, "
            f"right_eye_x, ..., nose_x, ..., left_mouth_x, ..., right_mouth_y; or file, x1, y1, "
            f"..., x5, y5."
        )
    used = {image, *(place for point in points for place in point)}
    box, is_size = _box(names, used)
    score = column(names, _SCORES)
    return Columns(image, points, score, box, is_size, len(names), separator)


def _split(text: str, separator: str) -> list[str]:
    if not separator:
        return text.split()
    return [field.strip() for field in csv_fields(text, separator)]


def _named(path: Path, names: list[str]) -> list[tuple[int, int]]:
    """The columns of the five points by their names; empty if none is named."""
    found: dict[tuple[str, str], list[int]] = {}
    for place, name in enumerate(names):
        words, axis = name[:-1], name[-1:]
        if axis not in ("x", "y"):
            continue
        side = "left " if "left" in words else "right " if "right" in words else ""
        what = next((w for w in ("eye", "nose", "mouth", "lip") if w in words), "")
        if what == "nose":
            found.setdefault(("nose", axis), []).append(place)
        elif what and side and "brow" not in words:
            found.setdefault((side + what.replace("lip", "mouth"), axis), []).append(place)
    for (point, _), places in found.items():
        if len(places) > 1:
            raise DataError(
                f"{path}: its columns {' and '.join(names[p] for p in places)} may both be the "
                f"{point}; rename those that are not to be used, or leave them out."
            )
    wanted = [(point, axis) for point in _NAMED for axis in "xy"]
    if not found or not all(key in found for key in wanted):
        return []
    places = [found[key][0] for key in wanted]
    return list(zip(places[::2], places[1::2], strict=True))


def _numbered(path: Path, names: list[str]) -> list[tuple[int, int]]:
    """The columns of 5 or 68 points by their numbers; empty if there are others."""
    found: dict[tuple[int, str], int] = {}
    for place, name in enumerate(names):
        if not (parts := _NUMBERED.fullmatch(name)):
            continue
        key = (int(parts[1] or parts[4]), parts[2] or parts[3])
        if key in found:
            raise DataError(
                f"{path}: its columns {names[found[key]]} and {name} may both be {key[1]} of point "
                f"{key[0]}; rename those that are not to be used, or leave them out."
            )
        found[key] = place
    numbers = sorted({number for number, _ in found})
    complete = len(found) == 2 * len(numbers) and len(numbers) in (5, 68)
    if not complete or numbers[0] not in (0, 1) or numbers[-1] - numbers[0] != len(numbers) - 1:
        return []
    return [(found[number, "x"], found[number, "y"]) for number in numbers]


def _box(names: list[str], used: set[int]) -> tuple[tuple[int, ...], bool]:
    """(the columns of a box, whether its last two are a size); none if they are not known."""
    free = {name: place for place, name in enumerate(names) if place not in used}
    for is_size, known in ((False, _CORNERS), (True, _SIZES)):
        for words in known:
            if all(word in free for word in words):
                return tuple(free[word] for word in words), is_size
    return (), False
