"""Convert a data set to another format, image bytes copied as they are.

    python -m Utils.Datasets_Utils.convert_dataset SOURCE TARGET [--file_list LIST]

SOURCE is anything that training or judging opens by its path. TARGET says the format by its name:

    faces_emore/train.rec       a record file, with .idx, .lst and property
    shards/%06d.tar             tar shards, with an index
    lfw.bin                     a verification set; SOURCE's pairs file is --file_list
    images                      a folder for each class

A .bin can be converted to the other three; its pairs then go to pairs.txt beside the images, and a
class is those images that matched pairs say to be one person. An interrupted conversion goes on
where it stopped when the same command is given again.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.formats import PAIRS_NAME
from Utils.Datasets_Utils.formats.bin_set import is_bin, write_bin
from Utils.Datasets_Utils.formats.writers import (
    SHARD_SIZE,
    Writer,
    check_target,
    choose_writer,
    discard_parts,
    siblings,
)
from Utils.Datasets_Utils.pairs import consecutive_folds
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError, RunError, run_script
from Utils.files import atomic_path, make_folder


@dataclass(frozen=True)
class Source:
    """N images to convert. labels: int N. encoded, name: of an image by its number."""

    labels: np.ndarray
    encoded: Callable[[int], Any]
    name: Callable[[int], str]


def convert(
    source: str | Path,
    target: str | Path,
    file_list: str | Path | None = None,
    shuffle: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> str:
    """Convert a data set, and return a line that says what was written.

    source, target, file_list: as above. shuffle: seed of a random order; None keeps the order.
    shard_size: images a shard.

    Raises RunError for a target that exists or can't be written, DataError for data that does not
    fit the target's format, and what opening the source raises.
    """
    source, target = Path(source), Path(target)
    make_folder(target.parent)
    if target.suffix == ".bin":
        return _convert_to_bin(source, target, file_list)
    verification = open_verification_set(source, file_list) if is_bin(source) else None
    images = _bin_source(verification) if verification else _training_source(source, file_list)
    if shuffle is not None and verification:
        raise RunError("a verification set can't be shuffled: its pairs are in an order.")
    if shuffle is not None:
        images = _shuffled(images, shuffle)
    check_target(target, len(images.labels), shard_size)
    marker = target.with_name(f".{target.name.replace('%', '_')}.converting")
    made = [target, *([target.parent / PAIRS_NAME] if verification else [])]
    if target.suffix == ".rec":
        made += siblings(target)
    _begin(made, marker, _fingerprint(source, images, shard_size))
    writer = choose_writer(target, images.labels, shard_size)
    _copy(images, writer)
    if verification:
        _write_pairs(writer, verification, images)
    writer.finish()
    marker.unlink()
    return f"{target}: {len(images.labels):,} images, {images.labels.max() + 1:,} classes"


def _training_source(source: Path, file_list: str | Path | None) -> Source:
    data = open_training_set(source, file_list)
    return Source(data.labels, data.encoded, data.name)


def _bin_source(data: VerificationSet) -> Source:
    """The images of a .bin, with a label for each person that its matched pairs tell apart."""
    count, matched = len(data.images), data.same
    ones = np.ones(int(matched.sum()))
    graph = coo_array((ones, (data.left[matched], data.right[matched])), (count, count))
    _, labels = connected_components(graph, directed=False)
    return Source(labels, data.images.encoded, data.images.name)


def _shuffled(images: Source, seed: int) -> Source:
    order = np.random.default_rng(seed).permutation(len(images.labels))
    return Source(
        images.labels[order],
        lambda number: images.encoded(int(order[number])),
        lambda number: images.name(int(order[number])),
    )


def _convert_to_bin(source: Path, target: Path, file_list: str | Path | None) -> str:
    """A .bin is written at once, in seconds: there is nothing to go on with."""
    if target.exists():
        raise RunError(f"{target} exists already; remove it, or write elsewhere.")
    data = open_verification_set(source, file_list)
    if not hasattr(data.images, "encoded"):
        raise DataError(f"{source} holds pixels, no image files whose bytes could be copied.")
    files = [bytes(data.images.encoded(i)) for i in tqdm(range(len(data.images)), unit="image")]
    rows = np.stack((data.left, data.right), 1).ravel()
    write_bin(target, [files[row] for row in rows], data.same)
    kept = np.array_equal(data.folds, consecutive_folds(len(data.same)))
    note = "" if kept else "; a .bin has no folds, readers make ten equal ones"
    return f"{target}: {len(files):,} images, {len(data.same):,} pairs{note}"


def _copy(images: Source, writer: Writer) -> None:
    """Copy what is not there yet."""
    total = len(images.labels)
    try:
        with tqdm(total=total, initial=writer.done, unit="image", desc=writer.target.name) as bar:
            for number in range(writer.done, total):
                writer.write(number, bytes(images.encoded(number)), images.name(number))
                bar.update()
    except BaseException:
        writer.close()
        raise


def _write_pairs(writer: Writer, data: VerificationSet, images: Source) -> None:
    """The pairs of a .bin, by the names that its images now have."""
    names = [writer.name(n, bytes(images.encoded(n))) for n in range(len(images.labels))]
    path = writer.folder / PAIRS_NAME
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        for left, right, same in zip(data.left, data.right, data.same, strict=True):
            f.write(f"{names[left]} {names[right]} {1 if same else -1}\n")


def _fingerprint(source: Path, images: Source, shard_size: int) -> dict[str, Any]:
    labels = np.ascontiguousarray(images.labels, np.int64)
    names = 0  # another list may give other images the same labels
    for number in range(len(labels)):
        names = zlib.crc32(images.name(number).encode("utf-8", "surrogateescape") + b"\0", names)
    return {
        "source": str(source.resolve()),
        "images": len(labels),
        "labels": zlib.crc32(labels),
        "names": names,
        "shard_size": shard_size,
    }


def _begin(made: list[Path], marker: Path, fingerprint: dict[str, Any]) -> None:
    """Leave a note of what is being converted; raise RunError where something else is there.

    made: the target, and what is written beside it.
    """
    target = made[0]
    if marker.exists():
        if json.loads(marker.read_text()) == fingerprint:
            return
        raise RunError(
            f"{target}: another conversion to it was begun and not finished. Remove its files and "
            f"{marker}, or write elsewhere."
        )
    if "%" in target.name:
        made = [*made, *target.parent.glob("*.tar")]
    for path in made:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RunError(f"{path} exists already; remove it, or write elsewhere.")
    discard_parts(target)
    with atomic_path(marker) as temporary:
        temporary.write_text(json.dumps(fingerprint))


def main() -> None:
    """Read the command line, convert, say what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the data set to convert")
    parser.add_argument("target", help="what to write; its name says the format")
    parser.add_argument("--file_list", help="image list or pairs file of the source")
    parser.add_argument(
        "--shuffle", type=int, metavar="SEED", help="write in a random order, best for shards"
    )
    parser.add_argument("--shard_size", type=int, default=SHARD_SIZE, help="images in a shard")
    arguments = parser.parse_args()
    if arguments.shard_size < 1:
        parser.error(f"--shard_size is {arguments.shard_size}; it must be at least 1")
    print(convert(**vars(arguments)))


if __name__ == "__main__":
    run_script(main)
