"""The photographs of a run: those of a folder tree, a list, a zip or a tar, and their crops' names.

Every file counts, whatever its suffix: one that is no image gets a line in the report too. Hidden
and system files never do.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats import is_image_list
from Utils.Datasets_Utils.formats.archive import is_archive, open_archive
from Utils.Datasets_Utils.formats.class_tree import list_folder, litter_note
from Utils.Datasets_Utils.formats.image_list import FileImages
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.images import ImageError, image_size, is_image_name
from Utils.Datasets_Utils.photos import read_photo_list
from Utils.Datasets_Utils.text import first_few, is_comment, numbered_lines, quoted
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.errors import DataError
from Utils.files import reading

_LARGEST = 1 << 30  # bytes of a file
_SAMPLE = 100  # lines by which a list of names alone is recognised
_LOOKED_AT = 64  # photographs whose size is looked at before the run
# Crops keep the names of their photographs where OpenCV writes such files; else .png is added.
_KEPT = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp")
_FACE = re.compile(r"\.face\d+$")  # of the crop of a photograph's second face


class Photographs(FileImages):
    """The files of a folder, which may be anything."""

    def encoded(self, row: int) -> np.ndarray:
        """As in `ImageStore`. Raises ImageError for a pipe, and for a file as large as a film."""
        path = self.root / self.paths[row]
        there = os.path.exists(path)  # False for a name that is too long, too
        if there and not path.is_file():
            raise ImageError(f"{path}: a pipe or a device, no file")
        if there and (size := path.stat().st_size) > _LARGEST:
            raise ImageError(f"{path}: {size:,} bytes, which no photograph has")
        return super().encoded(row)


def open_photographs(
    source: Path,
    file_list: Path | None = None,
    encoding: str = "",
    apart: Sequence[Path] = (),
) -> tuple[ImageStore, np.ndarray, tuple[str, ...]]:
    """(encoded photographs, rows (int64) of those to align, notes about how they were found).

    source: a folder, a zip or a tar; or a list, of photographs in its own folder or with absolute
    paths. file_list: of those in the folder or the archive; its lines have a name alone, or a label
    too in any form that training reads. encoding: of the list; "" finds it out. apart: files and
    folders in a folder that are not photographs. Raises DataError for a source of another format,
    and if no photograph is found.
    """
    source = source.absolute()
    with reading(source, "folder or list of photographs"):
        os.stat(source)
        is_list = not file_list and source.is_file() and is_image_list(source)
    if is_list:
        source, file_list = source.parent, source
    names = _listed(file_list, encoding) if file_list else None
    if source.is_dir() and file_list:
        store = Photographs(source, PathTable(names), file_list, encoding, skip_bad=True)
        if store.missing.size == len(names):
            Photographs(source, PathTable(names), file_list, encoding)  # raises, and says why
        rows = np.arange(len(store))
        notes = store.notes
    elif source.is_dir():
        store, notes = _folder(source, apart)
        rows = np.arange(len(store))
    elif is_archive(source):
        store = open_archive(source)
        rows, notes = np.arange(len(store)), ()
        if names is not None:
            rows, notes = _rows_in(store, names, file_list, encoding)
        notes += tuple(filter(None, [litter_note(store.litter)]))
        if store.links:
            what = f"{len(store.links):,} links, whose files are elsewhere"
            notes += (f"left out: {what}: {first_few(store.links)}",)
    else:
        raise DataError(
            f"{source} is no folder, list, .zip or .tar of photographs. Other data sets are "
            f"written as a folder by `python -m Utils.Datasets_Utils.convert_dataset "
            f"{quoted(source)} FOLDER`."
        )
    _, first = np.unique([store.name(row) for row in rows.tolist()], return_index=True)
    if len(first) < len(rows):
        notes += (f"left out: {len(rows) - len(first):,} photographs that are named twice",)
    rows = rows[np.sort(first)]
    if not len(rows):
        raise DataError("; ".join((f"{file_list or source} has no photographs", *notes)) + ".")
    return store, rows.astype(np.int64), tuple(notes)


def _folder(root: Path, apart: Sequence[Path]) -> tuple[Photographs, tuple[str, ...]]:
    found = list_folder(root)
    below = [os.path.relpath(path.resolve(), root.resolve()) for path in apart]
    files = [
        name
        for name in found.files
        if not any(name == path or name.startswith(f"{path}/") for path in below)
    ]
    store = Photographs(root, PathTable(files), root, skip_bad=True)
    return store, tuple(filter(None, [litter_note(found.litter)]))


def _rows_in(
    store: ImageStore, names: list[str], file_list: Path, encoding: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(rows of the photographs in a list, notes). Raises DataError if none of them is there."""
    rows = store.rows(names, file_list, encoding, skip_bad=True)
    if (rows < 0).all():
        store.rows(names, file_list, encoding)  # raises, and says why
    notes = store.notes
    if missing := [names[i] for i in np.flatnonzero(rows < 0).tolist()]:
        what = f"{len(missing):,} photographs that are not in {store.source}"
        notes += (f"left out: {what}: {first_few(missing)}",)
    return rows[rows >= 0], notes


