"""How far each image lies from the centre of its class, when some of the labels are wrong.

A class's centre is the geometric median of its unit features, scaled to length 1: the point with
the least sum of distances, which stays with the majority as long as wrong labels are fewer than
half, where the mean moves with every one of them. It is found by Weiszfeld's iteration (1937):
a mean with weights 1/distance, again and again.

Each image is measured against the centre that the others make, with their weights as found; else
one of three images would be near its centre for having made a third of it.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

ITERATIONS = 20
CLOSEST = 1e-3  # distances below count as this, so that no weight is infinite
ROWS = 1 << 16  # features in memory together


def angles_to_centres(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The angle, in degrees 0..180, of each image to the centre of the others of its class.

    features: N×D of length 1, may be memory-mapped: some `ROWS` of them, or one class, are read at
    a time; a row of zeros stands for an image that there is not. labels: int N, 0..C-1.
    Returns float32 N; nan for the only image of a class and for those that there are not.
    """
    angles = np.full(len(labels), np.nan, np.float32)
    for rows, starts in class_blocks(labels):
        block = read_rows(features, rows)
        for start, end in pairwise((*starts.tolist(), len(rows))):
            there = start + np.flatnonzero(block[start:end].any(1))
            if len(there) > 1:
                angles[rows[there]] = _angles_in_class(block[there].astype(np.float64))
    return angles


def angles_to_weights(
    features: np.ndarray, labels: np.ndarray, class_weights: np.ndarray
) -> np.ndarray:
    """The angle of each image to a head's weight of its class; else as `angles_to_centres`.

    class_weights: C×D, of any length.
    """
    angles = np.empty(len(labels), np.float32)
    for rows, _ in class_blocks(labels):
        block = read_rows(features, rows)
        found = _angles(block, class_weights[labels[rows]])
        angles[rows] = np.where(block.any(1), found, np.nan)
    return angles


def typical_images(angles: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The image of each class that is nearest to its centre; int64 C."""
    order = np.lexsort((np.nan_to_num(angles, nan=np.inf), labels))
    return order[np.searchsorted(labels[order], np.arange(labels.max() + 1))]


def rows_of_zeros(features: np.ndarray) -> np.ndarray:
    """The rows, int64, that hold nothing else; some `ROWS` of them are read at a time."""
    starts = range(0, len(features), ROWS)
    found = [start + np.flatnonzero(~features[start : start + ROWS].any(1)) for start in starts]
    return np.concatenate(found)


def class_blocks(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, class by class; where each class begins among them), about `ROWS` at a time."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    first = 0
    while first < len(starts) - 1:
        last = np.searchsorted(starts, starts[first] + ROWS, side="right") - 1
        last = max(int(last), first + 1)
        yield order[starts[first] : starts[last]], starts[first:last] - starts[first]
        first = last


def read_rows(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of features as float32, in an order that a disk likes."""
    order = np.argsort(rows)
    block = np.empty((len(rows), features.shape[1]), np.float32)
    block[order] = features[rows[order]]
    return block


def _angles_in_class(x: np.ndarray) -> np.ndarray:
    """Degrees between each of n×D features, in float64, and the centre of the others."""
    squares = np.einsum("nd,nd->n", x, x)
    weights = np.ones(len(x))
    for _ in range(ITERATIONS):
        centre = weights @ x / weights.sum()
        distances = squares - 2 * (x @ centre) + centre @ centre  # squared
        weights = 1 / np.sqrt(np.maximum(distances, CLOSEST**2))
    # The others of image i sum up to `total` - w_i·x_i; its products with x_i and itself:
    total = weights @ x
    along = x @ total
    lengths = total @ total - 2 * weights * along + weights**2 * squares
    cosines = (along - weights * squares) / np.sqrt(np.maximum(lengths * squares, 1e-24))
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


def _angles(block: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """Degrees between rows."""
    lengths = np.linalg.norm(directions, axis=1) * np.linalg.norm(block, axis=1)
    cosines = np.einsum("nd,nd->n", block, directions) / np.maximum(lengths, 1e-12)
    return np.degrees(np.arccos(cosines.clip(-1, 1)))
