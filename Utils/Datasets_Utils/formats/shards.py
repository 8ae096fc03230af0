"""Training sets in tar shards, as the webdataset library lays them out.

`00000.tar`, `00001.tar`, ... have two consecutive files for each sample: `<key>.jpg`, the image,
and `<key>.cls`, its class number as text.

The shards are indexed once, and an image is then read at its offset. So an epoch has a known number
of batches, can be resumed at any batch, and has an order that depends only on the seed, not on the
number of workers; a stream that is divided among workers has none of these properties. Shards stay
fast: an epoch reads one shard after the other, in random order, and shuffles images within a buffer
of consecutive ones; the operating system is told to read each block of a shard ahead. So the disk
does long sequential reads, and the buffer is the system's own cache, which all workers share.
"""

from __future__ import annotations

import os
import tarfile
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.formats.archive import tar_members
from Utils.Datasets_Utils.formats.class_tree import litter_in
from Utils.Datasets_Utils.formats.storage import (
    Arrays,
    MappedFile,
    PathTable,
    are_paths,
    cached_arrays,
    store_arrays,
)
from Utils.Datasets_Utils.images import IMAGE_SUFFIXES, is_image_name
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.errors import DataError

BUFFER = 16384  # images that are shuffled together
INDEX = "shards_index.npz"
LABEL_SUFFIX = ".cls"

_BLOCK = 1 << 24  # bytes read ahead together
_BLOCKS_KEPT = 64
_MAPS_KEPT = 64  # shards mapped at the same time: each map needs a file descriptor
_PROBED = 64  # members of a single tar that tell whether it is a shard or a folder tree
_IMAGE = np.dtype([("shard", "i4"), ("offset", "i8"), ("size", "i4"), ("label", "i4")])


