"""TinyFace's files: the official lists, and the images that they name.

The set's folder holds Probe/, Gallery_Match/ and Gallery_Distractor/ with images, and two lists,
probe_img_ID_pairs.mat (probe_set, probe_ids) and gallery_match_img_ID_pairs.mat (gallery_set,
gallery_ids). The distractors have no list.
"""

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from Config import Config
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.demo.tinyface import ensure_tinyface
from Utils.Datasets_Utils.formats.class_tree import first_few, list_folder, litter_note
from Utils.Datasets_Utils.images import is_image_name, without_suffix
from Utils.Datasets_Utils.photos import PhotoList, Photos
from Utils.Datasets_Utils.verification_set import ImageFiles
from Utils.errors import DataError
from Utils.matlab_files import read_matlab, texts_of, whole_numbers_of

# (folder, list, its variables of names and of identities) of the images with a name.
_LISTED = {
    "probes": ("Probe", "probe_img_ID_pairs.mat", "probe_set", "probe_ids"),
    "gallery": ("Gallery_Match", "gallery_match_img_ID_pairs.mat", "gallery_set", "gallery_ids"),
}
_DISTRACTORS = "Gallery_Distractor"
_INNER = "Testing_Set"  # the folder of all of it in the distributed archive


@dataclass(frozen=True, eq=False)
class TinyFaceData:
    """The photos, found but not read yet; those of `distractors` have no identities. folder: that
    they are in. lists: the folder of the lists."""

    probes: Photos
    gallery: Photos
    distractors: Photos
    folder: Path
    lists: Path

    @property
    def parts(self) -> dict[str, Photos]:
        """The three by their names."""
        return {name: getattr(self, name) for name in (*_LISTED, "distractors")}


def open_tinyface(config: Config) -> TinyFaceData:
    """Find the set that the settings name; the demo's if they name none.

    Images are found by their names, whatever the suffix: aligned copies often have another. Raises
    DataError, naming the file, for what does not fit.
    """
    given = config.tinyface_dataset_path
    root = (
        Path(given) if given else ensure_tinyface(ensure_demo_sets(Path(config.demo_dataset_path)))
    )
    folder = _holding(root, _LISTED["probes"][0])
    list_folder = _holding(
        Path(config.tinyface_file_list or folder), _LISTED["probes"][1], "tinyface_file_list"
    )
    found = {}
    for name, (images, file, *variables) in _LISTED.items():
        listed = read_list(list_folder / file, *variables)
        found[name] = Photos(*_locate(folder / images, listed))
    found["distractors"] = _distractors(folder / _DISTRACTORS, found["probes"].listed)
    return TinyFaceData(**found, folder=folder, lists=list_folder)


def _holding(root: Path, name: str, setting: str = "tinyface_dataset_path") -> Path:
    """The folder with that entry: root, or the one in it that the archive has."""
    for folder in (root, root / _INNER):
        if (folder / name).exists():
            return folder
    folders = ", ".join([*(f"{images}/" for images, *_ in _LISTED.values()), f"{_DISTRACTORS}/"])
    lists = " and ".join(file for _, file, *_ in _LISTED.values())
    expected = folders if setting == "tinyface_dataset_path" else lists
    remedy = "" if setting == "tinyface_dataset_path" else f": give its folder with --{setting}"
    raise DataError(f"{root} has no {name}; expected {expected}, as TinyFace has them{remedy}.")


def read_list(path: Path, name_variable: str, id_variable: str) -> PhotoList:
    """One of the official lists. Raises DataError, naming the file and the variable, for another
    file, and for an image that it names twice, whatever the suffix."""
    values = read_matlab(path, (name_variable, id_variable))
    names = texts_of(path, name_variable, values[name_variable])
    ids = whole_numbers_of(path, id_variable, values[id_variable])
    if len(names) != len(ids):
        raise DataError(
            f"{path}: the variable {name_variable} has {len(names)} names, but {id_variable} has "
            f"{len(ids)} identities; expected one for each."
        )
    stem, count = Counter(map(without_suffix, names)).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: the variable {name_variable} names the image {stem} twice.")
    return PhotoList(names, [str(person) for person in ids.tolist()], str(path))


def _all_images(folder: Path) -> Photos:
    """All images of a folder, by name. Raises DataError for none, or two with the same name."""
    found = list_folder(folder)
    names = [name for name in found.files if is_image_name(name)]
    if not names:
        raise DataError(f"{folder} has no images.")
    stem, count = Counter(map(without_suffix, names)).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{folder} has {count} images of the name {stem}, with other suffixes; leave one."
        )
    listed = PhotoList(names, None, str(folder), litter_note(found.litter))
    return Photos(listed, ImageFiles([os.path.join(folder, name) for name in names]))


def _distractors(folder: Path, probes: PhotoList) -> Photos:
    """All images of the folder; a note tells which have the name of a probe."""
    found = _all_images(folder)
    known = {*map(without_suffix, probes.names)}
    alike = [name for name in found.listed.names if without_suffix(name) in known]
    if not alike:
        return found
    note = f"{len(alike):,} have the name of a probe; are they the same images? {first_few(alike)}"
    parts = filter(None, (found.listed.note, note))
    return replace(found, listed=replace(found.listed, note="; ".join(parts)))


def _locate(folder: Path, listed: PhotoList) -> tuple[PhotoList, ImageFiles]:
    """(the list with the images' own names, the images). Raises DataError, naming those that are
    missing."""
    there = {without_suffix(name): name for name in _all_images(folder).listed.names}
    missing = [name for name in listed.names if without_suffix(name) not in there]
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(listed.names):,} images named in {listed.source} are "
            f"not in {folder}, with any suffix: {first_few(missing)}; an aligned copy of the set "
            f"needs all of them, under the same names."
        )
    names = [there[without_suffix(name)] for name in listed.names]
    files = ImageFiles([os.path.join(folder, name) for name in names])
    return PhotoList(names, listed.ids, listed.source), files
