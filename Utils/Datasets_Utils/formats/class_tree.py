"""Whose the images in a tree of folders are: of a folder on disk, or of an archive of one.

The folder directly under the root is the person, and all images below it are that person's, as
torchvision's ImageFolder has it; with `identity_folder` "deepest", each folder that itself has
images is a person. Folders that hold everything are above the root: `lfw/lfw/<person>` is the tree
of its inner folder. Files and folders that operating systems and programs leave behind never count.
"""

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from Utils.Datasets_Utils.images import is_image_name
from Utils.Datasets_Utils.text import first_few
from Utils.errors import DataError

IDENTITY_FOLDERS = ("top", "deepest")

# What systems put beside the user's files without a dot before it, in lower case: macOS (in zips),
# Synology, QNAP, Windows, Linux file systems, Python.
_LITTER = frozenset(
    (
        *("__macosx", "icon\r", "@eadir", "#recycle", "#snapshot", "@recycle"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", "__pycache__"),
    )
)


def add_identity_folder(parser: argparse.ArgumentParser) -> None:
    """Give a command the flag --identity_folder, a word of IDENTITY_FOLDERS."""
    parser.add_argument(
        "--identity_folder",
        choices=IDENTITY_FOLDERS,
        default="top",
        help="which folder is the person: directly under the root, or each that has images",
    )


def litter_in(path: str) -> str:
    """The first hidden or system file or folder in a relative path; empty if there is none.

    Hidden: the name begins with a dot, as `._0001.jpg`, `.DS_Store` and `.ipynb_checkpoints` do.
    """
    parts = path.split("/")
    for number, part in enumerate(parts, 1):
        if part.startswith(".") or part.lower() in _LITTER:
            return "/".join(parts[:number])
    return ""


@dataclass
class Tree:
    """The images of a tree that are somebody's.

    rows: their indices in the names that were given. labels: 0..C-1, of each. classes: the people's
    folders by label. notes: lines for the log about what was left out, and about how the folders
    were read where that is not the only way.
    """

    rows: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def group_images(names: Sequence[str], litter: Sequence[str], identity_folder: str = "top") -> Tree:
    """Group the images among the files of a tree.

    names: relative paths of all files, each folder's together and in the order of the labels.
    litter: what `litter_in` found among them, which is already left out.
    identity_folder: "top" or "deepest", see above.
    """
    tree, folders, strays, others = Tree(), [], [], Counter()
    known: dict[str, str] = {}  # one string for each folder, not one for each of its images
    folder_of = [
        known.setdefault(folder := name.rpartition("/")[0], folder) if is_image_name(name) else None
        for name in names
    ]
    root = people_root(set(known))
    for row, (name, folder) in enumerate(zip(names, folder_of, strict=True)):
        if folder is None:
            others[PurePosixPath(name).suffix.lower() or "without a suffix"] += 1
        elif len(folder) > len(root):
            tree.rows.append(row)
            folders.append(folder)
        else:
            strays.append(name)
    deepest = set(folders)
    # A folder's person is the part of its path up to the first slash after the root's.
    person_of = {folder: first_folder(folder, len(root)) for folder in deepest}
    top = set(person_of.values())
    if identity_folder == "deepest":
        person_of = {folder: folder for folder in deepest}
    labels: dict[str, int] = {}
    tree.labels = [labels.setdefault(person_of[folder], len(labels)) for folder in folders]
    tree.classes = list(labels)
    if len(top) != len(deepest):
        tree.notes.append(_both_readings(len(top), len(deepest), root, identity_folder))
    elif root:
        tree.notes.append(f"the people's folders are those in {root}")
    if litter:
        tree.notes.append(litter_note(litter))
    if strays:
        what = "images that are in no person's folder (expected <person>/<image>)"
        tree.notes.append(f"left out: {len(strays):,} {what}: {first_few(strays)}")
    if others:
        kinds = ", ".join(f"{kind} ({count:,})" for kind, count in others.most_common())
        tree.notes.append(f"left out: {others.total():,} files that are no images: {kinds}")
    return tree


def litter_note(litter: Sequence[str]) -> str:
    """A line for the log; empty for none."""
    what = f"{len(litter):,} hidden or system files or folders"
    return f"left out: {what}: {first_few(litter)}" if litter else ""


def _both_readings(top: int, deepest: int, root: str, chosen: str) -> str:
    """The warning where people's folders have folders of images in them."""
    readings = {
        "top": f"{top:,} identities, the folders directly under {root or 'the root'}",
        "deepest": f"{deepest:,} identities, each folder that has images",
    }
    other = "deepest" if chosen == "top" else "top"
    return (
        f"warning: the folders can be read in two ways. Taken: {readings[chosen]}. With "
        f"identity_folder {other}: {readings[other]}"
    )


def people_root(folders: set[str]) -> str:
    """The folder, with its slash, in which the people's folders are; empty for the tree's own."""
    common = os.path.commonpath(folders - {""} or {""})
    below = {first_folder(folder, len(common) + 1) for folder in folders - {"", common}}
    # With images of its own, and not two folders in it, it is a person itself, the only one.
    root = os.path.dirname(common) if common in folders and len(below) < 2 else common
    return f"{root}/" if root else ""


def first_folder(folder: str, start: int) -> str:
    """A path up to its first slash from `start` on."""
    end = folder.find("/", start)
    return folder if end < 0 else folder[:end]


@dataclass(frozen=True)
class Folder:
    """What `list_folder` finds below a folder, as relative paths, sorted: files, what `litter_in`
    calls litter, and folders without images."""

    files: list[str]
    litter: list[str]
    empty: list[str]


def list_folder(root: str | Path) -> Folder:
    """The files in a folder and below it; links are followed as by `walk_folders`.

    Raises DataError if root is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"the data set's folder {root} does not exist or is no folder.")
    found = Folder([], [], [])
    for folder, subfolders, files in walk_folders(root, found.litter):
        name = os.path.relpath(folder, root)
        below = "" if name == "." else f"{name}/"
        found.files.extend(below + file for file in files)
        if below and not subfolders and not any(map(is_image_name, files)):
            found.empty.append(name)
    return found


def walk_folders(
    root: str | Path, litter: list[str] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """(folder, names of its folders, names of its files) of a tree from root down, names sorted.

    litter: takes the relative paths of the hidden and system files and folders that are left out.
    Links to folders are followed, except to a folder that the link itself is in: it would give
    every image again and again.
    """
    root = os.fspath(root)
    above = {root: frozenset({_identity(root)})}  # of each folder still to come: all above it
    for folder, subfolders, files in os.walk(root, followlinks=True):
        seen = above.pop(folder)
        if litter is not None:
            left_out = sorted(filter(litter_in, (*subfolders, *files)))
            litter += [os.path.relpath(os.path.join(folder, name), root) for name in left_out]
        files = sorted(name for name in files if not litter_in(name))
        found = {
            name: _identity(os.path.join(folder, name))
            for name in sorted(subfolders)
            if not litter_in(name)
        }
        subfolders[:] = [name for name, identity in found.items() if identity not in seen]
        above.update((os.path.join(folder, name), seen | {found[name]}) for name in subfolders)
        yield folder, subfolders, files


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
