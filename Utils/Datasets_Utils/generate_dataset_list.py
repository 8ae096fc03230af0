"""Write the image list of a training set.

    python -m Utils.Datasets_Utils.generate_dataset_list SOURCE LIST [--min_images N]

SOURCE is a class-per-folder tree, or anything else that training opens: a record file, tar shards,
an archive; or a list itself, such as an .lst of MXNet or insightface, or CSV. The new labels are
0..C-1, in the order of the old ones; images and classes of a tree are sorted, so that the same tree
gives the same list on every machine. Folders without images, files of other kinds, and what systems
leave behind are left out and reported.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats import find_images, is_image_folder, is_image_list
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder
from Utils.Datasets_Utils.formats.image_list import FileImages
from Utils.Datasets_Utils.formats.list_lines import parse_list
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.names import without_folders
from Utils.Datasets_Utils.training_set import renumber, renumbering
from Utils.errors import DataError, run_script
from Utils.files import atomic_path, make_folder


def write_list(
    source: str | Path,
    file_list: str | Path,
    min_images: int = 1,
    identity_folder: str = "top",
    images: str | Path | None = None,
    drop_folders: int = 0,
    by_folder: bool = False,
    skip_bad: bool = False,
    list_encoding: str = "",
) -> str:
    """Write `name  label` lines for the images of source, and return a report for printing.

    min_images: classes of fewer images are left out, and the others labelled without gaps.
    identity_folder: which folder of a tree is the person, "top" or "deepest", see `class_tree`.

    Where source is a list: images: the folder, archive or record file of its images, whose own
    names are written then. drop_folders: leading folders to drop from the names; the root counts.
    by_folder: label by the names' first folder. skip_bad: leave out lines of another form, and of
    missing images. list_encoding: of the list; "" finds it out.

    Raises DataError if no class is left, and for a source that can't be read.
    """
    source, file_list = Path(source), Path(file_list)
    if is_image_list(source):
        lines = parse_list(source, list_encoding, skip_bad, by_folder)
        names, labels, notes = lines.names, lines.labels, lines.notes
        if drop_folders:
            names = PathTable(without_folders(name, drop_folders) for name in names)
        if images:
            names, left, more = _own_names(Path(images), names, source, list_encoding, skip_bad)
            labels, notes = labels[left], (*notes, *more)
        if not by_folder and lines.classes is None:
            notes += renumbering(labels)
    else:
        names, labels, notes = _stored_names(source, identity_folder)
    kept, labels, left_out = renumber(labels, min_images)
    if len(labels) == 0:
        why = f"{source} has no identity with {min_images} or more images: nothing to list"
        raise DataError("; ".join((why, *notes)) + ".")
    write_lines(file_list, (names[row] for row in kept.tolist()), labels)
    if left_out:
        notes = (f"left out: {left_out} identities with fewer than {min_images} images", *notes)
    if labels.max() == 0:
        form = "a folder for each person, <person>/<image>"
        notes = (f"warning: one identity can't be trained on; expected {form}", *notes)
    return "\n  ".join(
        (f"{file_list}: {len(labels)} images, {labels.max() + 1} identities", *notes)
    )


def _own_names(
    images: Path, names: PathTable, source: Path, encoding: str, skip_bad: bool
) -> tuple[PathTable, np.ndarray, tuple[str, ...]]:
    """(the images' own names, rows (int64) of the list that have images, notes)."""
    if not is_image_folder(images):
        store = find_images(images).images
        rows = store.rows(names, source, encoding, skip_bad)
        kept = np.flatnonzero(rows >= 0)
        found, notes = [store.name(row) for row in rows[kept].tolist()], store.notes
    else:
        files = FileImages(images, names, source, encoding, skip_bad)
        kept = np.setdiff1d(np.arange(len(names)), files.missing)
        found, notes = [files.paths[row] for row in kept.tolist()], files.notes
    if len(kept) < len(names):
        notes += (f"left out: {len(names) - len(kept)} images that are not in {images}",)
    return PathTable(found), kept, notes


def write_lines(file_list: Path, names: Iterable[str], labels: np.ndarray) -> None:
    """Write an image list. Raises RunError if it can't be written."""
    make_folder(file_list.parent)
    names = map(_one_line, names)
    with (
        atomic_path(file_list) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape") as f,
    ):
        f.writelines(f"{n}  {label}\n" for n, label in zip(names, labels.tolist(), strict=True))


def _one_line(name: str) -> str:
    """The name itself. Raises DataError for one that a list can't hold."""
    if name != name.strip() or "\n" in name or "\r" in name or "\0" in name:
        raise DataError(
            f"the name {name[:80]!r} can't stand in a list, as it has a line's end or a NUL in it "
            f"or a blank at its ends; rename that file."
        )
    return name


def _stored_names(source: Path, identity_folder: str) -> tuple[PathTable, np.ndarray, tuple]:
    """(names, labels, notes) of anything that training opens without a list."""
    store, labels, rows = find_images(source, identity_folder)
    rows = range(len(store)) if rows is None else rows.tolist()
    return PathTable(store.name(row) for row in rows), labels, store.notes


def main() -> None:
    """Read the command line, write the list, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "source", help="a folder for each identity, .rec, shards, .zip, .tar, or a list"
    )
    parser.add_argument("list", help="the list file to write")
    parser.add_argument("--min_images", type=int, default=1, help="leave smaller identities out")
    add_identity_folder(parser)
    lists = parser.add_argument_group("where the source is a list itself")
    lists.add_argument("--images", help="write the names that its images have in this data set")
    lists.add_argument(
        "--drop_folders", type=int, default=0, metavar="N", help="drop N leading folders from names"
    )
    lists.add_argument(
        "--by_folder", action="store_true", help="the first folder of a name is its label"
    )
    lists.add_argument(
        "--skip_bad", action="store_true", help="leave out lines of another form or without image"
    )
    lists.add_argument("--list_encoding", default="", help="such as gbk; found out if not given")
    given = vars(parser.parse_args())
    print(write_list(file_list=given.pop("list"), **given))


if __name__ == "__main__":
    run_script(main)
