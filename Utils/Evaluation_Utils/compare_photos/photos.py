"""The photographs that a command line names, as the crops that a network reads.

A photograph of a crop's size is taken as it is. In any other, a face is found and brought to the
template as by `python -m Utils.Datasets_Utils.align_faces`. What was done is told of each.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.faces import DOUBTS, Detector, choose
from Utils.Datasets_Utils.alignment.photograph import Photograph, open_photograph
from Utils.Datasets_Utils.alignment.run import own_threads
from Utils.Datasets_Utils.alignment.sources import open_photographs
from Utils.Datasets_Utils.alignment.work import Settings, crop_face
from Utils.Datasets_Utils.appearance import ALIGNED
from Utils.Datasets_Utils.formats import is_image_list
from Utils.Datasets_Utils.formats.archive import is_archive
from Utils.Datasets_Utils.formats.image_list import FileImages
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import ImageError, fit_image, is_image_name
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import CheckpointError, DataError
from Utils.files import reading
from Utils.tables import format_table
from Utils.workers import SteadyLoader

_FEW = 16  # photographs for which no other process is started, and that are all named
_SHOWN = 30  # lines about photographs


@dataclass(frozen=True, eq=False)
class Photo:
    """name: as the user named it, or below the folder that was named. place: its file. crop: as the
    network reads it, uint8 H×W×3 RGB; None if there is none. how: what was done, or why there is no
    crop. detector: which found the face; empty if none did. box: of the face, in pixels of the
    upright photograph. score: the detector's. faces: how many it found. doubts: words of `DOUBTS`.
    """

    name: str
    place: str
    crop: np.ndarray | None
    how: str
    detector: str = ""
    box: tuple[int, ...] = ()
    score: float | None = None
    faces: int = 0
    doubts: tuple[str, ...] = ()

    def to_dict(self) -> dict:
        """All but the crop, as values of JSON."""
        return {
            "photo": self.name,
            "how": self.how,
            "detector": self.detector or None,
            "box": list(self.box) or None,
            "score": self.score,
            "faces": self.faces or None,
            "doubts": list(self.doubts),
        }


@dataclass(frozen=True)
class Found:
    """A photograph before it is read: a row of a store, and its name."""

    store: ImageStore
    row: int
    name: str


def find_photos(sources: Sequence[Path], below: Path | None = None) -> list[Found]:
    """The photographs at some paths, each a photograph, or a folder, list, .zip or .tar of them.

    below: the only source, whose photographs get names without it. Raises DataError for a path that
    is not there, or has no photographs.
    """
    found = []
    for source in sources:
        with reading(source, "photograph"):
            os.stat(source)
            is_list = not is_image_name(source.name) and is_image_list(source)
        if source.is_file() and not (is_list or is_archive(source)):
            store = FileImages(source.absolute().parent, PathTable([source.name]), source)
            found.append(Found(store, 0, source.name if below else str(source)))
            continue
        store, rows, _ = open_photographs(source)
        folder = source.parent if is_list else source
        for row in rows.tolist():
            name = store.name(row)
            found.append(Found(store, row, name if below else str(folder / name)))
    return found


def read_photos(
    found: Sequence[Found], settings: Settings, num_workers: int, label: str
) -> list[Photo]:
    """The crops of photographs, and what was done with each.

    settings: size of the crops, detector (empty: the first whose weights are there), its file, and
    which of several faces is taken. label: of the progress bar, which many photographs have.

    Raises DataError if a photograph is no crop, and there is no detector.
    """
    settings, why = _with_detector(settings)
    work = _Reading(found, settings)
    workers = num_workers if len(found) > _FEW else 0
    loader = SteadyLoader(work, batch_size=8, num_workers=workers, collate_fn=list)
    photos = []
    with (
        own_threads(workers),
        tqdm(total=len(found), desc=label, unit="photo", disable=len(found) <= _FEW) as bar,
    ):
        for batch in loader:
            for photo in batch:
                if photo is None:
                    raise DataError(
                        f"{found[len(photos)].name} has not the size of an aligned face, "
                        f"{_size(settings.size)}, so that a face has to be found in it first, and "
                        f"no detector is there. {why}"
                    )
                photos.append(photo)
            bar.update(len(batch))
    return photos


def describe_photos(photos: Sequence[Photo]) -> str:
    """What was done with each photograph; of many, the numbers, and those to look at."""
    shown = photos
    lines = []
    if len(photos) > _FEW:
        aligned = sum(bool(photo.detector) and photo.crop is not None for photo in photos)
        as_is = sum(not photo.detector and photo.crop is not None for photo in photos)
        lines = [f"{len(photos):,} photographs: {aligned:,} aligned, {as_is:,} taken as they are"]
        shown = [photo for photo in photos if photo.crop is None or photo.doubts]
        lines[0] += f"; to look at: {len(shown):,}" if shown else ""
    table = format_table([[photo.name, photo.how] for photo in shown[:_SHOWN]], "<<")
    more = f"and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return "\n".join(filter(None, [*lines, table, more]))


def _with_detector(settings: Settings) -> tuple[Settings, str]:
    """(the settings with a detector that can be opened, or without any; why there is none).

    Raises DataError if the one that was named can't be opened.
    """
    if settings.detector:
        settings.open_detector()
        return settings, ""
    if settings.detector_file:
        raise DataError(
            f"{settings.detector_file} is named as a detector's weights: say which one's with "
            f"--detector ({', '.join(DETECTORS)})."
        )
    reasons = []
    for name in DETECTORS:
        chosen = replace(settings, detector=name)
        try:
            chosen.open_detector()
        except (DataError, CheckpointError) as error:
            reasons.append(f"{name}: {error}")
        else:
            return chosen, ""
    return settings, " ".join(reasons)


class _Reading(Dataset):
    """The `Photo` of each of the photographs; None for one that needs a detector, without any."""

    def __init__(self, found: Sequence[Found], settings: Settings) -> None:
        self.found, self.settings = found, settings
        self._detector: Detector | None = None

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> Photo | None:
        found = self.found[index]
        name, place = found.name, found.store.place(found.row)
        try:
            photograph = open_photograph(found.store.encoded(found.row), "")
        except ImageError as error:
            return Photo(name, place, None, str(error).removeprefix(": "))
        if photograph.size in (*ALIGNED, self.settings.size):
            how = f"taken as it is: {_size(photograph.size)} pixels, as aligned faces have"
            return Photo(name, place, fit_image(photograph.image, self.settings.size), how)
        if not self.settings.detector:
            return None
        return self._aligned(name, place, photograph)

    def _aligned(self, name: str, place: str, photograph: Photograph) -> Photo:
        settings = self.settings
        if self._detector is None:
            self._detector = settings.open_detector()
        faces = self._detector.detect(photograph.image)
        if not len(faces):
            return Photo(name, place, None, f"{settings.detector} found no face")
        face = choose(faces, settings.which, photograph.image.shape[:2])[0]
        crop, doubts, reason = crop_face(photograph, faces, face, settings)
        box = photograph.on_photograph(faces.boxes[face].reshape(2, 2)).ravel().round()
        score, box = float(faces.scores[face]), tuple(map(int, box.tolist()))
        left, top, right, bottom = box
        how = f"aligned by {settings.detector}: box {left},{top} to {right},{bottom}, "
        how += f"score {score:.2f}"
        if len(faces) > 1:
            how += f"; the {_WHICH[settings.which]} of {len(faces)} faces"
        how += "".join(f"; doubtful: {DOUBTS[doubt]}" for doubt in doubts)
        if crop is None:
            how = f"a face that {settings.detector} found can't be aligned: {reason}"
        return Photo(
            name, place, crop, how, settings.detector, box, score, len(faces), tuple(doubts)
        )


_WHICH = {"largest": "largest", "central": "most central", "best": "surest"}


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
