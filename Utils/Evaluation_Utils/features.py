"""Features of many photos in one memory-mapped file, written while they are extracted.

A folder holds features.npy (N×D, fp32 or fp16), list.json (the photos, as the devkit lists them),
about.json (what they were made with) and done.bin: a byte for each 256 rows (a lot), set when those
are written. flaws-<rank>.txt: what was wrong with photos that were read all the same. An extraction
that was killed resumes there, with any number of processes, and a complete table that was made with
the same is used again. Features made with anything else have a folder of their own (`folder_for`):
nothing that took hours is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from Utils.Datasets_Utils.photos import (
    PhotoList,
    Photos,
    image_files,
    photos_digest,
    read_photo_list,
    write_photo_list,
)
from Utils.devices import full_precision
from Utils.errors import DataError, RunError
from Utils.Evaluation_Utils.embedding import embed_batches
from Utils.Evaluation_Utils.identification.exact_scores import unit_rows
from Utils.files import make_folder, not_written, read_json, reading, save_json
from Utils.Pretrained_Utils.load import weights_digest
from Utils.processes import ALONE, Processes

FEATURE_DTYPES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
ROWS_AT_ONCE = 256

_SHARE_OF_MARKS = 0.05  # of the time; a disk takes milliseconds, in which a GPU fills many lots

_DIGITS = 8

# sum: the sum of both, as insightface does for MegaFace. concat: one after the other, as the
# lineage does for verification; twice as large. none: that of the photo alone.
FLIPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": lambda straight, mirrored: straight + mirrored,
    "concat": lambda straight, mirrored: np.concatenate([straight, mirrored], axis=1),
    "none": lambda straight, mirrored: straight,
}

# Makes the features of some lots of rows: yields n×D in their order, a lot in one part or several.
Producer = Callable[[Sequence[range]], Iterable[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Features:
    """N×D features, memory-mapped or not; their photos; what they were made with."""

    table: np.ndarray
    photos: PhotoList
    about: dict[str, Any]

    def rows_of(self, photos: PhotoList) -> np.ndarray:
        """The rows of photos, by name. Raises DataError for photos without features."""
        row_of = {name: row for row, name in enumerate(self.photos.names)}
        rows = [row_of.get(name, -1) for name in photos.names]
        if -1 in rows:
            raise DataError(
                f"{photos.source} lists {rows.count(-1)} photos that {self.photos.source} has no "
                f"features of, the first: {photos.names[rows.index(-1)]}."
            )
        return np.array(rows, np.int64)


class FeatureFolder:
    """The files of one table of features."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.table = self.folder / "features.npy"
        self.list = self.folder / "list.json"
        self.about = self.folder / "about.json"
        self.done = self.folder / "done.bin"

    def is_there(self) -> bool:
        """Whether any of the files exists."""
        with reading(self.folder, "folder of features"):
            return any(p.is_file() for p in (self.table, self.about, self.done))

    def open(self) -> Features:
        """Open a complete table. Raises DataError if it is incomplete, or not such a folder."""
        if not (self.table.is_file() and self.list.is_file() and self.done.is_file()):
            raise DataError(
                f"{self.folder} is not a folder of features: it needs features.npy, list.json and "
                f"done.bin."
            )
        table = _open_table(self.table, "r")
        photos = read_photo_list(self.list, with_ids=None)
        missing = len(self.missing())
        if missing or len(photos.names) != len(table):
            raise DataError(
                f"the features in {self.folder} are not all there: {missing} lots of "
                f"{ROWS_AT_ONCE} rows are missing; run their extraction again, it resumes there."
            )
        return Features(table, photos, self.read_about())

    def missing(self) -> list[range]:
        """The lots of rows that are not written yet."""
        lots = _lots(len(_open_table(self.table, "r")))
        try:
            done = self.done.read_bytes()
        except OSError as error:
            raise self._damaged(f"{self.done} can't be read ({error.strerror})") from None
        if len(done) != len(lots):
            raise self._damaged(f"{self.done} does not fit features.npy")
        return [lot for lot, flag in zip(lots, done, strict=True) if not flag]

    def read_about(self) -> dict[str, Any]:
        """What the features were made with; empty if that was never written. Raises DataError
        for a damaged file."""
        if not self.about.exists():
            return {}
        try:
            about = read_json(self.about, "description")
        except DataError as error:
            raise self._damaged(str(error).removesuffix(".")) from None
        if not isinstance(about, dict):
            raise self._damaged(f"{self.about} does not name what the features were made with")
        return about

    def add_flaws(self, flaws: Sequence[str], rank: int) -> None:
        """Keep what a process found wrong with photos. Raises RunError if that can't be done."""
        path = self.folder / f"flaws-{rank}.txt"
        try:
            with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
                file.writelines(" ".join(flaw.splitlines()) + "\n" for flaw in flaws)
        except OSError as error:
            raise RunError(not_written(path, error)) from None

    def read_flaws(self) -> list[str]:
        """Those of all processes, sorted; lots that were made twice have them once."""
        found: set[str] = set()
        for path in self.folder.glob("flaws-*.txt"):
            with reading(path, "list of flaws"):
                found.update(path.read_text("utf-8", "surrogateescape").splitlines())
        return sorted(found)

    def check(self, about: dict[str, Any], shape: tuple[int, int]) -> None:
        """Raises DataError if the features were made with anything else, or features.npy is
        another table than about.json says."""
        found = self.read_about()
        other = [name for name in about if found.get(name) != about[name]]
        if other:
            raise self._damaged(f"{self.about} has another value of `{other[0]}` than now")
        table, dtype = _open_table(self.table, "r"), FEATURE_DTYPES[about["dtype"]]
        if table.shape != shape or table.dtype != dtype:
            raise self._damaged(
                f"{self.table} is {table.dtype} {table.shape}, not {dtype} {shape} as "
                f"{self.about.name} says"
            )

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"{what}, so these features can't be used; delete {self.folder}, and make them anew."
        )


