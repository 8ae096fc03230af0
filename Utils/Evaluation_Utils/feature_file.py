"""Features of many photos in one memory-mapped file, written as they come.

A folder holds features.npy (N×D, fp32 or fp16), list.json (the photos, as the devkit lists them),
about.json (what they were made with) and done.bin: a byte for each 256 rows, set when those are
written. What is killed goes on there, with any number of processes, and what is whole and made with
the same is used as it is.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.photo_list import PhotoList, read_photo_list, write_photo_list
from Utils.errors import DataError
from Utils.files import atomic_path
from Utils.processes import ALONE, Processes

FEATURE_DTYPES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
ROWS_AT_ONCE = 256

# Makes the features of some lots of rows: yields (lot, n×D) in their order.
Producer = Callable[[Sequence[range]], Iterable[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Features:
    """N×D features, memory-mapped, and the photos they are of."""

    table: np.ndarray
    photos: PhotoList


class FeatureFolder:
    """The files of one table of features."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.table = self.folder / "features.npy"
        self.list = self.folder / "list.json"
        self.about = self.folder / "about.json"
        self.done = self.folder / "done.bin"

    def open(self) -> Features:
        """Open a whole table. Raises DataError where it is not whole, or not one of ours."""
        if not (self.table.is_file() and self.list.is_file() and self.done.is_file()):
            raise DataError(
                f"{self.folder} is no folder of features: it needs features.npy, list.json and "
                f"done.bin."
            )
        table = _open_table(self.table, "r")
        with_ids = "id" in json.loads(self.list.read_text(encoding="utf-8"))
        photos = read_photo_list(self.list, with_ids)
        missing = len(self.missing())
        if missing or len(photos.names) != len(table):
            raise DataError(
                f"the features in {self.folder} are not all there: {missing} lots of "
                f"{ROWS_AT_ONCE} rows are missing; run their extraction again, it goes on there."
            )
        return Features(table, photos)

    def missing(self) -> list[range]:
        """The lots of rows that are not written yet."""
        done = np.fromfile(self.done, np.uint8)
        count = len(_open_table(self.table, "r"))
        lots = _lots(count)
        if len(done) != len(lots):
            raise DataError(f"{self.done} does not fit features.npy; delete {self.folder}.")
        return [lot for lot, flag in zip(lots, done, strict=True) if not flag]


def packed_features(
    folder: Path,
    photos: PhotoList,
    about: dict[str, Any],
    produce: Producer,
    processes: Processes = ALONE,
    say: Callable[[str], None] = print,
) -> Features:
    """The features of the photos from the folder, made there as far as they are missing.

    about: what makes features: checkpoint, dimension `dim`, number format `dtype`, ...; plain
    values. Where the folder's differ, or its list does, all are made anew, and `say` says why.
    produce: makes the features of the given lots of rows. Raises DataError for NaN or infinity.
    """
    files = FeatureFolder(folder)
    if processes.rank == 0:
        _prepare(files, photos, about, say)
    processes.wait()
    missing = files.missing()
    processes.wait()  # all have looked before anybody writes
    mine = missing[processes.rank :: processes.count]
    if mine:
        _fill(files, mine, produce(mine))
    processes.wait()
    return files.open()


def _prepare(
    files: FeatureFolder, photos: PhotoList, about: dict[str, Any], say: Callable[[str], None]
) -> None:
    found = _read_about(files)
    changed = [name for name in about if found and found.get(name) != about[name]]
    if found and not changed:
        left = sum(len(lot) for lot in files.missing())
        count = len(photos.names)
        state = f"{count - left:,} of {count:,} are there, going on" if left else "all there"
        say(f"{files.folder}: {state}")
        return
    if found:
        say(f"{files.folder}: {', '.join(changed)} changed since, so features are made anew")
    files.folder.mkdir(parents=True, exist_ok=True)
    files.about.unlink(missing_ok=True)  # until all is in place the folder holds nothing of use
    shape = (len(photos.names), about["dim"])
    np.lib.format.open_memmap(files.table, "w+", FEATURE_DTYPES[about["dtype"]], shape)
    _reserve(files.table)
    write_photo_list(photos, files.list)
    files.done.write_bytes(bytes(len(_lots(len(photos.names)))))
    with atomic_path(files.about) as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n")


def _reserve(path: Path) -> None:
    """Take the file's space on disk now: where it runs out later, a mapped file ends the process
    without a word."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def _fill(files: FeatureFolder, lots: list[range], made: Iterable[np.ndarray]) -> None:
    table = _open_table(files.table, "r+")
    with open(files.done, "r+b") as done:
        for lot, features in zip(lots, made, strict=True):
            _check_finite(features, lot, files.folder)
            table[lot.start : lot.stop] = features
            table.flush()  # the rows reach the disk before the mark that says so
            done.seek(lot.start // ROWS_AT_ONCE)
            done.write(b"\1")
            done.flush()
            os.fsync(done.fileno())


def _check_finite(features: np.ndarray, lot: range, folder: Path) -> None:
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if bad.size:
        raise DataError(
            f"the features for {folder} hold NaN or infinity in row {lot[bad[0]]}; the network's "
            f"output is broken there, check its weights and that image."
        )


def _read_about(files: FeatureFolder) -> dict[str, Any]:
    try:
        return json.loads(files.about.read_text())
    except (OSError, ValueError):
        return {}


def _open_table(path: Path, mode: str) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"the feature table {path} can't be opened: {error}.") from None
    if table.ndim != 2 or table.dtype not in FEATURE_DTYPES.values():
        raise DataError(f"the feature table {path} is {table.dtype} {table.shape}; expected N×D.")
    return table


def _lots(count: int) -> list[range]:
    starts = range(0, count, ROWS_AT_ONCE)
    return [range(start, min(start + ROWS_AT_ONCE, count)) for start in starts]


def by_lots(lots: Sequence[range], parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Join parts of any size, which follow each other and end where lots end, to whole lots."""
    for lot in lots:
        collected: list[np.ndarray] = []
        while sum(map(len, collected)) < len(lot):
            collected.append(next(parts))
        yield np.concatenate(collected)
