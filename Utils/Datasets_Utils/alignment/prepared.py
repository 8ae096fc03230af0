"""Data sets of photographs: aligned once, before they are trained with or evaluated on.

The crops are kept in a hidden folder beside the data set, or in the user's cache folder where that
can't be written. They are used again as long as the photographs, the detector and its settings are
the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from Config import Config, ConfigError
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.landmarks.lists import given_faces, read_landmarks
from Utils.Datasets_Utils.alignment.report import REPORT, read_report
from Utils.Datasets_Utils.alignment.run import align_store, settings_values
from Utils.Datasets_Utils.alignment.sources import looks_aligned
from Utils.Datasets_Utils.alignment.work import Settings
from Utils.Datasets_Utils.appearance import ALIGNED
from Utils.Datasets_Utils.formats.image_list import FileImages
from Utils.Datasets_Utils.formats.storage import PathTable, cache_places
from Utils.Datasets_Utils.images import read_encoded, read_image
from Utils.Datasets_Utils.text import first_few
from Utils.Datasets_Utils.training_set import ImageStore, TrainingSet
from Utils.Datasets_Utils.verification_set import ImageFiles, StoredImages, VerificationSet
from Utils.errors import DataError, RunError
from Utils.files import make_folder

_SIDE = 112  # pixels: the least height and width of a crop; networks of smaller inputs shrink it


@dataclass(frozen=True)
class Alignment:
    """What finds the faces of photographs, and the crops that are made.

    align: a row of DETECTORS, or a list of landmarks. detector_file: the detector's weights; empty:
    those in Pretrained/. input_size: (height, width) of the network's input. encoding: of the list.
    """

    align: str
    detector_file: str
    input_size: tuple[int, int]
    encoding: str = ""
    num_workers: int = 2

    def settings(self) -> Settings:
        """Raises ConfigError if `align` is neither a detector nor a file, or is a list of landmarks
        and has a detector's weights beside it."""
        size = tuple(max(_SIDE, side) for side in self.input_size)
        if self.align in DETECTORS:
            file = Path(self.detector_file) if self.detector_file else None
            return Settings(size=size, detector=self.align, detector_file=file)
        if not Path(self.align).is_file():
            why = f"it is neither a detector ({', '.join(DETECTORS)}) nor a list of landmarks."
            raise ConfigError("align", self.align, why)
        if self.detector_file:
            why = f"align is a list of landmarks, {self.align}, not a detector; leave it out."
            raise ConfigError("detector_file", self.detector_file, why)
        return Settings(size=size, landmarks=Path(self.align))


def alignment_of(config: Config, input_size: tuple[int, int]) -> Alignment | None:
    """What the settings say; None if images are taken as they are."""
    if not config.align:
        return None
    return Alignment(
        align=config.align,
        detector_file=config.detector_file,
        input_size=tuple(input_size),
        encoding=config.list_encoding,
        num_workers=config.num_workers,
    )


class CropFiles(ImageStore):
    """Crops in files, under the names of their photographs. source: their folder, whose name tells
    how they were made."""

    def __init__(self, source: Path, names: Iterable[str], crops: Iterable[str]) -> None:
        self.source = source
        self.names, self.crops = PathTable(names), PathTable(crops)

    def __len__(self) -> int:
        return len(self.names)

    def encoded(self, row: int) -> np.ndarray:
        return read_encoded(self.crops[row])

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        return self.crops[row]

    def files_of(self, rows: Iterable[int]) -> Iterable[Path]:
        return (Path(self.crops[row]) for row in rows)


class AlignedImages(Sequence[np.ndarray]):
    """Images of which some have a crop: images[i] is uint8 H×W×3 RGB, the crop, or else the image
    as it is. crops: N paths, empty for none."""

    def __init__(self, images: Sequence[np.ndarray], crops: PathTable) -> None:
        self.images, self.crops = images, crops

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> np.ndarray:
        crop = self.crops[index]
        return read_image(crop) if crop else self.images[index]


def align_pairs(data: VerificationSet, path: Path, how: Alignment) -> VerificationSet:
    """The set with aligned images; those in which no face is found stay as they are, as the
    pairs must not change, and a note counts them.

    path: of the images. Raises ConfigError, DataError or RunError.
    """
    if isinstance(data.images, StoredImages):
        store, rows = data.images.store, data.images.rows
    elif isinstance(data.images, ImageFiles):
        root = path.absolute()
        names = (os.path.relpath(file, root) for file in data.images.paths)
        store, rows = FileImages(root, PathTable(names), root), np.arange(len(data.images))
    else:
        raise DataError(
            f"align is {how.align!r}, but the images of {path} are aligned by lists of their own; "
            f"leave --align out."
        )
    crops, folder, notes = _crops(store, rows, path, how, "their centre is cropped instead")
    if folder is None:
        return replace(data, notes=(*data.notes, *notes))
    images = AlignedImages(data.images, PathTable(crops))
    return replace(data, images=images, notes=(*data.notes, *notes), sizes={})


