"""Write the image list of a training set.

    python -m Utils.Datasets_Utils.generate_dataset_list SOURCE LIST [--min_images N]

SOURCE is a class-per-folder tree, or anything else that training opens: a record file, tar shards,
an archive; or an .lst file, MXNet's `index<TAB>label<TAB>path` or insightface's
`1<TAB>path<TAB>label`. The new labels are 0..C-1, in the order of the old ones; images and classes
of a tree are sorted, so that the same tree gives the same list on every machine. Folders without
images and files of other kinds are left out and reported.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats import find_images, is_image_folder
from Utils.Datasets_Utils.formats.image_list import SHOWN, Tree, scan_tree
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.training_set import renumber
from Utils.errors import DataError, run_script
from Utils.files import atomic_path, make_folder, reading

_EXACT_FLOATS = 1 << 53  # whole numbers below it are exact as float64, and fit into an int64


def write_list(source: str | Path, file_list: str | Path, min_images: int = 1) -> str:
    """Write `name  label` lines for the images of source, and return a report for printing.

    min_images: classes of fewer images are left out, and the others labelled without gaps.
    Raises DataError if no class is left, and for a source that can't be read.
    """
    source, file_list = Path(source), Path(file_list)
    tree = scan_tree(source) if is_image_folder(source) else None
    if tree:
        names, labels = tree.images, np.array(tree.labels, np.int64)
    else:
        names, labels = _read_lst(source) if source.suffix == ".lst" else _stored_names(source)
    kept, labels, left_out = renumber(labels, min_images)
    if len(labels) == 0:
        what = "folder" if tree else "class"
        raise DataError(
            f"{source} has no {what} with {min_images} or more images, so there is nothing to list."
        )
    write_lines(file_list, (names[row] for row in kept.tolist()), labels)
    return _report(file_list, labels, left_out, min_images, tree)


def write_lines(file_list: Path, names: Iterable[str], labels: np.ndarray) -> None:
    """Write an image list. Raises RunError if it can't be written."""
    make_folder(file_list.parent)
    with (
        atomic_path(file_list) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape") as f,
    ):
        f.writelines(f"{n}  {label}\n" for n, label in zip(names, labels.tolist(), strict=True))


def _stored_names(source: Path) -> tuple[PathTable, np.ndarray]:
    """(names, labels) of a set that is no folder of images."""
    store, labels, rows = find_images(source)
    rows = range(len(store)) if rows is None else rows.tolist()
    return PathTable(store.name(row) for row in rows), labels


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


def _report(
    file_list: Path, labels: np.ndarray, left_out: int, min_images: int, tree: Tree | None
) -> str:
    lines = [f"{file_list}: {len(labels)} images, {labels.max() + 1} identities"]
    if left_out:
        lines.append(f"  left out: {left_out} identities with fewer than {min_images} images")
    for what, names in (
        ("folders without images", tree.empty_folders if tree else []),
        ("files that are no images of a class", tree.other_files if tree else []),
    ):
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            lines.append(f"  left out: {len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, write the list, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder for each identity, .rec, .lst, shards, .zip, .tar")
    parser.add_argument("list", help="the list file to write")
    parser.add_argument("--min_images", type=int, default=1, help="leave smaller identities out")
    arguments = parser.parse_args()
    print(write_list(arguments.source, arguments.list, arguments.min_images))


if __name__ == "__main__":
    run_script(main)
