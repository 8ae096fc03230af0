"""MegaFace's photos: the devkit's lists, the published noise lists, and photos by their names.

The devkit's lists are JSON, {"path": [...], "id": [...]}: facescrub_features_list.json names the
probes and their people; megaface_features_list.json_<N>_<set> names the distractors, whose ids have
no meaning. Names are relative to the images' folder and are kept as they are: they may have blanks,
several dots, or no extension. insightface's lists (facescrub_lst, megaface_lst) have a path on each
line instead, `facescrub_images/<person>/<photo>`; the person is the folder.

A noise list names mislabelled photos, one a line, with comments after `#`: for FaceScrub an image
name, for MegaFace <folder>/<folder>/<name>, alone or in the second of two columns with a tab
between.
"""

import codecs
import hashlib
import json
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from Utils.Datasets_Utils.formats import find_images, is_image_folder
from Utils.Datasets_Utils.formats.class_tree import (
    Folder,
    group_images,
    list_folder,
    litter_note,
)
from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, is_image_name
from Utils.Datasets_Utils.text import is_comment, numbered_lines
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import ImageFiles, StoredImages, locate_images
from Utils.errors import DataError
from Utils.files import atomic_path, read_json, reading

_HEAD = 64  # bytes that tell JSON from lines
_SAMPLE = 20  # names by which it is seen how they lie in a folder


@dataclass(frozen=True, eq=False)
class PhotoList:
    """N photos. names: relative paths. ids: N identities, or None if no person is named.
    source: the file or folder they were read from, for messages. note: how it was read, and what
    was left out."""

    names: Sequence[str]
    ids: Sequence[str] | None
    source: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Photos:
    """N photos: their list, and images[i], uint8 H×W×3 RGB, read when asked for."""

    listed: PhotoList
    images: Sequence[np.ndarray]


def labelled_photos(data: TrainingSet) -> tuple[Photos, str]:
    """The photos of a training set, and their `images_digest`. They are listed by number: a
    training list may name a photo twice."""
    listed = PhotoList([str(row) for row in range(len(data))], None, str(data.source))
    images = StoredImages(data.images, data.rows)
    names = (data.name(row) for row in range(len(data)))
    return Photos(listed, images), images_digest(names, image_files(images, data.images.source))


def images_digest(names: Iterable[str], files: Iterable[str | Path]) -> str:
    """SHA-256 of the names of images in their order, and of the sizes and times of their files:
    other images, and the same in another order, have another one."""
    found = hashlib.sha256(f"{photos_digest(files)}\n".encode())
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


def image_files(images: Sequence[np.ndarray], place: Path) -> Iterable[str | Path]:
    """The files that images are in. place: the folder, record file or archive with all of them."""
    if isinstance(images, StoredImages):
        return images.store.files_of(images.rows.tolist())
    return getattr(images, "paths", None) or [place, *sorted(place.rglob("*"))]


def photos_digest(paths: Iterable[str | Path]) -> str:
    """SHA-256 of the sizes and times of files, which tell that one was replaced; a file may be
    missing."""
    found = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.update(b"missing\n")
        else:
            found.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return found.hexdigest()