class ShardImages(ImageStore):
    """The images of a set of shards, in the order of the shards and of their members.

    files: the tar files. names: `<shard>/<member>`. images: N of _IMAGE. buffer: images that are
    shuffled together.
    """

    def __init__(self, source: Path, shards: list[Path], index: Arrays, buffer: int) -> None:
        self.source = source
        self.files = [MappedFile(shard) for shard in shards]
        self.names = PathTable.from_arrays(index["names"], index["name_ends"])
        self.images = index["images"]
        self.buffer = buffer
        self._read_ahead: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._mapped: OrderedDict[int, None] = OrderedDict()  # the shard used last at the end

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        shard, offset, _, _ = self.images[row].tolist()
        return f"{self.files[shard].path}, byte {offset} ({self.names[row]})"

    def encoded(self, row: int) -> np.ndarray:
        shard, offset, size, _ = self.images[row].tolist()
        self._announce(shard, offset // _BLOCK)
        self._keep_mapped(shard)
        return self.files[shard].read(offset, size)

    def epoch_order(self, rows: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Shards in random order; within them, buffer by buffer, images in random order.

        A set that fits in one buffer is shuffled as any other set: with the same seed, its order is
        that of a list of the same images.
        """
        if len(rows) <= self.buffer:
            return generator.permutation(len(rows))
        turn = generator.permutation(len(self.files))  # of each shard
        order = np.lexsort((rows, turn[self.images["shard"][rows]]))
        for start in range(0, len(order), self.buffer):
            generator.shuffle(order[start : start + self.buffer])
        return order

    def _keep_mapped(self, shard: int) -> None:
        """Count this shard's map as used, and close the least recently used one of too many."""
        self._mapped[shard] = None
        self._mapped.move_to_end(shard)
        if len(self._mapped) > _MAPS_KEPT:
            self.files[self._mapped.popitem(last=False)[0]].release()

    def _announce(self, shard: int, block: int) -> None:
        """Tell the operating system, once, to read a block of a shard ahead."""
        if (shard, block) in self._read_ahead or not hasattr(os, "posix_fadvise"):
            return
        self._read_ahead[shard, block] = None
        if len(self._read_ahead) > _BLOCKS_KEPT:
            self._read_ahead.popitem(last=False)
        path = self.files[shard].path
        with suppress(OSError), open(path, "rb") as f:  # what matters is said when it is read
            os.posix_fadvise(f.fileno(), block * _BLOCK, _BLOCK, os.POSIX_FADV_WILLNEED)


def is_shards(path: Path) -> bool:
    """Whether a path is a folder of shards, or a single shard."""
    return bool(find_tars(path))


def find_tars(path: Path) -> list[Path]:
    """The tar files of a folder of shards, or a single one; empty if there are none."""
    if path.is_dir():
        # A name that begins with a dot is a shard that is still being written.
        shards = sorted(p for p in path.glob("*.tar") if not p.name.startswith("."))
        # Beside folders or images may be the archive from which they were unpacked.
        others = any(
            p.is_dir() or is_image_name(p.name) for p in path.iterdir() if not litter_in(p.name)
        )
        tree = shards and others and not _has_labels(shards[0])
        return [] if tree else shards
    return [path] if path.suffix == ".tar" and path.is_file() and _has_labels(path) else []


def open_shards(path: Path, buffer: int = BUFFER) -> Labelled:
    """The images of a folder of shards, or of one shard, and their labels (int64).

    The index is read from the file beside the shards, or made by one scan and stored. Raises
    DataError, naming shard, byte and member, for an image without a label, a label that is not a
    number, or a truncated shard.
    """
    shards = find_tars(path)
    index = cached_arrays(
        index_path(path), shards, partial(_index, shards), partial(_is_index, shards)
    )
    labels = index["images"]["label"].astype(np.int64)
    if len(labels) == 0:
        raise DataError(f"{path}: no image with its {LABEL_SUFFIX} is in the {len(shards)} shards.")
    return Labelled(ShardImages(path, shards, index, buffer), labels)


def write_shard_index(folder: Path) -> None:
    """Index the shards of a folder, and write the index beside them."""
    shards = find_tars(folder)
    store_arrays(index_path(folder), shards, _index(shards))


def index_path(path: Path) -> Path:
    """The file for the index of a folder of shards, or of one shard."""
    return path / INDEX if path.is_dir() else path.with_suffix(".index.npz")


def _is_index(shards: list[Path], kept: Arrays) -> bool:
    images = kept["images"]
    known = images.dtype == _IMAGE and images.ndim == 1
    in_shards = known and ((images["shard"] >= 0) & (images["shard"] < len(shards))).all()
    return in_shards and are_paths(len(images), kept["names"], kept["name_ends"])


def _index(shards: list[Path]) -> Arrays:
    names, images = [], [np.empty(0, _IMAGE)]
    for number, shard in enumerate(tqdm(shards, desc="Indexing shards", unit="shard", delay=1)):
        samples = _samples(shard)
        names += [f"{shard.name}/{member.name}" for member, _ in samples]
        found = [(number, member.offset_data, member.size, label) for member, label in samples]
        images.append(np.array(found, _IMAGE))
    text, ends = PathTable(names).arrays()
    return {"images": np.concatenate(images), "names": text, "name_ends": ends}


def _samples(shard: Path) -> list[tuple[tarfile.TarInfo, int]]:
    """(member, label) of each image in a shard, in its order."""
    file, images, labels = MappedFile(shard), {}, {}
    for member in tar_members(shard):
        if litter_in(member.name):
            continue
        key, suffix = _split_key(member.name)
        if suffix == LABEL_SUFFIX:
            text = file.read(member.offset_data, member.size).tobytes().strip()
            if not (text.isdigit() and len(text) < 10):
                raise DataError(
                    f"{shard}, byte {member.offset_data}: {member.name} holds {text[:20]!r}; "
                    f"expected a class number."
                )
            labels[key] = int(text)
        elif suffix in IMAGE_SUFFIXES:  # not `.mask.png`, which is no photo
            if key in images:
                raise DataError(
                    f"{shard}, byte {member.offset}: {member.name} is a second image of its key, "
                    f"beside {images[key].name}; expected one image for each key."
                )
            images[key] = member
    missing = [member for key, member in images.items() if key not in labels]
    if missing:
        raise DataError(
            f"{shard}, byte {missing[0].offset}: {missing[0].name} has no {LABEL_SUFFIX} with its "
            f"class; {len(missing)} of {len(images)} images have none."
        )
    return [(member, labels[key]) for key, member in images.items()]


def _split_key(name: str) -> tuple[str, str]:
    """webdataset's rule: the suffix begins at the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    key, dot, suffix = file.partition(".")
    return folder + slash + key, dot + suffix.lower()


def _has_labels(path: Path) -> bool:
    first = islice(tar_members(path), _PROBED)
    return any(_split_key(member.name)[1] == LABEL_SUFFIX for member in first)
