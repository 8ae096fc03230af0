"""Convert a data set to another format. The bytes of the images are copied unchanged.

    python -m Utils.Datasets_Utils.convert_dataset SOURCE TARGET [--file_list LIST]

SOURCE is anything that training or evaluation opens. The name of TARGET gives the format:

    faces_emore/train.rec       a record file, with .idx, .lst and property
    shards/%06d.tar             tar shards, with an index
    hsface.lmdb                 an LMDB database, which needs the package lmdb
    lfw.bin                     a verification set; --file_list is the pairs file of SOURCE
    images                      a folder for each class

A .bin can be converted to the others: its pairs are then written to pairs.txt beside the
images, and the images that matched pairs connect are one class. An interrupted conversion resumes
where it stopped when the same command is given again.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from Utils.Datasets_Utils import open_training_set, open_verification_set
from Utils.Datasets_Utils.folds import consecutive_folds, folds_of_both_kinds
from Utils.Datasets_Utils.formats import PAIRS_NAME
from Utils.Datasets_Utils.formats.bin_set import is_bin, write_bin
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder
from Utils.Datasets_Utils.formats.writers import (
    SHARD_SIZE,
    Writer,
    check_target,
    choose_writer,
    siblings,
    unfinished,
)
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError, RunError, run_script
from Utils.files import atomic_path, make_folder, not_written, read_json, save_json


def convert(
    source: str | Path,
    target: str | Path,
    file_list: str | Path | None = None,
    shuffle: int | None = None,
    shard_size: int = SHARD_SIZE,
    identity_folder: str = "top",
    list_encoding: str = "",
) -> str:
    """Convert a data set, and return a line that describes the target.

    source, target, file_list: as above. shuffle: seed of a random order; None keeps the order.
    shard_size: images in a shard. identity_folder: which folder of a tree is the person.
    list_encoding: of the list or pairs file; "" finds it out.

    Raises RunError for a target that exists or can't be written, DataError for data that does not
    fit the target's format, and the errors of opening the source.
    """
    source, target = Path(source), Path(target)
    if target.suffix == ".bin":
        return _convert_to_bin(source, target, file_list, list_encoding)
    pairs = open_verification_set(source, file_list) if is_bin(source) else None
    images = (
        _classes_of_pairs(pairs, source)
        if pairs
        else open_training_set(source, file_list, identity_folder, list_encoding)
    )
    if shuffle is not None and pairs:
        raise RunError("a verification set can't be shuffled: its pairs are in an order.")
    if shuffle is not None and shuffle < 0:
        raise DataError(f"--shuffle is {shuffle}, the seed of the order; expected 0 or more.")
    if shuffle is not None:
        images = _shuffled(images, shuffle)
    check_target(target, len(images), shard_size)
    marker = target.with_name(f".{target.name.replace('%', '_')}.converting")
    make_folder(target.parent)  # now, as a source that can't be read leaves nothing behind
    made = [target, *([target.parent / PAIRS_NAME] if pairs else [])]
    if target.suffix == ".rec":
        made += siblings(target)
    try:
        _begin(made, marker, _fingerprint(source, images, shard_size))
        writer = choose_writer(target, images.labels, shard_size)
        _copy(images, writer)
        if pairs:
            _write_pairs(writer, pairs, images)
        writer.finish(images.name(number) for number in range(len(images)))
        marker.unlink()
    except OSError as error:  # the source's errors are of other kinds
        raise RunError(not_written(target, error)) from None
    line = f"{target}: {len(images):,} images, {images.num_classes:,} classes"
    return "\n  ".join((line, *images.notes))


def _shuffled(data: TrainingSet, seed: int) -> TrainingSet:
    """The same images in a random order."""
    order = np.random.default_rng(seed).permutation(len(data))
    rows = order if data.rows is None else data.rows[order]
    return TrainingSet(data.images, data.labels[order], data.source, rows, data.notes)


def _classes_of_pairs(data: VerificationSet, source: Path) -> TrainingSet:
    """The images of a .bin; those that its matched pairs connect have the same label."""
    count, matched = len(data.images), data.same
    ones = np.ones(int(matched.sum()))
    graph = coo_array((ones, (data.left[matched], data.right[matched])), (count, count))
    _, labels = connected_components(graph, directed=False)
    return TrainingSet(data.images.store, labels, source, data.images.rows)


def _convert_to_bin(source: Path, target: Path, file_list: str | Path | None, encoding: str) -> str:
    """A .bin is written in seconds, as a whole: there is nothing to resume."""
    if target.exists():
        raise RunError(f"{target} exists already; remove it, or write elsewhere.")
    data = open_verification_set(source, file_list, list_encoding=encoding)
    make_folder(target.parent)
    files = [bytes(data.images.encoded(i)) for i in tqdm(range(len(data.images)), unit="image")]
    rows = np.stack((data.left, data.right), 1).ravel()
    write_bin(target, [files[row] for row in rows], data.same)
    read, _ = folds_of_both_kinds(data.same, consecutive_folds(len(data.same)))
    kept = np.array_equal(data.folds, read)
    note = "" if kept else "; a .bin has no folds, readers make ten equal ones"
    return f"{target}: {len(files):,} images, {len(data.same):,} pairs{note}"


def _copy(images: TrainingSet, writer: Writer) -> None:
    """Copy the images that are not in the target yet. Raises DataError for an empty file: readers
    of some formats skip it, and number the images after it differently."""
    done, total = writer.done, len(images)
    missing = range(done, total)
    try:
        for number in tqdm(missing, writer.target.name, total, initial=done, unit="image"):
            encoded = bytes(images.encoded(number))
            if not encoded:
                raise DataError(
                    f"image {number}, {images.name(number)}, is empty; remove it from the source."
                )
            writer.write(number, encoded)
    except BaseException:
        writer.close()
        raise


def _write_pairs(writer: Writer, data: VerificationSet, images: TrainingSet) -> None:
    """Write the pairs of a .bin with the names of its images in the target."""
    names = [writer.name(n, bytes(images.encoded(n))) for n in range(len(images))]
    path = writer.folder / PAIRS_NAME
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        for left, right, same in zip(data.left, data.right, data.same, strict=True):
            f.write(f"{names[left]} {names[right]} {1 if same else -1}\n")


def _fingerprint(source: Path, images: TrainingSet, shard_size: int) -> dict[str, Any]:
    names = 0  # another list may have the same labels for other images
    for number in range(len(images)):
        names = zlib.crc32(images.name(number).encode("utf-8", "surrogateescape") + b"\0", names)
    return {
        "source": str(source.resolve()),
        "images": len(images),
        "labels": zlib.crc32(np.ascontiguousarray(images.labels, np.int64)),
        "names": names,
        "shard_size": shard_size,
    }


def _begin(made: list[Path], marker: Path, fingerprint: dict[str, Any]) -> None:
    """Write down what is being converted; raise RunError where other files are in the way.

    made: the target, and the files that are written beside it.
    """
    target = made[0]
    if marker.exists():
        if read_json(marker, "note of an unfinished conversion", RunError) == fingerprint:
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
    unfinished(target).unlink(missing_ok=True)
    save_json(marker, fingerprint)


def main() -> None:
    """Read the command line, convert, print a line about the target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the data set to convert")
    parser.add_argument("target", help="what to write; its name gives the format")
    parser.add_argument("--file_list", help="image list or pairs file of the source")
    parser.add_argument("--list_encoding", default="", help="of the image list or pairs file")
    add_identity_folder(parser)
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
