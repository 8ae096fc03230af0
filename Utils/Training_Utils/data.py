"""The training set, and its batches in an order fixed by the seed and the epoch.

`open_training_data` opens the set. From the order to the batch: `EpochSampler` gives the indices of
each batch, `FittedImages` decodes an image and resizes it to the network's input, `collate` stacks
them, and `TrainingLoader` runs these in worker processes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from Config import Config, training_paths
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.alignment.prepared import align_training, alignment_of
from Utils.Datasets_Utils.appearance import look
from Utils.Datasets_Utils.demo.sets import ensure_demo_sets
from Utils.Datasets_Utils.images import ImageError, fit_image, noting_flaws
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import DataError, RunError
from Utils.processes import Processes
from Utils.workers import SteadyLoader, shared

# This many unreadable images in a row are no accident: the disk or the list is wrong.
TRIES = 100


def open_training_data(config: Config) -> TrainingSet:
    """The training set of the settings; the demo's is drawn first where it is missing.

    Raises DataError as `open_training_set` does and if fewer than two identities have `min_images`
    images, RunError where the set is smaller than one batch.
    """
    if config.train_dataset == "Demo":
        demo = ensure_demo_sets(Path(config.demo_dataset_path))
        path, file_list = demo.train_images, demo.train_list
    else:
        path, file_list = training_paths(config)
    data = open_training_set(path, file_list or None, config.identity_folder, config.list_encoding)
    if how := alignment_of(config, config.input_size):
        data = align_training(data, Path(path), how)
    data.channel_order = config.train_channel_order
    data = data.without_small(config.min_images)
    if data.num_classes == 1:
        raise DataError(
            "; ".join(
                (
                    f"{data.source} has images of one identity, and training needs two or more: "
                    f"expected a folder of images for each person, <person>/<image>, or an image "
                    f"list with a label for each",
                    *data.notes,
                )
            )
            + "."
        )
    if len(data) < config.batch_size:
        raise RunError(
            f"batch_size is {config.batch_size}, but the training set has only {len(data)} images; "
            f"set a batch_size of at most that."
        )
    sizes, colours = look(ImagesOnly(data), config.input_size)
    if colours:
        other = "BGR" if config.train_channel_order == "RGB" else "RGB"
        colours += f"; if they are, train with --train_channel_order {other}"
    data.notes += tuple(f"warning: {text}" for text in (sizes, colours) if text)
    return data


class ImagesOnly(Sequence[np.ndarray]):
    """A training set's images."""

    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.data[index][0]


def fingerprint(data: TrainingSet) -> dict[str, Any]:
    """What distinguishes training sets, as plain values: the counts and a hash of the labels."""
    labels = np.ascontiguousarray(data.labels, np.int64)
    return {
        "images": len(data),
        "identities": data.num_classes,
        "labels": hashlib.sha256(labels).hexdigest(),
    }


def describe_training_data(config: Config, data: TrainingSet) -> list[str]:
    """Lines for the log about the training set, how it was read, and what is left out."""
    text = f"{config.train_dataset}: {len(data):,} images, {data.num_classes:,} identities"
    identities, images = data.left_out
    if identities:
        text += (
            f"; left out: {identities:,} identities with fewer than {config.min_images} images, "
            f"{images:,} images together"
        )
    return [text, *(f"{config.train_dataset}: {note}" for note in data.notes)]


@dataclass
class Batch:
    """images: uint8 N×H×W×3 RGB; labels: int64 N; unreadable: why images were left out; flawed:
    what is wrong with images that were read all the same. known: float16 N×2×T, a teacher's
    embeddings of the images and of their mirror images; N×2×0 without a table of these.

    An image that cannot be read is replaced by the next one of the training set, so that all
    batches, and each process's share of them, have the same size. N is 0 where `TRIES` images in
    a row cannot be read.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]
    flawed: list[str] = field(default_factory=list)
    known: Tensor | None = None

    def __post_init__(self) -> None:
        if self.known is None:
            self.known = torch.empty(len(self.labels), 2, 0, dtype=torch.float16)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; the DataLoader calls this."""
        pinned = self.images.pin_memory(), self.labels.pin_memory()
        return Batch(*pinned, self.unreadable, self.flawed, self.known.pin_memory())


