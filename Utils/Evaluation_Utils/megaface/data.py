"""MegaFace's probes and distractors as the settings name them: photos, or features instead."""

import dataclasses
import glob
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from Config import Config
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.formats import is_image_folder
from Utils.Datasets_Utils.photos import (
    PhotoList,
    Photos,
    join_lists,
    noisy_distractors,
    noisy_probes,
    open_folder,
    open_listed,
    read_noise_list,
    read_photo_list,
)
from Utils.errors import DataError
from Utils.Evaluation_Utils.features import FeatureFolder, Features
from Utils.Evaluation_Utils.identification.ranks import has_pairs

# Share of the distractors that may be missing or unreadable. More are no accident.
MOST_LEFT_OUT = 0.05

_PREFIXES = {"probes": "facescrub", "distractors": "megaface"}


@dataclass(frozen=True, eq=False)
class Source:
    """One table of features to come. name: probes or distractors. listed: its photos.

    Of these at most one: ready: the table itself. devkit: the folder of the devkit's files. With
    neither, the photos are embedded. photos: None if only features are there.
    """

    name: str
    listed: PhotoList
    photos: Photos | None
    ready: Features | None = None
    devkit: Path | None = None

    @property
    def prefix(self) -> str:
        """How the settings of these photos' paths begin."""
        return _PREFIXES[self.name]

    @property
    def needs_network(self) -> bool:
        """Whether photos have to be embedded."""
        return self.ready is None and self.devkit is None

    @cached_property
    def _photo_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.photos.listed.names)}

    def image(self, row: int) -> np.ndarray | None:
        """The photo of a row of features, found by its name: those given beside a ready table may
        be others. None if it is not there."""
        index = self._photo_of.get(self.listed.names[row])
        return None if index is None else self.photos.images[index]


@dataclass(frozen=True, eq=False)
class MegaFaceData:
    """The photos to evaluate, which are found but not read yet.

    sets: int64 rows of the distractors by label. noisy_probes, noisy_distractors: bool, one for
    each; None if no noise list is given.
    """

    probes: Source
    distractors: Source
    sets: dict[str, np.ndarray]
    noisy_probes: np.ndarray | None
    noisy_distractors: np.ndarray | None


def open_megaface(config: Config) -> MegaFaceData:
    """Find the data that the settings name; the demo's if they name none.

    Raises DataError if a file is missing or does not fit.
    """
    if not names_megaface(config):
        config = _with_demo(config)
    probes = _open_probes(config)
    distractors, sets = _open_distractors(config)
    return MegaFaceData(
        probes,
        distractors,
        sets,
        _noisy(config.probe_noise, probes.listed, noisy_probes),
        _noisy(config.distractor_noise, distractors.listed, noisy_distractors),
    )


_PLACES = (
    "facescrub_dataset_path",
    "facescrub_file_list",
    "megaface_dataset_path",
    "megaface_file_list",
    "probe_features",
    "distractor_features",
)


def names_megaface(config: Config) -> bool:
    """Whether the settings name any probes or distractors of their own."""
    return any(getattr(config, name) for name in _PLACES)


def _with_demo(config: Config) -> Config:
    demo = ensure_demo_sets(Path(config.demo_dataset_path))
    return dataclasses.replace(
        config,
        facescrub_dataset_path=str(demo.facescrub_images),
        facescrub_file_list=str(demo.facescrub_list),
        megaface_dataset_path=str(demo.distractor_images),
        megaface_file_list=",".join(map(str, demo.distractor_lists)),
    )


def _open_probes(config: Config) -> Source:
    folder, file_list = config.facescrub_dataset_path, config.facescrub_file_list
    listed = read_photo_list(file_list, with_ids=True) if file_list else None
    source = _open(
        "probes",
        folder,
        listed,
        config.probe_features,
        with_ids=True,
        identity_folder=config.identity_folder,
    )
    if source.listed.ids is None:
        raise DataError(
            f"the probes in {config.probe_features} have no identities in list.json; give "
            f"facescrub_file_list."
        )
    if not has_pairs(np.array(source.listed.ids)):
        raise DataError(
            f"{source.listed.source} has no identity with two probes, so there is no mate to look "
            f"for; check its identities."
        )
    return source


def _open_distractors(config: Config) -> tuple[Source, dict[str, np.ndarray]]:
    files = _expand(config.megaface_file_list)
    if files:
        lists = [read_photo_list(file, with_ids=False) for file in files]
        sets = join_lists(lists, config.distractor_sizes)
        photos: PhotoList | None = sets.photos
    else:
        sets, photos = None, None
    folder, features = config.megaface_dataset_path, config.distractor_features
    share = 0 if config.strict else MOST_LEFT_OUT
    source = _open("distractors", folder, photos, features, with_ids=False, share_missing=share)
    if sets is None:
        sets = join_lists([source.listed], config.distractor_sizes)
    if source.ready is None:
        return source, sets.rows
    # A ready table may hold more distractors, in another order.
    rows = source.ready.rows_of(sets.photos)
    return source, {label: np.sort(rows[chosen]) for label, chosen in sets.rows.items()}


def _open(
    name: str,
    folder: str,
    listed: PhotoList | None,
    features: str,
    with_ids: bool,
    share_missing: float = 0,
    identity_folder: str = "top",
) -> Source:
    if features and FeatureFolder(Path(features)).is_there():
        return _open_ready(name, folder, listed, features)
    photos, prefix = None, _PREFIXES[name]
    if folder:
        most_missing = int(share_missing * len(listed.names)) if listed else 0
        photos = (
            open_listed(folder, listed, most_missing)
            if listed
            else open_folder(folder, with_ids, identity_folder)
        )
        listed = photos.listed
    if features:
        if listed is None:
            raise DataError(
                f"{features} has no features.npy, so it holds the devkit's files; the list of the "
                f"{name} is needed to find them: give {prefix}_file_list."
            )
        return Source(name, listed, photos, devkit=Path(features))
    if photos is None:
        raise DataError(
            f"there are no {name}: give {prefix}_dataset_path, the folder of their photos, and, "
            f"if there is one, {prefix}_file_list."
        )
    return Source(name, photos.listed, photos)


def _open_ready(name: str, folder: str, listed: PhotoList | None, features: str) -> Source:
    """A feature folder in place of photos. A list chooses the probes and names their people; the
    sets of distractors are chosen in the table itself. The photos are for pictures alone."""
    ready = FeatureFolder(Path(features)).open()
    if listed and name == "probes":
        ready = Features(ready.table[ready.rows_of(listed)], listed, ready.about)
    photos = None
    if folder:
        shown = listed or ready.photos
        photos = (
            open_listed(folder, shown) if is_image_folder(folder) else open_folder(folder, False)
        )
    return Source(name, ready.photos, photos, ready=ready)


def _expand(patterns: str) -> list[str]:
    """The files that names and patterns with commas between mean, each once."""
    files: dict[str, None] = {}
    for pattern in filter(None, (part.strip() for part in patterns.split(","))):
        found = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
        if not found:
            raise DataError(f"megaface_file_list names {pattern}, but there is no such file.")
        files.update(dict.fromkeys(found))
    return list(files)


def _noisy(
    path: str, listed: PhotoList, find: Callable[[PhotoList, frozenset[str]], np.ndarray]
) -> np.ndarray | None:
    return find(listed, read_noise_list(path)) if path else None
