"""What is done with one photograph: its faces are found, and their crops are written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import Dataset

from Utils.Datasets_Utils.alignment import transform
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.faces import Detector, Faces, choose, doubts_about, no_faces
from Utils.Datasets_Utils.alignment.landmarks.lists import GivenFaces
from Utils.Datasets_Utils.alignment.photograph import Photograph, open_photograph
from Utils.Datasets_Utils.alignment.report import NO_FACE, Line, as_text, nothing, texts
from Utils.Datasets_Utils.appearance import ALIGNED
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import RunError
from Utils.files import atomic_path, make_folder

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]
_QUALITY += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_QUALITY += [cv2.IMWRITE_WEBP_QUALITY, 101]  # lossless

_LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Settings:
    """How faces are found and crops made.

    size: (height, width) of the crops. border: RGB of what is outside a photograph. which: a word
    of `faces.WHICH`. detector: a row of DETECTORS; empty: given landmarks alone. detector_file: its
    weights; None: those in Pretrained/. landmarks: a list of them, which comes first where there
    is a detector too. landmarks_frame: whether they are points of the "upright" photograph or of
    the "stored" one, where EXIF data say that it is to be turned.
    """

    size: tuple[int, int] = (112, 112)
    border: tuple[int, int, int] = (0, 0, 0)
    which: str = "largest"
    detector: str = ""
    detector_file: Path | None = None
    landmarks: Path | None = None
    landmarks_frame: str = "upright"

    def open_detector(self) -> Detector | None:
        """Raises DataError without its weights."""
        return DETECTORS[self.detector].open(self.detector_file) if self.detector else None


class Work(Dataset):
    """Aligns the photograph of an index. An item is (its name, the text of its lines in the
    report), or the text of a RunError. crops: where the crop of each row belongs."""

    def __init__(
        self,
        store: ImageStore,
        rows: np.ndarray,
        crops: Sequence[str],
        given: GivenFaces | None,
        settings: Settings,
        output: Path,
    ) -> None:
        self.store, self.rows, self.crops, self.given = store, rows, crops, given
        self.settings, self.output = settings, output
        self._detector: Detector | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[str, bytes] | str:
        row = int(self.rows[index])
        name = self.store.name(row)
        try:
            return name, as_text(self._lines(row, name, self.crops[index]))
        except ImageError as error:  # the line names the photograph already
            reason = str(error).removeprefix(self.store.place(row)).removeprefix(": ")
            return name, as_text([nothing(name, reason)])
        except MemoryError:
            return name, as_text([nothing(name, "there is not enough memory for it")])
        except RunError as error:
            return str(error)

    def _lines(self, row: int, name: str, crop: str) -> list[Line]:
        settings = self.settings
        given = self.given.of(row) if self.given else no_faces()
        if not len(given) and not settings.detector:
            return [nothing(name, "the list of landmarks does not name it")]
        photograph = open_photograph(self.store.encoded(row), "")
        if len(given):
            faces = _on_image(given, photograph, settings.landmarks_frame)
            settings = replace(settings, detector="")
        else:
            self._detector = self._detector or settings.open_detector()
            faces = self._detector.detect(photograph.image)
        if not len(faces):
            return [nothing(name, _no_face(photograph))]
        return [
            self._line(photograph, faces, face, number, settings, name, crop)
            for number, face in enumerate(
                choose(faces, settings.which, photograph.image.shape[:2]), 1
            )
        ]

    def _line(
        self,
        photograph: Photograph,
        faces: Faces,
        face: int,
        number: int,
        settings: Settings,
        name: str,
        crop: str,
    ) -> Line:
        """Write the crop of a face, the number-th that is taken."""
        box = photograph.on_photograph(faces.boxes[face].reshape(2, 2))
        facts = (texts(box), texts(photograph.on_photograph(faces.points[face])))
        score = texts(faces.scores[face], 4)[0]
        image, doubts, reason = crop_face(photograph, faces, face, settings)
        if image is None:
            return Line(name, number, "", *facts, score, "", reason)
        if number > 1:
            stem, suffix = os.path.splitext(crop)
            crop = f"{stem}.face{number}{suffix}"
        if any(len(os.fsencode(part)) > _LONGEST for part in crop.split("/")):
            return Line(name, number, "", *facts, score, "", "the name of its crop is too long")
        write_crop(self.output / crop, image)
        return Line(name, number, crop, *facts, score, " ".join(doubts), "")


def write_crop(path: Path, image: np.ndarray) -> None:
    """Write a crop, uint8 H×W×3 RGB, whole or not at all. Raises RunError if that can't be done."""
    make_folder(path.parent)
    suffix = path.suffix.lower()
    kind = ".jpg" if suffix in (".jfif", ".jpe") else suffix
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(kind, image[..., ::-1], _QUALITY)[1])


def crop_face(
    photograph: Photograph, faces: Faces, face: int, settings: Settings
) -> tuple[np.ndarray | None, list[str], str]:
    """(the crop of a face, uint8 H×W×3 RGB; the words of DOUBTS that hold; an empty text), or
    (None, none, why its points can't be used)."""
    points, size = faces.points[face], photograph.image.shape[:2]
    reason = transform.problem(points)
    if not reason and not _any_inside(points, size):
        reason = "all points are outside the picture"
    if reason:
        return None, [], reason
    kind = DETECTORS.get(settings.detector)
    doubts = doubts_about(
        faces,
        face,
        size,
        settings.size[0],
        kind.doubtful if kind else 0.5,
        settings.which == "all",
    )
    matrix = transform.similarity(points, transform.template(settings.size))
    image = transform.warp(photograph.image, matrix, settings.size, settings.border)
    return image, doubts, ""


def _no_face(photograph: Photograph) -> str:
    height, width = photograph.size
    size = f", {height}×{width} pixels like an aligned face: it may be used as it is"
    return f"{NO_FACE}{size if photograph.size in ALIGNED else ''}"


def _on_image(faces: Faces, photograph: Photograph, frame: str) -> Faces:
    """Given faces, of the upright photograph or the stored one, in pixels of its image."""
    boxes, points = faces.boxes.reshape(-1, 2, 2), faces.points
    if frame == "stored":
        points, boxes = photograph.upright(points), np.sort(photograph.upright(boxes), axis=1)
    boxes, points = photograph.on_image(boxes), photograph.on_image(points)
    return Faces(boxes.reshape(-1, 4), points, faces.scores)


def _any_inside(points: np.ndarray, size: tuple[int, int]) -> bool:
    height, width = size
    x, y = points.T
    return bool(((x > -1) & (x < width) & (y > -1) & (y < height)).any())
