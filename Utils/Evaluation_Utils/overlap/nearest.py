"""The classes whose centres are nearest to a feature, and from which cosine they are the same
person; on arrays alone, about `ROWS` features at a time.

The threshold comes from the training set itself. An image of one of its people, compared with the
centres of all others, is what an image of somebody who is not in the set is: the nearest of them is
a false match. The angles of these false matches have nearly a normal distribution, whose quantile
at the FAR is the threshold. It is fitted to their quartiles, so that people who are in the set
under two names, which are the smallest of these angles, do not move it.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch

from Utils.devices import full_precision
from Utils.errors import DataError
from Utils.Evaluation_Utils.identification.exact_scores import unit_rows

ROWS = 1 << 16
_CELLS = 1 << 24  # cosines in memory at a time
_SAMPLE = 20_000  # training images that are compared with other classes


def class_sums(features: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """float32 C×D, the sums of the features of each class; read once, in their order.

    features: N×D, L2-normalised, may be memory-mapped; rows of zeros count for nothing.
    labels: int N, 0..C-1.
    """
    sums = np.zeros((num_classes, features.shape[1]), np.float32)
    for start in range(0, len(labels), ROWS):
        block, own = features[start : start + ROWS].astype(np.float32), labels[start : start + ROWS]
        order = np.argsort(own, kind="stable")
        present, starts = np.unique(own[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], starts, axis=0)
    return sums


def class_centres(sums: np.ndarray) -> np.ndarray:
    """float32 C×D, L2-normalised; a class without a readable image stays zero."""
    return unit_rows(sums).astype(np.float32)


def nearest_classes(
    features: np.ndarray,
    centres: np.ndarray,
    count: int,
    device: torch.device,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(int64 N×K classes, float32 N×K cosines), the nearest first; K is `count` or fewer.

    features, centres: N×D and C×D, L2-normalised. own: int N, a class that is passed over.
    """
    count = min(count, len(centres))
    classes = np.empty((len(features), count), np.int64)
    cosines = np.empty((len(features), count), np.float32)
    others = torch.from_numpy(centres).to(device)
    step = max(1, _CELLS // len(centres))
    with full_precision():
        for start in range(0, len(features), step):
            rows = slice(start, start + step)
            block = torch.from_numpy(features[rows].astype(np.float32)).to(device)
            found = block @ others.T
            if own is not None:
                passed = torch.from_numpy(own[rows]).to(device)
                found.scatter_(1, passed[:, None], -torch.inf)
            cosines[rows], classes[rows] = (values.cpu() for values in found.topk(count))
    return classes, cosines


@dataclass(frozen=True, eq=False)
class Scale:
    """What cosines to the centres of classes mean, by a sample of n training images.

    same: float32 n, of each to the centre that the others of its class make; NaN without others.
    other: float32 n, to the nearest centre of the other classes. threshold: a share `far` of images
    of people who are not in the set is expected to be nearer to some class. missed: the share of
    the training images that are further from their own; None where all are alone.
    """

    same: np.ndarray
    other: np.ndarray
    far: float
    threshold: float
    missed: float | None


def measure_scale(
    features: np.ndarray,
    labels: np.ndarray,
    sums: np.ndarray,
    far: float,
    device: torch.device,
    threshold: float | None = None,
) -> Scale:
    """The scale of a training set. sums: of `class_sums`. threshold: instead of that of far, which
    is then the share that the threshold gives. Raises DataError for fewer than two classes with
    images that can be read."""
    rows = np.unique(np.linspace(0, len(labels) - 1, _SAMPLE).astype(np.int64))
    block, own = features[rows].astype(np.float32), labels[rows]
    there = block.any(axis=1)
    block, own = block[there], own[there]
    if len(np.unique(own)) < 2:
        raise DataError("the training set has fewer than two identities with readable images.")
    others = sums[own] - block
    lengths = np.linalg.norm(others, axis=1)
    alone = lengths < 1e-3  # fp16 features leave a rest
    same = np.einsum("nd,nd->n", block, others) / np.where(alone, np.nan, lengths)
    other = nearest_classes(block, class_centres(sums), 1, device, own)[1][:, 0]
    near, middle, far_off = np.quantile(np.arccos(other.clip(-1, 1)), (0.25, 0.5, 0.75)).tolist()
    fitted = NormalDist(middle, max(far_off - near, 1e-6) / (2 * NormalDist().inv_cdf(0.75)))
    if threshold is None:
        threshold = math.cos(max(0.0, fitted.inv_cdf(far)))
    else:
        far = fitted.cdf(math.acos(threshold))
    missed = None if alone.all() else float(np.mean(same[~alone] < threshold))
    return Scale(same, other, float(far), float(threshold), missed)
