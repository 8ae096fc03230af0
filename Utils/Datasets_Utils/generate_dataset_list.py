"""Write the image list of a training set.

    python -m Utils.Datasets_Utils.generate_dataset_list SOURCE LIST [--min_images N]

SOURCE is a class-per-folder tree, or anything else that training opens: a record file, tar shards,
an archive; or an .lst file, MXNet's `index<TAB>label<TAB>path` or insightface's
`1<TAB>path<TAB>label`. The new labels are 0..C-1, in the order of the old ones; images and classes
of a tree are sorted, so that the same tree gives the same list on every machine. Folders without
images, files of other kinds, and what systems leave behind are left out and reported.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats import find_images
from Utils.Datasets_Utils.formats.class_tree import IDENTITY_FOLDERS
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.training_set import renumber
from Utils.errors import DataError, run_script
from Utils.files import atomic_path, make_folder, reading

_EXACT_FLOATS = 1 << 53  # whole numbers below it are exact as float64, and fit into an int64


def write_list(
    source: str | Path, file_list: str | Path, min_images: int = 1, identity_folder: str = "top"
) -> str:
    """Write `name  label` lines for the images of source, and return a report for printing.

    min_images: classes of fewer images are left out, and the others labelled without gaps.
    identity_folder: which folder of a tree is the person, "top" or "deepest", see `class_tree`.
    Raises DataError if no class is left, and for a source that can't be read.
    """
    source, file_list = Path(source), Path(file_list)
    if source.suffix == ".lst":
        names, labels, notes = *_read_lst(source), ()
    else:
        names, labels, notes = _stored_names(source, identity_folder)
    kept, labels, left_out = renumber(labels, min_images)
    if len(labels) == 0:
        why = f"{source} has no identity with {min_images} or more images: nothing to list"
        raise DataError("; ".join((why, *notes)) + ".")
    write_lines(file_list, (names[row] for row in kept.tolist()), labels)
    if left_out:
        notes = (f"left out: {left_out} identities with fewer than {min_images} images", *notes)
    return "\n  ".join(
        (f"{file_list}: {len(labels)} images, {labels.max() + 1} identities", *notes)
    )


def write_lines(file_list: Path, names: Iterable[str], labels: np.ndarray) -> None:
    """Write an image list. Raises RunError if it can't be written."""
    make_folder(file_list.parent)
    with (
        atomic_path(file_list) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape") as f,
    ):
        f.writelines(f"{n}  {label}\n" for n, label in zip(names, labels.tolist(), strict=True))


def _stored_names(source: Path, identity_folder: str) -> tuple[PathTable, np.ndarray, tuple]:
    """(names, labels, notes) of anything that training opens without a list."""
    store, labels, rows, notes = find_images(source, identity_folder)
    rows = range(len(store)) if rows is None else rows.tolist()
    return PathTable(store.name(row) for row in rows), labels, notes


def _read_lst(path: Path) -> tuple[PathTable, np.ndarray]:
    """(paths, labels) of an .lst. Raises DataError naming file and line."""
    names, labels = [], []
    with reading(path, "image list"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    for number, line in enumerate(text.split("\n"), 1):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip():
            continue
        name, label = _parse_lst(fields)
        if label is None:
            raise DataError(
                f"{path}, line {number}: {line[:80]!r} is neither 'index<TAB>label<TAB>path' nor "
                f"'1<TAB>path<TAB>label'."
            )
        names.append(name)
        labels.append(label)
    return PathTable(names), np.array(labels, np.int64)


def _parse_lst(fields: list[str]) -> tuple[str, int | None]:
    """(path, label) of a line of either kind; the label is None for other lines."""
    if len(fields) < 3:
        return "", None
    # The second field is the (first) label in MXNet's lines, the path in insightface's.
    if (label := _label(fields[1])) is not None:
        return fields[-1], label
    return fields[1], _label(fields[2])


def _label(text: str) -> int | None:
    """A class number, which some tools write as 3.000000; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if 0 <= value < _EXACT_FLOATS and value.is_integer() else None


def main() -> None:
    """Read the command line, write the list, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder for each identity, .rec, .lst, shards, .zip, .tar")
    parser.add_argument("list", help="the list file to write")
    parser.add_argument("--min_images", type=int, default=1, help="leave smaller identities out")
    parser.add_argument(
        "--identity_folder",
        choices=IDENTITY_FOLDERS,
        default="top",
        help="which folder is the person: directly under the root, or each that has images",
    )
    given = parser.parse_args()
    print(write_list(given.source, given.list, given.min_images, given.identity_folder))


if __name__ == "__main__":
    run_script(main)