def folder_for(
    parent: Path, name: str, about: dict[str, Any], processes: Processes = ALONE
) -> Path:
    """The folder of a table of features; its name tells what they were made with, as the main
    process sees it."""
    made_with = json.dumps(processes.gather(about)[0], sort_keys=True).encode()
    return Path(parent) / f"{name}-{hashlib.sha256(made_with).hexdigest()[:_DIGITS]}"


def packed_features(
    folder: Path,
    photos: PhotoList,
    about: dict[str, Any],
    produce: Producer,
    processes: Processes = ALONE,
    say: Callable[[str], None] = print,
    progress: str | None = None,
    flaws: list[str] | None = None,
) -> Features:
    """The features of the photos in the folder, as `pack_features` makes them."""
    return pack_features(folder, photos, about, produce, processes, say, progress, flaws).open()


def pack_features(
    folder: Path,
    photos: PhotoList,
    about: dict[str, Any],
    produce: Producer,
    processes: Processes = ALONE,
    say: Callable[[str], None] = print,
    progress: str | None = None,
    flaws: list[str] | None = None,
) -> FeatureFolder:
    """Complete a folder of features: those that are missing are made.

    about: what they are made with: checkpoint, dimension `dim`, `dtype`, ...; plain values.
    produce: makes the features of the given lots of rows. say: is told how many are missing.
    progress: label of a bar that the main process shows; None: no bar. flaws: the list that
    `produce` adds to; at the end, the main process's has all flaws of the table's photos, those of
    earlier starts too, and the others' have none.
    Raises DataError for NaN or infinity, and if the folder's features were made with something
    else; RunError if they can't be written.
    """
    files = FeatureFolder(folder)
    if processes.is_main:
        _prepare(files, photos, about, say)
    processes.barrier()
    missing = files.missing()
    processes.barrier()  # all must have read which are missing before one writes
    mine = missing[processes.rank :: processes.world_size]
    before = len(flaws or ())
    if mine:
        try:
            with full_precision():
                _fill(files, mine, produce(mine), progress if processes.is_main else None)
        finally:
            if own := (flaws or [])[before:]:
                files.add_flaws(own, processes.rank)
    processes.barrier()
    if flaws is not None:
        flaws[before:] = files.read_flaws() if processes.is_main else []
    return files


def _prepare(
    files: FeatureFolder, photos: PhotoList, about: dict[str, Any], say: Callable[[str], None]
) -> None:
    count = len(photos.names)
    shape = (count, about["dim"])
    if files.read_about():
        files.check(about, shape)
        left = sum(len(lot) for lot in files.missing())
        state = f"{count - left:,} of {count:,} are there, going on" if left else "all there"
        say(f"{files.folder}: {state}")
        return
    say(f"{files.folder}: {count:,} to come")
    make_folder(files.folder)
    try:
        files.about.unlink(missing_ok=True)  # without it the folder holds nothing that is used
        np.lib.format.open_memmap(files.table, "w+", FEATURE_DTYPES[about["dtype"]], shape)
        _reserve(files.table)
        write_photo_list(photos, files.list)
        files.done.write_bytes(bytes(len(_lots(count))))
    except OSError as error:
        raise RunError(not_written(files.folder, error)) from None
    save_json(files.about, about)


