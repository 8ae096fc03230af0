"""Features of many photos in one memory-mapped file, written while they are extracted.

A folder holds features.npy (N×D, fp32 or fp16), list.json (the photos, as the devkit lists them),
about.json (what they were made with) and done.bin: a byte for each 256 rows (a lot), set when those
are written. An extraction that was killed resumes there, with any number of processes, and a
complete table that was made with the same is used again. Features made with anything else have a
folder of their own (`folder_for`): nothing that took hours is overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.photos import PhotoList, read_photo_list, write_photo_list
from Utils.errors import DataError, RunError
from Utils.files import make_folder, not_written, read_json, save_json
from Utils.processes import ALONE, Processes

FEATURE_DTYPES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
ROWS_AT_ONCE = 256

_DIGITS = 8

# Makes the features of some lots of rows: yields n×D for each, in their order.
Producer = Callable[[Sequence[range]], Iterable[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Features:
    """N×D features, memory-mapped or not; their photos; what they were made with."""

    table: np.ndarray
    photos: PhotoList
    about: dict[str, Any]

    def of(self, photos: PhotoList) -> Features:
        """The features of other photos, by name. Raises DataError for photos without features."""
        row_of = {name: row for row, name in enumerate(self.photos.names)}
        rows = [row_of.get(name, -1) for name in photos.names]
        if -1 in rows:
            raise DataError(
                f"{photos.source} lists {rows.count(-1)} photos that {self.photos.source} has no "
                f"features of, the first: {photos.names[rows.index(-1)]}."
            )
        return Features(self.table[rows], photos, self.about)


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
        return any(p.is_file() for p in (self.table, self.about, self.done))

    def open(self) -> Features:
        """Open a complete table. Raises DataError where it is incomplete, or not such a folder."""
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
        """What the features were made with; empty where that was never written. Raises DataError
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

    def check_made_with(self, about: dict[str, Any]) -> None:
        """Raises DataError where the features were made with anything else."""
        found = self.read_about()
        other = [name for name in about if found.get(name) != about[name]]
        if other:
            raise self._damaged(f"{self.about} says another {other[0]} than its folder's name")

    def check_shape(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        """Raises DataError where features.npy is another table than about.json says."""
        table = _open_table(self.table, "r")
        if table.shape != shape or table.dtype != dtype:
            raise self._damaged(
                f"{self.table} is {table.dtype} {table.shape}, not {dtype} {shape} as "
                f"{self.about.name} says"
            )

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"{what}, so these features can't be used; delete {self.folder}, and make them anew."
        )


def folder_for(parent: Path, name: str, about: dict[str, Any]) -> Path:
    """The folder of a table of features; its name tells what they were made with."""
    made_with = json.dumps(about, sort_keys=True).encode()
    return Path(parent) / f"{name}-{hashlib.sha256(made_with).hexdigest()[:_DIGITS]}"


def packed_features(
    folder: Path,
    photos: PhotoList,
    about: dict[str, Any],
    produce: Producer,
    processes: Processes = ALONE,
    say: Callable[[str], None] = print,
) -> Features:
    """The features of the photos in the folder; those that are missing are made.

    about: what they are made with: checkpoint, dimension `dim`, `dtype`, ...; plain values.
    produce: makes the features of the given lots of rows. say: is told how many are missing.
    Raises DataError for NaN or infinity, and where the folder's features were made with something
    else; RunError where they can't be written.
    """
    files = FeatureFolder(folder)
    if processes.is_main:
        _prepare(files, photos, about, say)
    processes.barrier()
    missing = files.missing()
    processes.barrier()  # nobody writes before all have read which are missing
    mine = missing[processes.rank :: processes.world_size]
    if mine:
        _fill(files, mine, produce(mine))
    processes.barrier()
    return files.open()


def _prepare(
    files: FeatureFolder, photos: PhotoList, about: dict[str, Any], say: Callable[[str], None]
) -> None:
    found = files.read_about()
    shape, dtype = (len(photos.names), about["dim"]), FEATURE_DTYPES[about["dtype"]]
    count = len(photos.names)
    if found:
        files.check_made_with(about)
        files.check_shape(shape, dtype)
        left = sum(len(lot) for lot in files.missing())
        state = f"{count - left:,} of {count:,} are there, going on" if left else "all there"
        say(f"{files.folder}: {state}")
        return
    say(f"{files.folder}: {count:,} to come")
    make_folder(files.folder)
    try:
        files.about.unlink(missing_ok=True)  # without it the folder holds nothing that is used
        np.lib.format.open_memmap(files.table, "w+", dtype, shape)
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


def _fill(files: FeatureFolder, lots: list[range], made: Iterable[np.ndarray]) -> None:
    table = _open_table(files.table, "r+")
    with open(files.done, "r+b") as done:
        for lot, features in zip(lots, made, strict=True):
            with np.errstate(over="ignore"):  # infinity is found in the next line
                features = features.astype(table.dtype)
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


def _open_table(path: Path, mode: str) -> np.ndarray:
    try:
        table = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"the feature table {path} can't be opened: {error}.") from None
    if table.ndim != 2 or table.dtype not in FEATURE_DTYPES.values():
        raise DataError(f"the feature table {path} is {table.dtype} {table.shape}; expected N×D.")
    return table


def _lots(count: int) -> list[range]:
    starts = range(0, count, ROWS_AT_ONCE)
    return [range(start, min(start + ROWS_AT_ONCE, count)) for start in starts]


def by_lots(lots: Sequence[range], parts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Join consecutive parts, which end where lots end, to whole lots."""
    for lot in lots:
        collected: list[np.ndarray] = []
        while sum(map(len, collected)) < len(lot):
            collected.append(next(parts))
        yield np.concatenate(collected)