def read_photo_list(path: str | Path, with_ids: bool | None) -> PhotoList:
    """Read a list of photos. with_ids: True: it must have identities; False: they are ignored;
    None: they are read if there are any.

    Raises DataError, naming the file, if it can't be read, is no such list, names no photo, or
    names one twice.
    """
    path = Path(path)
    with reading(path, "photo list"), open(path, "rb") as file:
        values = read_json(path, "photo list") if _is_json(file) else _lines(file, path)
    values = values if isinstance(values, dict) else {}
    if with_ids is None:
        with_ids = "id" in values
    names, ids = values.get("path"), values.get("id") if with_ids else None
    strings = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not strings or (with_ids and not isinstance(ids, list)):
        keys = '{"path": [...], "id": [...]}' if with_ids else '{"path": [...]}'
        raise DataError(f"the photo list {path} is not of the form {keys} with names in quotes.")
    if ids is not None and len(ids) != len(names):
        raise DataError(f"the photo list {path} has {len(names)} paths, but {len(ids)} ids.")
    if not names:
        raise DataError(f"the photo list {path} names no photos.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"the photo list {path} names {name} twice.")
    return PhotoList(names, None if ids is None else [str(i) for i in ids], str(path))


def _is_json(file: BinaryIO) -> bool:
    head = file.read(_HEAD).removeprefix(codecs.BOM_UTF8).lstrip()
    file.seek(0)
    return head[:1] in (b"{", b"[")


def _lines(file: BinaryIO, path: Path) -> dict[str, list[str]]:
    """A list of a path on each line, in the devkit's form. Raises DataError for another line."""
    names = []
    for number, text in numbered_lines(file, path):
        name = text if "/" in text else text.replace("\\", "/")
        if is_comment(text):
            continue
        if "/" not in name or "\t" in name or name.startswith("<"):
            raise DataError(
                f"the photo list {path}, line {number}: {text[:80]!r} is not a photo's path with "
                f"its folder; expected such a path on each line, or the devkit's JSON, "
                f'{{"path": [...], "id": [...]}}.'
            )
        names.append(name)
    return {"path": names, "id": [posixpath.basename(posixpath.dirname(name)) for name in names]}


def write_photo_list(photos: PhotoList, path: Path) -> None:
    """Write a list in the devkit's form."""
    values = {"path": list(photos.names)}
    if photos.ids is not None:
        values["id"] = list(photos.ids)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=0) + "\n", encoding="utf-8")


@dataclass(frozen=True, eq=False)
class DistractorSets:
    """All distractors of several lists, each once, and the rows of each list.

    photos: N distractors. rows: for each label (the list's count), int64 ascending rows of photos.
    """

    photos: PhotoList
    rows: dict[str, np.ndarray]


def join_lists(lists: Sequence[PhotoList], sizes: Iterable[int] = ()) -> DistractorSets:
    """The union of distractor lists, the largest first.

    sizes: each makes one more set, of that many first names of the largest list. Raises DataError
    for a size that the largest list does not have.
    """
    ordered = sorted(lists, key=lambda photos: len(photos.names), reverse=True)
    largest = ordered[0]
    row_of = {name: row for row, name in enumerate(largest.names)}
    for photos in ordered[1:]:
        for name in photos.names:
            row_of.setdefault(name, len(row_of))
    found = {}
    for size in sizes:
        if not 1 <= size <= len(largest.names):
            raise DataError(
                f"distractor_sizes asks for {size:,} distractors, but {largest.source} has "
                f"{len(largest.names):,}."
            )
        found[f"{size:,}"] = np.arange(size)
    for photos in ordered:
        size, file = f"{len(photos.names):,}", Path(photos.source)
        labels = (size, f"{size} ({file.name})", f"{size} ({file.absolute()})")
        # Where all three labels are taken, the same file is named twice.
        label = next((label for label in labels if label not in found), labels[-1])
        found[label] = np.sort(np.array([row_of[name] for name in photos.names]))
    by_size = sorted(found.items(), key=lambda item: (len(item[1]), item[0]))
    names = list(row_of) if len(row_of) > len(largest.names) else largest.names
    return DistractorSets(PhotoList(names, None, largest.source), dict(by_size))


def read_noise_list(path: str | Path) -> frozenset[str]:
    """The names in a noise list; may be empty. Raises DataError if it can't be read."""
    with reading(path, "noise list"):
        text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
    lines = (line.rstrip("\r") for line in text.split("\n"))
    names = (
        line.rpartition("\t")[2].strip() for line in lines if not line.lstrip().startswith("#")
    )
    return frozenset(name for name in names if name)