def _reserve(path: Path) -> None:
    """Reserve the file's space on disk: a process that runs out of space in a mapped file is killed
    without a message."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            size = path.stat().st_size
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise RunError(
                    f"{path} needs {size / 2**30:.2f} GiB, which could not be had: "
                    f"{error.strerror}."
                ) from None


def _fill(
    files: FeatureFolder, lots: list[range], parts: Iterable[np.ndarray], progress: str | None
) -> None:
    table, parts = _open_table(files.table, "r+"), iter(parts)
    total, written, marked_at = sum(map(len, lots)), [], time.monotonic()
    took = 0.0  # seconds, to mark the last ones
    with (
        open(files.done, "r+b") as done,
        tqdm(total=total, desc=progress, unit="image", disable=progress is None) as bar,
    ):
        try:
            for lot in lots:
                row = lot.start
                while row < lot.stop:
                    with np.errstate(over="ignore"):  # infinity is found in the next line
                        part = next(parts).astype(table.dtype)
                    bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
                    if bad.size:
                        raise DataError(
                            f"the features for {files.folder} hold NaN or infinity in row "
                            f"{row + bad[0]}; the network's output is broken there, check its "
                            f"weights and that image."
                        )
                    table[row : row + len(part)] = part
                    row += len(part)
                    bar.update(len(part))
                written.append(lot)
                now = time.monotonic()
                if took <= _SHARE_OF_MARKS * (now - marked_at):
                    _mark(table, done, written)
                    written, marked_at = [], time.monotonic()
                    took = marked_at - now
        finally:
            _mark(table, done, written)


def _mark(table: np.memmap, done: BinaryIO, lots: list[range]) -> None:
    """Mark lots as written; their rows reach the disk before the marks that say so."""
    table.flush()
    for lot in lots:
        done.seek(lot.start // ROWS_AT_ONCE)
        done.write(b"\1")
    done.flush()
    os.fsync(done.fileno())


def _open_table(path: Path, mode: str) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds for a damaged file
        raise DataError(f"the feature table {path} can't be opened: {error}.") from None
    if table.ndim != 2 or table.dtype not in FEATURE_DTYPES.values():
        raise DataError(f"the feature table {path} is {table.dtype} {table.shape}; expected N×D.")
    return table


def _lots(count: int) -> list[range]:
    starts = range(0, count, ROWS_AT_ONCE)
    return [range(start, min(start + ROWS_AT_ONCE, count)) for start in starts]


def embedded(
    photos: Photos,
    backbone: nn.Module,
    flip: str,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    skip_unreadable: bool = False,
    flaws: list[str] | None = None,
    unit: bool = True,
) -> Producer:
    """A producer of features from photos, without random augmentation.

    flip: how the embeddings of a photo and of its mirror image are joined, a name in FLIPS.
    skip_unreadable: give a photo that can't be read a feature of zeros; no ImageError.
    flaws: takes what is wrong with photos that were read all the same. unit: L2-normalise them.
    """

    def produce(lots: Sequence[range]) -> Iterator[np.ndarray]:
        # No batch reaches beyond its lot, so each photo is always in the same batch, however much
        # was done before and however many processes there are.
        batches = [
            range(start, min(start + batch_size, lot.stop))
            for lot in lots
            for start in range(lot.start, lot.stop, batch_size)
        ]
        embeddings = embed_batches(
            backbone,
            photos.images,
            device,
            batches,
            num_workers,
            skip_unreadable=skip_unreadable,
            flaws=flaws,
        )
        for both in embeddings:
            joined = FLIPS[flip](*both)
            yield unit_rows(joined) if unit else joined

    return produce


def embedded_with(
    backbone: nn.Module, flip: str, photos: Path, images: Sequence[np.ndarray]
) -> dict[str, Any]:
    """What decides the features that `embedded` makes of the images. photos: the folder, record
    file or archive that they are in."""
    points = getattr(backbone, "takes_keypoints", False) and hasattr(images, "keypoints")
    return {
        **({"keypoints": True} if points else {}),
        "network": weights_digest(backbone),
        "dim": backbone.feature_dim * (2 if flip == "concat" else 1),
        "flip": flip,
        "preprocessing": str(backbone.preprocessing),
        "photos": str(photos.absolute()),
        "files": photos_digest(image_files(images, photos)),
    }


def list_digest(listed: PhotoList) -> str:
    """SHA-256 of the names and identities of a list."""
    found = hashlib.sha256("\n".join(listed.names).encode("utf-8", "surrogateescape"))
    found.update("\n".join(listed.ids or ()).encode("utf-8", "surrogateescape"))
    return found.hexdigest()
