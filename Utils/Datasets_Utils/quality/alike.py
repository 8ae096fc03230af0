"""Pictures that are nearly the same: saved again, resized, brightened, cropped a pixel further.

Two difference hashes of 64 bits, along rows and along columns: whether each cell of a small copy of
the picture is brighter than the next one. Pictures whose hashes differ in few bits are compared
themselves, as small copies shifted against each other.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache

import cv2
import numpy as np

from Utils.Datasets_Utils.images import ImageError

# Bits of 128 that may differ, and the correlation that two pictures must have. Of 5.7 million pairs
# of LFW's photographs, three are within these bits, and one has this correlation: a photograph that
# LFW has under two names.
RADIUS, LEAST = 10, 0.96
_CELLS = 8
_PARTS = 6  # of a hash; pictures that differ in fewer bits have one of them in common
_SIDE, _SHIFT = 56, 2  # cells of the copies that are compared, and by how many they are shifted
_BITS = np.arange(128)
_KEPT = 4096  # decoded copies


def picture_hash(image: np.ndarray) -> tuple[int, int]:
    """The hashes, as two int64, of an image, uint8 H×W×3 RGB of any size."""
    flat = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    rows = cv2.resize(flat, (_CELLS + 1, _CELLS), interpolation=cv2.INTER_AREA)
    columns = cv2.resize(flat, (_CELLS, _CELLS + 1), interpolation=cv2.INTER_AREA)
    bits = np.stack((rows[:, 1:] > rows[:, :-1], columns[1:] > columns[:-1]))
    first, second = np.packbits(bits).view(np.int64).tolist()
    return first, second


def near_hashes(hashes: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:
    """int64 P×2: the pairs of rows whose hashes differ in RADIUS bits or fewer, lower row first.

    hashes: int64 N×2. Rows of equal hashes are paired with the first of them alone. second: bools
    N; pairs are then of a row that has it and one that has not, and rows of equal hashes that agree
    in it count as one. Of pairs that differ in _PARTS bits or more, those are found that have one
    part of their hashes, every sixth bit, in common; so the time grows far less than with N².
    """
    kind = np.zeros(len(hashes), np.int64) if second is None else second.astype(np.int64)
    keys = np.column_stack((hashes, kind))
    _, first, group = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    first = np.sort(first)
    words, kinds = hashes[first].view(np.uint64), kind[first]
    found = [np.empty((0, 2), np.int64)]
    for part in range(_PARTS):
        chosen = np.packbits(part == _BITS % _PARTS).view(np.uint64)
        for left, right in _equal(words & chosen):
            differing = np.bitwise_count(words[left] ^ words[right]).sum(axis=1)
            near = differing <= RADIUS
            near &= (second is None) | (kinds[left] != kinds[right])
            found.append(np.sort(first[np.column_stack((left[near], right[near]))], axis=1))
    if second is None:
        leader = np.full(len(first), len(hashes))
        np.minimum.at(leader, group.ravel(), np.arange(len(hashes)))
        copies = np.flatnonzero(leader[group.ravel()] != np.arange(len(hashes)))
        found.append(np.column_stack((leader[group.ravel()[copies]], copies)))
    return np.unique(np.concatenate(found), axis=0)


def _equal(keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of rows of equal keys, N×2, in blocks of up to N."""
    order = np.lexsort(keys.T)
    ordered, at = keys[order], np.arange(len(keys))
    for step in range(1, len(keys)):
        at = at[at + step < len(keys)]
        at = at[(ordered[at] == ordered[at + step]).all(axis=1)]
        if not at.size:
            return
        yield order[at], order[at + step]


def likeness(left: np.ndarray, right: np.ndarray) -> float:
    """The largest correlation, -1 to 1, of two small copies that are shifted against each other.

    left, right: of `small_copy`.
    """
    inner = right[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT]
    if inner.std() < 1 or left.std() < 1:
        return 0.0  # of one colour, like any other
    return float(cv2.matchTemplate(left, inner, cv2.TM_CCOEFF_NORMED).max())


def small_copy(image: np.ndarray) -> np.ndarray:
    """An image, uint8 H×W×3 RGB, as float32 of the side _SIDE."""
    flat = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    how = cv2.INTER_AREA if min(flat.shape) >= _SIDE else cv2.INTER_LINEAR
    return cv2.resize(flat, (_SIDE, _SIDE), interpolation=how).astype(np.float32)


def really_alike(pairs: np.ndarray, image: Callable[[int], np.ndarray]) -> np.ndarray:
    """Those of P×2 pairs whose pictures have a likeness of LEAST or more; each is read again.

    image: the picture of a row. One that can't be read is like no other.
    """

    @lru_cache(_KEPT)
    def copy(row: int) -> np.ndarray:
        try:
            return small_copy(image(row))
        except ImageError:
            return np.zeros((_SIDE, _SIDE), np.float32)

    kept = [likeness(copy(left), copy(right)) >= LEAST for left, right in pairs.tolist()]
    return pairs[np.array(kept, bool)]