def noisy_probes(photos: PhotoList, noise: frozenset[str]) -> np.ndarray:
    """bool N: photos whose file name, without folder and extension, is in FaceScrub's noise list.

    The crops are PNG files of photos of any type, so the extension has no meaning.
    """
    listed = {_stem(name) for name in noise}
    return np.array([_stem(name) in listed for name in photos.names], bool)


def noisy_distractors(photos: PhotoList, noise: frozenset[str]) -> np.ndarray:
    """bool N: photos whose name ends in a `folder/folder/name` of MegaFace's noise list."""
    depths = {name.count("/") for name in noise}
    return np.array(
        [
            any("/".join(name.split("/")[-1 - depth :]) in noise for depth in depths)
            for name in photos.names
        ],
        bool,
    )


def _stem(name: str) -> str:
    """A file name without folder and image extension; `J.K._Simmons_24753` has none."""
    stem, extension = os.path.splitext(os.path.basename(name))
    return stem if extension.lower() in IMAGE_SUFFIXES else stem + extension


def open_listed(folder: str | Path, listed: PhotoList, most_missing: int = 0) -> Photos:
    """The photos of a list. Each is looked for here; none is read yet.

    A record file, shards or an archive will do as well; an image list has the same names for them.
    Folders that all names begin with may be missing in `folder`, which may be the last of them.
    most_missing: so many of a folder's photos may be missing; reading them is an error later.
    Raises DataError, naming the first missing photos.
    """
    if is_image_folder(folder):
        names = _below(Path(folder), listed.names)
        files = locate_images(Path(folder), names, listed.source, most_missing)
        return Photos(listed, ImageFiles(files))
    store = find_images(folder).images
    return Photos(listed, StoredImages(store, store.rows(listed.names, Path(listed.source))))


def _below(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """The names without the folders that they all begin with, where only so they are there."""
    sample = names[:_SAMPLE]
    if any(os.path.exists(folder / name) for name in sample):
        return names
    shared = posixpath.dirname(os.path.commonprefix([min(names), max(names)]))  # noqa: RUF071
    while shared.strip("/"):
        start = len(shared) + 1
        if any(os.path.exists(folder / name[start:]) for name in sample):
            return [name[start:] for name in names]
        shared = posixpath.dirname(shared)
    return names


def open_folder(folder: str | Path, with_ids: bool, identity_folder: str = "top") -> Photos:
    """All photos of a folder, sorted; with_ids: each in the folder of its person, which
    identity_folder chooses, see `class_tree`.

    A record file, shards or an archive will do as well; their labels are the people.
    Raises DataError if there are no photos, or a photo is in no person's folder.
    """
    with reading(folder, "folder of photos"):
        is_folder = stat.S_ISDIR(os.stat(folder).st_mode)
    found = list_folder(folder) if is_folder else Folder([], [], [])
    names = [name for name in found.files if is_image_name(name)]
    if not names:
        store, labels, rows = find_images(folder, identity_folder)
        people = [str(label) for label in labels.tolist()]  # which may be any whole numbers
        if not people:
            raise DataError(f"{folder} has no images.")
        names = [f"{label}/{number:08d}" for number, label in enumerate(people)]
        return Photos(PhotoList(names, people, str(folder)), StoredImages(store, rows))
    tree = group_images(names, found.litter, identity_folder)
    if with_ids and len(tree.rows) < len(names):
        somebodys = set(tree.rows)
        stray = next(name for row, name in enumerate(names) if row not in somebodys)
        raise DataError(
            f"{folder}/{stray} is in no person's folder; give a list, or a folder for each person."
        )
    people = [tree.classes[label] for label in tree.labels] if with_ids else None
    note = "; ".join(tree.notes) if with_ids else litter_note(found.litter)
    listed = PhotoList(names, people, str(folder), note)
    return Photos(listed, ImageFiles([os.path.join(folder, name) for name in names]))
