"""The pairs of the demo's verification sets, and their lines in the files.

A fold has people of its own, with four photos each. Half of its pairs are matched.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

PHOTOS = 4  # of a person

# ((person, photo), (person, photo)), counted from 0
Sides = tuple[tuple[int, int], tuple[int, int]]


def fold_pairs(
    rng: np.random.Generator, people: range, pairs: int, crossed: bool
) -> tuple[list[Sides], list[Sides]]:
    """Matched and mismatched pairs among one fold's people.

    crossed: each pair is one of a person's first two photos and one of the last two. Raises
    ValueError for more pairs than the people have.
    """
    crossing = itertools.product((0, 1), (2, 3))
    photos = list(crossing if crossed else itertools.combinations(range(PHOTOS), 2))
    matched = [((p, i), (p, j)) for p in people for i, j in photos]
    mismatched = [
        ((p, i), (q, j))
        for p, q in itertools.permutations(people, 2)
        for i, j in photos
        if crossed or p < q
    ]
    half = pairs // 2
    if half > min(len(matched), len(mismatched)):
        raise ValueError(f"{len(people)} people per fold are too few for {pairs} pairs")
    return tuple(
        [choices[i] for i in rng.permutation(len(choices))[:half]]
        for choices in (matched, mismatched)
    )


def lfw_lines(rng: np.random.Generator, names: list[str], folds: int, pairs: int) -> Iterator[str]:
    """The lines of a pairs file in LFW's format, without its header.

    names: of the people of all folds. pairs: in each fold.
    """
    for people in _people_of_folds(len(names), folds):
        matched, mismatched = fold_pairs(rng, people, pairs, crossed=False)
        for (person, i), (_, j) in matched:
            yield f"{names[person]}\t{i + 1}\t{j + 1}"
        for (left, i), (right, j) in mismatched:
            yield f"{names[left]}\t{i + 1}\t{names[right]}\t{j + 1}"


def crossed_lines(
    rng: np.random.Generator,
    people: int,
    folds: int,
    pairs: int,
    file_name: Callable[[int, int], str],
) -> Iterator[str]:
    """Lines `left right 1|-1` of pairs of a first and a last photo. people: of all folds. pairs: in
    each fold. file_name: of (person, photo)."""
    for own in _people_of_folds(people, folds):
        for kind, label in zip(fold_pairs(rng, own, pairs, crossed=True), (1, -1), strict=True):
            for left, right in kind:
                yield f"{file_name(*left)} {file_name(*right)} {label}"


def _people_of_folds(people: int, folds: int) -> Iterator[range]:
    for fold in range(folds):
        yield range(people * fold // folds, people * (fold + 1) // folds)