class EpochSampler(Sampler[list[int]]):
    """The indices of each batch of an epoch, from any batch on.

    The order depends only on (seed, epoch), so a resumed run sees the rest of an epoch in the
    order in which the epoch began. A last batch that is not full is dropped.

    dataset: has a length; it may have `epoch_order(generator)`, as `TrainingSet` does, which
    returns a permutation of its indices. batch_size: of all processes together, a multiple of
    world_size. balanced: every identity comes equally often, see `balanced_order`; the dataset
    then has `labels`. rank, world_size: give process `rank` its equal share of each batch.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        balanced: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.length = len(dataset)
        self.order = getattr(dataset, "epoch_order", self._permutation)
        if balanced:
            self.order = partial(balanced_order, dataset.labels)
        self.batch_size = batch_size
        self.seed = seed
        share = batch_size // world_size
        self.share = slice(rank * share, (rank + 1) * share)
        self.epoch = 0
        self.start = 0  # the first batch to give

    @property
    def batches_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return self.length // self.batch_size

    def __len__(self) -> int:
        return self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order(np.random.default_rng((self.seed, self.epoch)))
        for batch in range(self.start, self.batches_per_epoch):
            indices = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield indices[self.share].tolist()

    def _permutation(self, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(self.length)


def balanced_order(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices of an epoch in which every identity comes equally often.

    labels: int N, 0..C-1, each at least once. Returns N indices: N/C of each identity, rounded up
    or down. Within an identity all images come equally often, to within one: none is repeated
    before all others had their turn. The generator decides which images and identities come once
    more than others, and the order. Needs memory for a few arrays of N integers.
    """
    count = len(labels)
    images = np.bincount(labels)  # of each identity
    wanted = np.full(len(images), count // len(images))
    wanted[generator.permutation(len(images))[: count % len(images)]] += 1
    rounds, rest = np.divmod(wanted, images)
    whole_rounds = np.repeat(np.arange(count), rounds[labels])
    order = np.concatenate((whole_rounds, _random_images(labels, images, rest, generator)))
    generator.shuffle(order)
    return order


def _random_images(
    labels: np.ndarray, images: np.ndarray, wanted: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Indices of `wanted[c]` different images of each identity c, of the `images[c]` that it has,
    at random."""
    shuffled = generator.permutation(len(labels))
    by_identity = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.cumsum(images) - images  # where each identity begins in by_identity
    position = np.arange(len(labels)) - starts[labels[by_identity]]  # within the identity
    return by_identity[position < wanted[labels[by_identity]]]


# A resized image, None if none could be read; its label; why others could not be read; its flaws;
# a teacher's embeddings of it.
Sample = tuple[np.ndarray | None, int, list[str], list[str], np.ndarray]

_NOT_KNOWN = np.empty((2, 0), np.float16)


class FittedImages(Dataset):
    """A training set's images, resized to the network's input; an image that cannot be read is
    replaced by the next one that can.

    dataset: gives (uint8 H×W×3 RGB, label) for an index. input_size: (height, width).
    known: gives float16 2×T for an index, a teacher's embeddings; zeros for an image that could not
    be read then, which counts as one that can't be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        input_size: tuple[int, int],
        known: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.dataset = dataset
        self.input_size = input_size
        self.known = known

    def place(self, index: int) -> str:
        """The file of an image and the place in it, for messages."""
        return self.dataset.images.place(self.dataset.row(index))

    def __getitem__(self, index: int) -> Sample:
        unreadable = []
        for step in range(min(TRIES, len(self.dataset))):
            row = (index + step) % len(self.dataset)
            known = _NOT_KNOWN if self.known is None else self.known[row]
            if known.size and not known.any():
                unreadable.append(
                    f"{self.dataset.name(row)} could not be read when the teacher's embeddings "
                    f"were computed; to compute them again, delete the folder that the log names"
                )
                continue
            try:
                with noting_flaws() as flaws:
                    image, label = self.dataset[row]
            except ImageError as error:
                unreadable.append(str(error))
                continue
            return fit_image(image, self.input_size), label, unreadable, flaws, known
        return None, 0, unreadable, [], _NOT_KNOWN


def collate(samples: list[Sample]) -> Batch:
    """Stack the images of a batch; an empty batch if one of them is missing."""
    images, labels, unreadable, flawed, known = zip(*samples, strict=True)
    if any(image is None for image in images):
        images, labels, known = (), (), ()
    return Batch(
        images=shared(torch.from_numpy(np.array(images, np.uint8))),
        labels=shared(torch.tensor(labels, dtype=torch.int64)),
        unreadable=[*chain(*unreadable)],
        flawed=[*chain(*flawed)],
        known=shared(torch.from_numpy(np.array(known, np.float16))),
    )


class TrainingLoader:
    """Loads the batches of an epoch, from any batch on.

    dataset: gives (uint8 H×W×3 RGB, label) for an index. sampler: the indices of each batch.
    input_size: (height, width) of the images in a batch. num_workers: worker processes; 0 loads
    in this one. pin_memory: page-locked batches, which are copied to a GPU without waiting. known:
    see `FittedImages`.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: EpochSampler,
        input_size: tuple[int, int],
        num_workers: int = 0,
        pin_memory: bool = False,
        known: Sequence[np.ndarray] | None = None,
    ) -> None:
        self.batches_per_epoch = sampler.batches_per_epoch
        self._sampler = sampler
        self._loader = SteadyLoader(
            FittedImages(dataset, input_size, known),
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            # A generator of its own: the loader draws its workers' seeds from it, and must not
            # draw from the global one, whose state a resumed run restores.
            generator=torch.Generator().manual_seed(sampler.seed),
        )

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on; both count from 0.

        Raises RunError if `TRIES` images in a row can't be read.
        """
        self._sampler.epoch = epoch
        self._sampler.start = start
        for batch in self._loader:
            if len(batch.labels) == 0:
                raise RunError(
                    f"too many images in a row can't be read, so they can't be replaced; the "
                    f"last: {batch.unreadable[-1]}"
                )
            yield batch


def build_loader(
    config: Config,
    dataset: Dataset,
    device: torch.device,
    processes: Processes,
    known: Sequence[np.ndarray] | None = None,
) -> TrainingLoader:
    """The loader of a run: this process's share of each batch of `config.batch_size`.

    known: see `FittedImages`.
    """
    sampler = EpochSampler(
        dataset=dataset,
        batch_size=config.batch_size,
        seed=config.seed,
        balanced=config.sampler == "balanced",
        rank=processes.rank,
        world_size=processes.world_size,
    )
    pin_memory = device.type == "cuda"
    workers = config.num_workers
    return TrainingLoader(dataset, sampler, config.input_size, workers, pin_memory, known)