def _listed(file_list: Path, encoding: str) -> list[str]:
    """The names in a list. Raises DataError for a list of another form."""
    with reading(file_list, "list of photographs"), open(file_list, "rb") as file:
        if file.read(1) in (b"{", b"["):
            return list(read_photo_list(file_list, with_ids=False).names)
        file.seek(0)
        lines = [
            text for _, text in numbered_lines(file, file_list, encoding) if not is_comment(text)
        ]
    # Names alone end in an image's suffix; a label after it would hide that. It may be before it.
    sample = lines[:_SAMPLE]
    labelled = "\t" in "".join(sample[:1]) or all(re.match(r"\d+\s", line) for line in sample)
    if sum(map(is_image_name, sample)) > len(sample) / 2 and not labelled:
        return lines
    return list(parse_list(file_list, encoding).names)


def crop_names(names: Iterable[str], root: Path, every_face: bool = False) -> list[str]:
    """Where the crop of each photograph belongs, relative to the folder of all crops.

    names: relative to root, with / between folders, or absolute. A crop has its photograph's name,
    and .png after it unless OpenCV writes files of that suffix. No name leads out of the folder.
    every_face: a.face2.jpg is left to the second face of a.jpg, where there is such a photograph.
    """
    plain = [_plain_name(name, root) for name in names]
    made, taken, known = [], set(), {name.lower() for name in plain}
    for name in plain:
        stem, suffix = os.path.splitext(name)
        first = _FACE.sub("", stem) + suffix
        number = 1
        if every_face and first != name and first.lower() in known:
            taken.add(name.lower())
        while name.lower() in taken:  # some file systems do not tell A.jpg from a.JPG
            number += 1
            name = f"{stem}_{number}{suffix}"
        taken.add(name.lower())
        made.append(name)
    return made


def _plain_name(name: str, root: Path) -> str:
    if name.startswith("/"):
        inside = os.path.relpath(name, root)
        name = name.lstrip("/") if inside.startswith("../") else inside
    parts = [part for part in os.path.normpath(name).split("/") if part not in ("..", "")]
    name = "/".join(parts)
    return name if os.path.splitext(name)[1].lower() in _KEPT else f"{name}.png"


def looks_aligned(store: ImageStore, rows: np.ndarray, sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether the photographs looked at all have one of these sizes, as aligned faces have."""
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, _LOOKED_AT).astype(int))].tolist()
    found = []
    for row in chosen:
        try:
            found.append(image_size(store.encoded(row)))
        except ImageError:  # gets its line in the report
            continue
    known = [size for size in found if size]
    return bool(known) and all(size in sizes for size in known)
