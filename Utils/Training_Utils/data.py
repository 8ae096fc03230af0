"""Batches for training: decoded in worker processes, in an order that a seed and an epoch fix.

The order of an epoch in which every identity comes equally often, however many images it has.

The images of a run that could not be read, named in its log.
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from Utils.Datasets_Utils.images import ImageError, fit_image
from Utils.processes import Processes

# So many images in a row that can't be read are no accident.
TRIES = 100


@dataclass
class Batch:
    """images: uint8 N×H×W×3 RGB; labels: int64 N; unreadable: why images were left out.

    In place of an image that can't be read comes the next one of the data set, so that batches,
    and the shares that processes have of them, always have one size. N is 0 where `TRIES` images
    in a row can't be read.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]

    def pin_memory(self) -> "Batch":
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


class EpochSampler(Sampler[list[int]]):
    """Batches of one epoch's order, from any batch on.

    The order depends on (seed, epoch) alone, so that a resumed run goes through the rest of an
    epoch in the order in which it began. A last batch that is not full is left out.

    dataset: has a length, and may have its own `epoch_order(generator)`, as `TrainingSet` does: a
    permutation, in which every image comes once. balanced: instead, every identity comes equally
    often (see `balanced_order`); the dataset has `labels` then.
    rank, processes: gives the rank-th of so many equal shares of each batch. batch_size: of the
    whole batch, a multiple of processes.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        balanced: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.length = len(dataset)
        self.order = getattr(dataset, "epoch_order", self._any_order)
        if balanced:
            self.order = partial(balanced_order, dataset.labels)
        self.batch_size = batch_size
        self.seed = seed
        share = batch_size // processes
        self.share = slice(rank * share, (rank + 1) * share)
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        return self.length // self.batch_size - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(np.random.default_rng((self.seed, self.epoch)))
        for batch in range(self.first_batch, self.length // self.batch_size):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield whole[self.share].tolist()

    def _any_order(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.length)


class TrainingLoader:
    """Gives the batches of an epoch, from any batch on.

    dataset: yields (uint8 H×W×3 RGB, label). input_size: (height, width) that images are fitted to.
    pin_memory: page-locked batches, for transfers that do not wait. balanced, rank, processes: see
    `EpochSampler`.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        input_size: tuple[int, int],
        seed: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        balanced: bool = False,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self.batches_per_epoch = len(dataset) // batch_size
        self._sampler = EpochSampler(dataset, batch_size, seed, balanced, rank, processes)
        self._loader = DataLoader(
            FittedImages(dataset, input_size),
            batch_sampler=self._sampler,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # Its own generator: the loader seeds its workers from it, and must not draw from the
            # global one, whose state a resumed run restores.
            generator=torch.Generator().manual_seed(seed),
        )

    def epoch(self, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch; both count from 0."""
        self._sampler.epoch = epoch
        self._sampler.first_batch = first_batch
        return iter(self._loader)


@dataclass
class _Sample:
    """An image cut to size, None where none could be read, and why those before it could not."""

    image: np.ndarray | None
    label: int
    unreadable: list[str]


class FittedImages(Dataset):
    """Images cut to one size; for one that can't be read, the next one that can."""

    def __init__(self, dataset: Dataset, input_size: tuple[int, int]) -> None:
        self.dataset = dataset
        self.input_size = input_size

    def __getitem__(self, index: int) -> _Sample:
        unreadable = []
        for step in range(min(TRIES, len(self.dataset))):
            try:
                image, label = self.dataset[(index + step) % len(self.dataset)]
            except ImageError as error:
                unreadable.append(str(error))
                continue
            return _Sample(fit_image(image, self.input_size), label, unreadable)
        return _Sample(None, 0, unreadable)


def collate(samples: list[_Sample]) -> Batch:
    """Stack the images; none of them, where one is missing."""
    unreadable = [reason for sample in samples for reason in sample.unreadable]
    if any(sample.image is None for sample in samples):
        samples = []
    images = np.array([sample.image for sample in samples], np.uint8)
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    return Batch(torch.from_numpy(images), labels, unreadable)


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


class UnreadableImages:
    """Collects why images were left out, and logs each reason once."""

    def __init__(self, log: logging.Logger, processes: Processes) -> None:
        self._log = log
        self._processes = processes
        self._known: set[str] = set()
        self._new: list[str] = []

    def add(self, reasons: Iterable[str]) -> None:
        """Take in the reasons of a batch."""
        self._new += reasons

    def report(self) -> None:
        """Log what is new; called by all processes together, whose images are not the same."""
        for reason in (reason for new in self._processes.gather(self._new) for reason in new):
            if reason not in self._known:
                self._known.add(reason)
                self._log.info(f"image left out, the next one taken in its place: {reason}")
        self._new = []
