"""The group of each pair, such as a race: from a file with the group of each image.

Lines are `image group`, with a tab or comma between them where names hold blanks; a header line
`image group` may be there. A pair of two images of one group is of that group. A pair across two
groups is of none: its text is empty.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.images import without_suffix
from Utils.Datasets_Utils.pairs.contents import PairsError
from Utils.Datasets_Utils.text import (
    GROUP_WORDS,
    IMAGE_WORDS,
    fields_of,
    first_few,
    is_comment,
    numbered_lines,
)
from Utils.files import reading

_SHOWN = 5  # images that an error names


def read_groups(
    path: Path, names: list[str], left: np.ndarray, right: np.ndarray, encoding: str = ""
) -> np.ndarray:
    """The groups (P texts) of pairs of images; "" for a pair across two groups.

    names: of the images, with or without the suffix that the file gives them. left, right: P
    indices into names. Raises PairsError, naming the line, for a malformed one and for two groups
    of one image; and naming the first images without a group.
    """
    known: dict[str, tuple[str, int]] = {}
    with reading(path, "file of groups", PairsError), open(path, "rb") as file:
        for number, text in numbered_lines(file, path, encoding, PairsError):
            fields = fields_of(text)
            if is_comment(text) or (not known and _is_header(fields)):
                continue
            if len(fields) != 2 or not all(fields):
                raise PairsError(
                    f"{path}, line {number}: {text[:80]!r} is not an image with its group; "
                    f"expected `image group`, with a tab between them if names hold blanks."
                )
            group, line = known.setdefault(plain_name(fields[0]), (fields[1], number))
            if group != fields[1]:
                raise PairsError(
                    f"{path}, line {number}: {fields[0]} is of group {fields[1]} here and of "
                    f"{group} in line {line}; an image has one group."
                )
    missing = [name for name in names if plain_name(name) not in known]
    if missing:
        first = first_few(missing, _SHOWN)
        raise PairsError(
            f"{path}: gives no group for {len(missing)} of the {len(names)} images: {first}; "
            f"expected a line `image group` for each, with these names."
        )
    groups = np.array([known[plain_name(name)][0] for name in names])
    return np.where(groups[left] == groups[right], groups[left], "")


def _is_header(fields: list[str]) -> bool:
    words = [field.lower().lstrip("# ") for field in fields]
    return len(words) == 2 and words[0] in IMAGE_WORDS and words[1] in GROUP_WORDS


def plain_name(name: str) -> str:
    """An image's name without its suffix, with / between folders."""
    return without_suffix(name.replace("\\", "/").removeprefix("./"))
