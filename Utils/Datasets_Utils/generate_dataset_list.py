"""Write the image list of a class-per-folder tree.

    python -m Utils.Datasets_Utils.generate_dataset_list FOLDER LIST [--min_images N]

Images and classes are sorted and the labels contiguous from 0, so that the same tree gives the
same list on every machine. Folders without images and other files are left out and reported.
"""

import argparse
from pathlib import Path

from Utils.Datasets_Utils.image_list import SHOWN, Tree, scan_tree
from Utils.errors import DataError, run_script
from Utils.files import atomic_path


def write_list(root: str | Path, file_list: str | Path, min_images: int = 1) -> str:
    """Write `path  label` lines for the tree under root, and return a report of what was found.

    min_images: classes with fewer images are left out, and the labels numbered without them.
    Raises DataError where no class is left.
    """
    tree = scan_tree(root)
    images = _large_classes(tree, min_images)
    if not images:
        raise DataError(
            f"{root} has no folder with {min_images} or more images, so there is nothing to list."
        )
    file_list = Path(file_list)
    file_list.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic_path(file_list) as temporary,
        open(temporary, "w", encoding="utf-8", errors="surrogateescape") as f,
    ):
        f.writelines(f"{path}  {label}\n" for path, label in images)
    return _report(tree, images, file_list, min_images)


def _large_classes(tree: Tree, min_images: int) -> list[tuple[str, int]]:
    counts = [0] * len(tree.classes)
    for _, label in tree.images:
        counts[label] += 1
    kept = (label for label, count in enumerate(counts) if count >= min_images)
    new_label = {label: number for number, label in enumerate(kept)}
    return [(path, new_label[label]) for path, label in tree.images if label in new_label]


def _report(tree: Tree, images: list[tuple[str, int]], file_list: Path, min_images: int) -> str:
    classes = images[-1][1] + 1
    lines = [f"{file_list}: {len(images)} images, {classes} identities"]
    if classes < len(tree.classes):
        lines.append(
            f"  left out: {len(tree.classes) - classes} identities with fewer than "
            f"{min_images} images"
        )
    for what, names in (
        ("folders without images", tree.empty_folders),
        ("files that are no images of a class", tree.other_files),
    ):
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            lines.append(f"  left out: {len(names)} {what}: {', '.join(names[:SHOWN])}{more}")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, write the list, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="the tree: a folder for each identity")
    parser.add_argument("list", help="the list file to write")
    parser.add_argument("--min_images", type=int, default=1, help="leave smaller identities out")
    arguments = parser.parse_args()
    print(write_list(arguments.folder, arguments.list, arguments.min_images))


if __name__ == "__main__":
    run_script(main)
