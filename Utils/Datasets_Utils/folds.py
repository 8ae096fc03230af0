"""The folds of a verification set: consecutive ones, and ones that hold pairs of both kinds."""

from __future__ import annotations

import numpy as np

LIST_FOLDS = 10  # as published figures for AgeDB-30 and CFP-FP use


def consecutive_folds(count: int, folds: int = LIST_FOLDS) -> np.ndarray:
    """The fold (ints from 0) of each of `count` pairs, in order; sizes differ by at most one."""
    split = np.array_split(np.arange(count), folds)
    return np.repeat(np.arange(folds), [len(fold) for fold in split])


def folds_by_kind(same: np.ndarray, folds: int = LIST_FOLDS) -> np.ndarray:
    """The fold (ints from 0) of each pair: each kind's pairs are divided in their order.

    same: P bools. There are fewer folds where there are fewer pairs of a kind.
    """
    count = min(folds, *(n for n in (int(same.sum()), int((~same).sum())) if n))
    made = np.empty(len(same), np.int64)
    for kind in (same, ~same):
        made[kind] = consecutive_folds(int(kind.sum()), count)
    return made


def folds_of_both_kinds(same: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, str]:
    """(folds in which an accuracy means something, why they are not the given ones or "").

    A fold of matched pairs alone, as a list that is sorted by kind gives, is evaluated with a
    threshold that was chosen on too many mismatched pairs; a single fold leaves nothing to choose
    it on. Such folds are made anew: the matched pairs are divided in their order, and so are the
    mismatched ones, into ten folds, or fewer where there are fewer pairs of a kind. A list of
    LFW's pairs that is sorted gets LFW's own folds back.

    same: P bools. folds: P ints. With fewer than two pairs of a kind the given folds come back.
    """
    same = np.asarray(same, bool)
    numbers, at = np.unique(folds, return_inverse=True)
    matched, sizes = np.bincount(at[same], minlength=len(numbers)), np.bincount(at)
    one_kind = (matched == 0) | (matched == sizes)
    count = min(LIST_FOLDS, int(same.sum()), int((~same).sum()))
    if count < 2 or (len(numbers) > 1 and not one_kind.any()):
        return folds, ""
    why = f"{one_kind.sum()} of {len(numbers)} folds held pairs of one kind only"
    if len(numbers) == 1:
        why = "the pairs were all in one fold"
    return folds_by_kind(same), (
        f"{why}: the folds were made anew, {count} with their share of the matched and of the "
        f"mismatched pairs"
    )