def align_training(data: TrainingSet, path: Path, how: Alignment) -> TrainingSet:
    """The set with aligned images, without those in which no face is found, which a note counts.

    path: of the images. Raises ConfigError, DataError or RunError.
    """
    rows = np.arange(len(data)) if data.rows is None else data.rows
    crops, folder, notes = _crops(data.images, rows, path, how, "left out")
    if folder is None:
        data.notes += notes
        return data
    kept = np.array([i for i, crop in enumerate(crops) if crop], np.int64)
    names = (data.name(i) for i in kept.tolist())
    store = CropFiles(folder, names, (crops[i] for i in kept.tolist()))
    labels, notes = data.labels[kept], (*data.notes, *notes)
    aligned = TrainingSet(store, labels, data.source, None, notes, data.channel_order)
    if data.classes or aligned.num_classes < data.num_classes:
        names = data.classes or [str(label) for label in range(data.num_classes)]
        aligned.classes = [names[label] for label in np.unique(labels).tolist()]
    return aligned


def _crops(
    store: ImageStore, rows: np.ndarray, path: Path, how: Alignment, without: str
) -> tuple[list[str], Path | None, tuple[str, ...]]:
    """(the crop of each photograph, "" where there is none; their folder, None if the images are
    aligned already; notes). without: what happens to photographs without a crop."""
    settings = how.settings()
    if looks_aligned(store, rows, (*ALIGNED, settings.size, how.input_size)):
        return [], None, ("not aligned again: the images have the size of aligned faces",)
    names = [store.name(row) for row in rows.tolist()]
    given, notes = None, ()
    if settings.landmarks:
        landmarks = read_landmarks(settings.landmarks, how.encoding)
        given, notes = given_faces(landmarks, store, how.encoding)
    once = rows[np.sort(np.unique(names, return_index=True)[1])]  # a list may name one twice
    folder = _folder(path.absolute(), f".{path.name}.{_digest(store, once, settings)}.aligned")
    found = _read(folder)
    if found is None:
        align_store(store, once, given, settings, folder, how.num_workers, again=False)
        found = _read(folder)
    crops = [found[name] for name in names]
    missing = [name for name, crop in zip(names, crops, strict=True) if not crop]
    by = how.align if settings.detector else f"the landmarks of {how.align}"
    note = f"aligned by {by}: {len(crops) - len(missing):,} of {len(crops):,} images, in {folder}"
    notes = (*notes, note)
    if missing:
        notes += (f"no face in {len(missing):,}, {without}: {first_few(missing)}",)
    if len(missing) == len(crops):
        raise DataError(f"{path}: no image could be aligned; {folder / REPORT} says why.")
    return crops, folder, notes


def _read(folder: Path) -> dict[str, str] | None:
    """The path of each photograph's crop, "" for none; None if the crops are not all there."""
    if not (folder / REPORT).is_file():
        return None
    found = {}
    for lines in read_report(folder / REPORT):
        crop = str(folder / lines[0].crop) if lines[0].crop else ""
        if crop and not os.path.isfile(crop):
            return None
        found[lines[0].file] = crop
    return found


def _folder(path: Path, name: str) -> Path:
    """The folder of the crops: one that is there, or the first that can be made."""
    places = cache_places(path.with_name(name))
    for last, place in enumerate(places, 1):
        if place.is_dir():
            return place
        try:
            make_folder(place)
        except RunError:
            if last == len(places):
                raise
        else:
            return place
    raise RunError(f"neither the folder of {path} nor a home can be written to, for its crops.")


def _digest(store: ImageStore, rows: np.ndarray, settings: Settings) -> str:
    """What decides the crops: the settings, and names, sizes and times of the photographs."""
    found = hashlib.sha256(json.dumps(settings_values(settings), sort_keys=True).encode())
    for row in rows.tolist():
        found.update(os.fsencode(store.name(row)) + b"\n")
    for file in store.files_of(rows.tolist()):
        status = os.stat(file)
        found.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:16]
