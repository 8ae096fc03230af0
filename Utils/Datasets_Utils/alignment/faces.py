"""The faces that are found in one photograph: which of them is taken, and what is doubtful."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from Utils.Datasets_Utils.alignment import transform

WHICH = ("largest", "central", "best", "all")  # which face of several

# Why to look at a crop, which may not show what it should.
DOUBTS = {
    "score": "the detector is not sure",
    "turned": "the face is turned by more than 45 degrees in the picture",
    "small": "the crop shows it more than twice as large as the picture",
    "several": "another face is at least half as large",
    "misfit": "the points are far from the template's: a face from the side, or wrong points",
    "outside": "a point is outside the picture",
}
_TURNED, _SMALL, _SEVERAL, _MISFIT = 45.0, 2.0, 0.5, 8.0  # degrees, times, times, pixels of 112


@dataclass(frozen=True, eq=False)
class Faces:
    """N faces, in pixels of the photograph; N may be 0.

    boxes: float64 N×4, x and y of the upper left and the lower right corner; NaN where nobody knows
    them. points: float64 N×5×2, see `transform`. scores: float64 N, how sure the detector is, 0 to
    1; NaN where nobody knows it.
    """

    boxes: np.ndarray
    points: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.points)

    @property
    def extents(self) -> np.ndarray:
        """float64 N×4: the boxes; where they are not known, the boxes around the points."""
        around = np.concatenate((self.points.min(axis=1), self.points.max(axis=1)), axis=1)
        return np.where(np.isnan(self.boxes), around, self.boxes)


class Detector(Protocol):
    """Finds faces. It is opened in each process that uses it. files: its weights."""

    files: list[Path]

    def detect(self, image: np.ndarray) -> Faces:
        """The faces in an image, uint8 H×W×3 RGB of any size of 1×1 or more."""
        ...


def no_faces() -> Faces:
    """What a detector returns where there is none."""
    return Faces(np.empty((0, 4)), np.empty((0, 5, 2)), np.empty(0))


def choose(faces: Faces, which: str, size: tuple[int, int]) -> list[int]:
    """The rows of the faces that are taken, the first choice first.

    which: a word of WHICH. "largest": by the area of the box; "central": whose box's centre is
    nearest to the picture's; "best": by the score, or the largest where scores are not known;
    "all": all of them, the largest first. size: (height, width) of the picture.
    """
    left, top, right, bottom = faces.extents.T
    areas = (right - left) * (bottom - top)
    if which == "central":
        height, width = size
        keys = np.hypot((left + right - width) / 2, (top + bottom - height) / 2)
    else:
        keys = -areas
    if which == "best":
        keys = np.where(np.isnan(faces.scores), 0, -faces.scores)
    order = np.lexsort((-areas, keys)).tolist()
    return order if which == "all" else order[:1]


def doubts_about(
    faces: Faces,
    row: int,
    size: tuple[int, int],
    crop_height: int,
    doubtful_score: float,
    taking_all: bool,
) -> list[str]:
    """The words of DOUBTS that hold for a face, whose points can be used.

    size: (height, width) of the picture. doubtful_score: below which the detector is not sure.
    taking_all: whether the other faces are taken too.
    """
    points = faces.points[row]
    matrix = transform.similarity(points, transform.TEMPLATE)
    left, top, right, bottom = faces.extents.T
    areas = (right - left) * (bottom - top)
    others = np.delete(areas, row)
    inside = (points >= -0.5).all() and (points < np.array(size[::-1]) - 0.5).all()
    found = {
        "score": faces.scores[row] < doubtful_score,
        "turned": abs(transform.rotation(matrix)) > _TURNED,
        "small": transform.enlargement(matrix) * crop_height / 112 > _SMALL,
        "several": not taking_all and bool((others >= _SEVERAL * areas[row]).any()),
        "misfit": transform.misfit(points, matrix, transform.TEMPLATE) > _MISFIT,
        "outside": not inside,
    }
    return [word for word, holds in found.items() if holds]
