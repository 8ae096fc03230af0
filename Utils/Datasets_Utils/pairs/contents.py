"""What a pairs file gives, its errors, and the commands that messages propose to mend one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.pairs.lines import Pair
from Utils.Datasets_Utils.text import mended, quoted
from Utils.errors import UserError

_LONGEST_QUOTE = 80
_DELETED = 40  # lines that a message offers to delete


class PairsError(UserError, ValueError):
    """A pairs file that can't be read or understood; the text names the line and what was
    expected."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs of images.

    names: the unique image names, in the order in which the file first mentions them.
    left, right: P ints, indices into names. same: P bools. folds: P ints, from 0.
    source: the pairs file. numbers: P×L ints, the lines of each pair; empty if it is no text file.
    header: the line of LFW's header, which counts the pairs; 0 without one.
    groups: P texts, the group of each pair; empty if the file has none.
    """

    names: list[str]
    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    folds: np.ndarray
    source: Path
    numbers: np.ndarray
    header: int = 0
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, str))


def index_pairs(
    pairs: Sequence[Pair],
    folds: np.ndarray,
    path: Path,
    numbers: np.ndarray | list[list[int]],
    header: int = 0,
) -> Pairs:
    """Give each image one index, so that an image in several pairs is embedded once."""
    rows: dict[str, int] = {}
    for pair in pairs:
        rows.setdefault(pair.left, len(rows))
        rows.setdefault(pair.right, len(rows))
    groups = [pair.group for pair in pairs]
    return Pairs(
        names=list(rows),
        left=np.array([rows[pair.left] for pair in pairs]),
        right=np.array([rows[pair.right] for pair in pairs]),
        same=np.array([pair.same for pair in pairs]),
        folds=folds,
        source=path,
        numbers=np.array(numbers),
        header=header,
        groups=np.array(groups if any(groups) else [], str),
    )


def malformed(
    path: Path, line: tuple[int, str], expected: str, bad: list[int], remedy: str
) -> PairsError:
    """The error of a line (number, text). bad: numbers of all lines that are in the way; remedy:
    what helps where they are deleted."""
    number, text = line
    text = text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "..."
    advice = "give the file of pairs that belongs to the images"
    if 0 < len(bad) <= _DELETED:
        advice = f"correct it; {remedy}: {deleting(path, bad)}"
    return PairsError(
        f"{path}, line {number}: {text!r} is not a pair; expected {expected}; {advice}"
    )


def with_header(path: Path, header: str, copy: str = "cat") -> str:
    """A command that writes a header line and what `copy` writes of a file."""
    return f"`(echo {header}; {copy} {quoted(path)}) > {mended(path)}`"


def without_images(pairs: Pairs, missing: Sequence[int]) -> str:
    """A command that copies a pairs file without the pairs of some images (rows of its names),
    and without LFW's header; "" for too many of them, and where the pairs are in no text file."""
    if not pairs.numbers.size:
        return ""
    bad = np.isin(pairs.left, missing) | np.isin(pairs.right, missing)
    numbers = pairs.numbers[bad].ravel().tolist()
    if len(numbers) > _DELETED or bad.all():
        return ""
    return deleting(pairs.source, [pairs.header, *numbers] if pairs.header else numbers)


def dropping(pairs: Pairs, count: int) -> str:
    """A command that copies a list without the first folders of its names; or, where the pairs are
    in no text file, what to do with the images."""
    if not pairs.numbers.size:
        folder = "/".join(pairs.names[0].split("/")[:count])
        return f"put them into a folder {folder} and give the folder above it"
    blank = "" if any(" " in name for name in pairs.names) else " "
    script = rf"s#(^|[\t,;{blank}])([^/\t,;{blank}]*/){{{count}}}#\1#g"
    return f"`sed -E '{script}' {quoted(pairs.source)} > {mended(pairs.source)}`"


def deleting(path: Path, numbers: Iterable[int]) -> str:
    """A command that copies a file without some lines."""
    script = ";".join(f"{number}d" for number in numbers)
    return f"`sed '{script}' {quoted(path)} > {mended(path)}`"
