"""The order of an epoch in which every identity comes equally often, however many images it has."""

import numpy as np


def balanced_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """N places in a set of N images with C identities: each identity N/C times, but for rounding.

    labels: int N, 0..C-1, each at least once. Of an identity, each image comes equally often, but
    for one: none is shown a third time before all were shown twice. Which images and identities get
    the odd turns, and the order, the generator decides. Takes a few arrays of N numbers.
    """
    count = len(labels)
    images = np.bincount(labels)
    turns = np.full(len(images), count // len(images))
    turns[generator.permutation(len(images))[: count % len(images)]] += 1
    rounds, rest = np.divmod(turns, images)
    order = np.concatenate(
        (
            np.repeat(np.arange(count), rounds[labels]),
            _some_of_each(labels, images, rest, generator),
        )
    )
    generator.shuffle(order)
    return order


def _some_of_each(
    labels: np.ndarray, images: np.ndarray, wanted: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Places of `wanted` different images of each identity, at random."""
    mixed = generator.permutation(len(labels))
    by_identity = mixed[np.argsort(labels[mixed], kind="stable")]
    firsts = np.cumsum(images) - images
    numbers = np.arange(len(labels)) - firsts[labels[by_identity]]  # within the identity
    return by_identity[numbers < wanted[labels[by_identity]]]
