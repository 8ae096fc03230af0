"""Templates of IJB: one vector for the images of a person in a template, by named conventions.

As in insightface's arcface_torch/eval_ijbc.py: an image's feature is f(image) + f(mirror image), of
its own length or divided by it, and multiplied by the detector's score or not. Features of one
media (a clip, or a photo) are averaged, the averages of a template are added, and the sum is
L2-normalised; zeros stay zeros.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import embedding_bag

from Utils.Evaluation_Utils.ijb.lists import Lists

_ROWS = 1 << 12  # images pooled at once


@dataclass(frozen=True)
class Convention:
    """keep_norm: whether an image's feature keeps its length. detector: whether it is multiplied by
    the detector's score. flip: whether the mirror image's feature is added."""

    keep_norm: bool
    detector: bool
    flip: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The projects that use it."""
        return tuple(name for name, convention in NAMED.items() if convention == self)

    def describe(self) -> str:
        """In words, as `norm kept, detector's score, image + mirror image (insightface)`."""
        words = [
            "norm kept" if self.keep_norm else "norm divided out",
            "detector's score" if self.detector else "no detector's score",
            "image + mirror image" if self.flip else "image alone",
        ]
        return ", ".join(words) + (f" ({', '.join(self.names)})" if self.names else "")


# What public evaluators use. Of CVLface's three rows it is the one that its tables quote.
NAMED = {
    "insightface": Convention(keep_norm=True, detector=True, flip=True),
    "adaface": Convention(keep_norm=True, detector=False, flip=True),
    "cvlface": Convention(keep_norm=False, detector=True, flip=True),
    "facexzoo": Convention(keep_norm=False, detector=True, flip=False),
}
ALL = tuple(
    Convention(keep_norm, detector, flip)
    for keep_norm in (True, False)
    for detector in (True, False)
    for flip in (True, False)
)


def make_templates(features: np.ndarray, lists: Lists, convention: Convention) -> np.ndarray:
    """float64 T×D templates, L2-normalised, in the order of `lists.template_ids`; features as for
    `pool_images`."""
    templates = pool_images(features, lists, convention)
    lengths = np.linalg.norm(templates, axis=1, keepdims=True)
    return np.divide(templates, lengths, out=templates, where=lengths > 0)


def pool_images(features: np.ndarray, lists: Lists, convention: Convention) -> np.ndarray:
    """float64 T×D templates before they are normalised.

    features: N×2D, of each image and of its mirror image, one after the other, not normalised.

    Every step before the last is linear, so a template is one weighted sum of its images' features:
    the detector's score, over the number of the template's images of that media.
    """
    width = features.shape[1] // 2
    order = np.lexsort((lists.media, lists.template))
    template, media = lists.template[order], lists.media[order]
    new = np.append(True, (np.diff(template) != 0) | (np.diff(media) != 0))  # media begin
    group = np.cumsum(new) - 1
    weights = 1 / np.bincount(group)[group]
    if convention.detector:
        weights *= lists.detector[order]
    templates = np.zeros((len(lists.template_ids), width))
    for start in range(0, len(order), _ROWS):
        part = slice(start, start + _ROWS)
        rows = features[order[part]]
        values = rows[:, :width] + rows[:, width:] if convention.flip else rows[:, :width]
        values = values.astype(np.float64)
        factors = weights[part]
        if not convention.keep_norm:
            lengths = np.linalg.norm(values, axis=1)
            factors = factors / np.where(lengths, lengths, 1)
        ids, starts = np.unique(template[part], return_index=True)
        sums = embedding_bag(
            torch.arange(len(values)),
            torch.from_numpy(values),
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(factors),
        )
        templates[ids] += sums.numpy()  # a template may go on in the next part
    return templates
