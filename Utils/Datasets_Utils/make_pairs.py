"""Write verification pairs for a labelled folder: a folder of images for each person.

    python -m Utils.Datasets_Utils.make_pairs FOLDER pairs.txt --folds 10 --pairs 300

Each fold has as many matched as mismatched pairs, no pair twice, and people of its own. People are
drawn first and then their photos, as for LFW, so that nobody with many photos fills a fold. The
same folder and seed give the same file on every machine.

It is in LFW's form where all images are named `Name/Name_0001.jpg`; otherwise a list of `left
right 1` and `left right 0`, which is read in ten folds.
"""

import argparse
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.folds import LIST_FOLDS
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder, group_images, list_folder
from Utils.Datasets_Utils.pairs import PairsError, parse_pairs
from Utils.errors import DataError, run_script
from Utils.files import atomic_path, make_folder


class Pair(NamedTuple):
    """Two images, by their paths in the folder."""

    left: str
    right: str
    same: bool


def write_pairs(
    folder: str | Path,
    path: str | Path,
    folds: int = 10,
    pairs: int = 300,
    seed: int = 0,
    identity_folder: str = "top",
) -> str:
    """Draw `pairs` matched and as many mismatched pairs for each fold, write them, and return a
    report for printing.

    identity_folder: which folder of a tree is the person, "top" or "deepest", see `class_tree`.

    Raises DataError for a folder with too few people or photos, and where the file could not be
    read again as it is meant.
    """
    folder, path = Path(folder), Path(path)
    if folds < 2 or pairs < 1:
        raise DataError(f"there must be 2 folds and 1 pair at least, not {folds} and {pairs}.")
    if seed < 0:
        raise DataError(f"--seed is {seed}; expected 0 or more.")
    found = list_folder(folder)
    tree = group_images(found.files, found.litter, identity_folder)
    if not tree.classes:
        raise DataError(f"{folder} has no images in folders; expected {folder}/<person>/<image>.")
    people: list[list[str]] = [[] for _ in tree.classes]
    for row, label in zip(tree.rows, tree.labels, strict=True):
        people[label].append(found.files[row])
    drawn = draw_pairs(people, folds, pairs, seed, str(folder))
    numbers = _lfw_numbers(people)
    if numbers:
        lines, form = [f"{folds}\t{pairs}", *(_lfw_line(p, numbers) for p in drawn)], "LFW's form"
    elif folds == LIST_FOLDS:
        lines = [f"{pair.left}\t{pair.right}\t{int(pair.same)}" for pair in drawn]
        form = "a list, as not all images are named Name/Name_0001.jpg"
    else:
        raise DataError(
            f"not all images of {folder} are named Name/Name_0001.jpg, as LFW's form needs it. "
            f"Other pairs are read in {LIST_FOLDS} folds: leave --folds at that."
        )
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    _check_reading(path, content, drawn, folds, numbers)
    make_folder(path.absolute().parent)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    owner = {photo: label for label, photos in enumerate(people) for photo in photos}
    images = {name for pair in drawn for name in pair[:2]}
    used = {owner[name] for name in images}
    counts = f"{folds} folds of {pairs} matched and {pairs} mismatched pairs"
    return "\n  ".join(
        (
            f"{path}: {counts}, in {form}",
            f"{len(images):,} images in {len(used):,} people; seed {seed}",
            *tree.notes,
        )
    )


def draw_pairs(
    people: Sequence[Sequence[str]], folds: int, pairs: int, seed: int, source: str
) -> list[Pair]:
    """The pairs of all folds: of each, first the matched ones. people: the images of each. source:
    their folder, for messages. Raises DataError for too few people or photos."""
    rng = np.random.default_rng(seed)
    # Dealt from the most photos to the fewest, so that all folds have equally much to draw from.
    order = sorted(rng.permutation(len(people)).tolist(), key=lambda person: -len(people[person]))
    members = [[people[person] for person in order[fold::folds]] for fold in range(folds)]
    _check_enough(members, pairs, source)
    drawn = []
    for own in members:
        several = [photos for photos in own if len(photos) > 1]
        chosen = rng.choice(len(several), min(pairs, len(several)), replace=False)
        rooms = [math.comb(len(several[unit]), 2) for unit in chosen.tolist()]
        for unit, number in _spread(rng, rooms, pairs):
            photos = several[chosen[unit]]
            drawn.append(Pair(*(photos[k] for k in _two_of(number)), True))
        couples = math.comb(len(own), 2)
        chosen = rng.choice(couples, min(pairs, couples), replace=False)
        both = [[own[k] for k in _two_of(unit)] for unit in chosen.tolist()]
        for unit, number in _spread(rng, [len(a) * len(b) for a, b in both], pairs):
            left, right = both[unit]
            drawn.append(Pair(left[number // len(right)], right[number % len(right)], False))
    return drawn


def _check_enough(members: Sequence[Sequence[Sequence[str]]], pairs: int, source: str) -> None:
    """Raise DataError for folds that have not so many pairs of each kind."""
    sizes = [np.array([len(photos) for photos in own], dtype=np.int64) for own in members]
    kinds = {
        "matched": [int((n * (n - 1) // 2).sum()) for n in sizes],
        "mismatched": [int((n.sum() ** 2 - (n**2).sum()) // 2) for n in sizes],
    }
    kind, least = min(((k, min(counts)) for k, counts in kinds.items()), key=lambda item: item[1])
    if least >= pairs:
        return
    photos = np.concatenate(sizes)
    remedy = f"--pairs {least} or fewer --folds" if least else "fewer --folds, or more photos"
    raise DataError(
        f"{source} has {len(photos):,} people, {(photos > 1).sum():,} of them with two photos or "
        f"more. Divided into {len(members)} folds of different people, one fold has only {least:,} "
        f"{kind} pairs to choose from, but {pairs:,} are wanted: give {remedy}."
    )


def _spread(rng: np.random.Generator, rooms: Sequence[int], count: int) -> list[tuple[int, int]]:
    """(unit, number below its room) of `count` different choices, of each unit as equally many as
    the rooms allow, in random order."""
    capacity, quotas = np.array(rooms), np.zeros(len(rooms), np.int64)
    order = rng.permutation(len(rooms))
    while left := count - int(quotas.sum()):
        quotas[order[capacity[order] > quotas[order]][:left]] += 1
    chosen = [
        (unit, number)
        for unit, quota in enumerate(quotas.tolist())
        for number in rng.choice(rooms[unit], quota, replace=False).tolist()
    ]
    return [chosen[k] for k in rng.permutation(len(chosen)).tolist()]


def _two_of(number: int) -> tuple[int, int]:
    """The pair i < j of that number, when pairs are counted (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    j = (1 + math.isqrt(8 * number + 1)) // 2
    return number - j * (j - 1) // 2, j


def _lfw_numbers(people: Sequence[Sequence[str]]) -> dict[str, tuple[str, int]]:
    """(name, number) of each image for LFW's form; empty if an image is named in another way."""
    numbers = {}
    for name in (name for photos in people for name in photos):
        found = re.fullmatch(r"([^/]+)/\1_(\d{4,})\.\w+", name)
        if not found or f"{int(found[2]):04d}" != found[2]:
            return {}
        numbers[name] = found[1], int(found[2])
    return numbers if len(set(numbers.values())) == len(numbers) else {}


def _lfw_line(pair: Pair, numbers: dict[str, tuple[str, int]]) -> str:
    (left, first), (right, second) = numbers[pair.left], numbers[pair.right]
    return "\t".join([left, str(first), *([] if pair.same else [right]), str(second)])


def _check_reading(
    path: Path,
    content: bytes,
    drawn: Sequence[Pair],
    folds: int,
    numbers: dict[str, tuple[str, int]],
) -> None:
    """Raise DataError unless the file is read as what was drawn."""
    try:
        read = parse_pairs(path, content)
    except PairsError as error:
        raise DataError(
            f"the names of these images can't stand in a pairs file; rename them ({error})"
        ) from None
    for row, pair in enumerate(drawn):
        names = [read.names[side[row]] for side in (read.left, read.right)]
        meant = [os.path.splitext(name)[0] if numbers else name for name in pair[:2]]
        fold = row * folds // len(drawn)
        if (names, read.same[row], read.folds[row]) != (meant, pair.same, fold):
            raise DataError(
                f"the names of {pair.left} and {pair.right} can't stand in a pairs file, where "
                f"they would be read as {names[0]} and {names[1]}; rename them."
            )


def main() -> None:
    """Read the command line, write the pairs, print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a folder of images for each person")
    parser.add_argument("path", metavar="pairs", help="the pairs file to write")
    parser.add_argument("--folds", type=int, default=10, help="folds, of different people each")
    parser.add_argument(
        "--pairs", type=int, default=300, help="matched pairs of a fold, and mismatched ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random choice")
    add_identity_folder(parser)
    print(write_pairs(**vars(parser.parse_args())))


if __name__ == "__main__":
    run_script(main)
