"""Training and verification sets of tables with a column of image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.folds import consecutive_folds
from Utils.Datasets_Utils.formats.arrow_set.columns import Columns, find_columns, flags
from Utils.Datasets_Utils.formats.arrow_set.files import PARQUET, is_arrow, set_files
from Utils.Datasets_Utils.formats.arrow_set.parquet import as_arrow
from Utils.Datasets_Utils.formats.arrow_set.tables import Table, check_names, package, reading_table
from Utils.Datasets_Utils.formats.storage import MappedFile, PathTable
from Utils.Datasets_Utils.images import image_size
from Utils.Datasets_Utils.training_set import ImageStore, Labelled
from Utils.Datasets_Utils.verification_set import StoredImages, VerificationSet
from Utils.errors import DataError

__all__ = ["is_arrow", "is_arrow_pairs", "open_arrow", "open_arrow_pairs"]


class ArrowImages(ImageStore):
    """Image files in arrow files, each read at its place.

    places: int64 N×3, the file's number in `files`, offset and size.
    """

    def __init__(
        self, source: Path, files: list[MappedFile], places: np.ndarray, names: PathTable
    ) -> None:
        self.source, self.files, self.places, self.names = source, files, places, names

    def __len__(self) -> int:
        return len(self.places)

    def name(self, row: int) -> str:
        return self.names[row]

    def place(self, row: int) -> str:
        file, offset, _ = self.places[row].tolist()
        return f"{self.files[file].path}, byte {offset} (image {self.names[row]})"

    def files_of(self, rows: Iterable[int]) -> Iterable[Path]:
        return [file.path for file in self.files]

    def encoded(self, row: int) -> np.ndarray:
        file, offset, size = self.places[row].tolist()
        return self.files[file].read(offset, size)


class _Set:
    """The tables of a set in their order, and what their columns are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = set_files(path)
        if not files:
            raise DataError(f"{path} has no arrow or parquet files.")
        self.tables = [Table(as_arrow(f) if f.suffix == PARQUET else f) for f in files]
        schemas = [table.schema for table in self.tables]
        for file, schema in zip(files, schemas, strict=True):
            if schema.names != schemas[0].names or schema.types != schemas[0].types:
                raise DataError(f"{file} has other columns than {files[0].name} of the same set.")
        self.columns = find_columns(path, schemas[0], package(path))

    def values(self, column: str) -> list[Any]:
        return [value for table in self.tables for value in table.values(column)]

    def images(self, column: str, field: str) -> np.ndarray:
        """The places of a column's image files, int64 N×3."""
        found = []
        for number, table in enumerate(self.tables):
            offsets, sizes = table.bytes(column, field)
            found.append(np.stack([np.full_like(offsets, number), offsets, sizes], axis=1))
        return np.concatenate(found)

    def store(self, places: np.ndarray, names: PathTable) -> ArrowImages:
        return ArrowImages(self.path, [table.file for table in self.tables], places, names)

    def names(self, count: int) -> PathTable:
        """The name of each row: a column of them, or the path beside the bytes, where these tell
        rows apart; else its number."""
        column, field = self.columns.images[0]
        found: list[Any] = []
        if self.columns.name:
            found = self.values(self.columns.name)
        elif field and all(
            t.schema.field(column).type.get_field_index("path") >= 0 for t in self.tables
        ):
            found = [path for table in self.tables for path in table.paths(column)]
        usable = all(isinstance(name, str) and name for name in found)
        if usable and len(set(found)) == count:
            return PathTable(found)
        return PathTable(map(str, range(count)))


def is_arrow_pairs(path: Path) -> bool:
    """Whether a path is such a set, and its columns hold pairs."""
    return is_arrow(path) and _columns_of(path).holds_pairs


def _columns_of(path: Path) -> Columns:
    """The columns of a set, from the schema of its first file."""
    files, arrow = set_files(path), package(path)
    if not files:
        raise DataError(f"{path} has no arrow or parquet files.")
    if files[0].suffix != PARQUET:
        return find_columns(path, Table(files[0]).schema, arrow)
    with reading_table(files[0], arrow):
        import pyarrow.parquet

        schema = pyarrow.parquet.read_schema(files[0])
        check_names(schema, arrow)
    return find_columns(path, schema, arrow)


def open_arrow(path: Path) -> Labelled:
    """The images of a set and their labels (int64), of one column of image files.

    Raises DataError, naming the file, for a damaged one, or other columns.
    """
    data = _Set(path)
    (column, *others), label = data.columns.images, data.columns.label
    if others:
        raise DataError(
            f"{path} has two columns of image files, {column[0]} and {others[0][0]}; expected one, "
            f"and a column of labels."
        )
    places = data.images(*column)
    store = data.store(places, data.names(len(places)))
    if not label:
        store.notes = ("no column of labels; an image list can give them (--train_file_list)",)
        return Labelled(store, np.empty(0, np.int64), np.empty(0, np.int64))
    values = data.values(label)
    kinds = {type(value) for value in values}
    if kinds == {str}:
        return Labelled(store, np.unique(values, return_inverse=True)[1].astype(np.int64))
    if not kinds <= {int} or not all(0 <= value < 1 << 31 for value in values):
        raise DataError(
            f"{path}: the column {label} holds {', '.join(sorted(k.__name__ for k in kinds))}; "
            f"expected whole numbers from 0, or names, one for each image."
        )
    return Labelled(store, np.array(values, np.int64))


def open_arrow_pairs(path: Path, file_list: Path | None = None, _: str = "") -> VerificationSet:
    """The pairs of a set: two columns of image files and one that says which pairs are of one
    person; or one column of image files, of which rows 2i and 2i+1 are pair i, as CVLface has them.

    Images of the same bytes become one. Folds are those of a column `fold`, or ten consecutive
    ones. Raises DataError, naming the file or row, for pairs that do not fit together; and for a
    file_list.
    """
    if file_list:
        raise DataError(f"{path} holds its own pairs; leave out the pairs file {file_list}.")
    data = _Set(path)
    columns = data.columns
    same = np.array(flags(path, data.values(columns.same or columns.different), columns), bool)
    found = [data.images(*column) for column in columns.images]
    folds = np.array(data.values(columns.fold)) if columns.fold else None
    if len(found) == 2:
        places = np.stack(found, axis=1).reshape(-1, 3)
    else:
        places, same, folds = _alternating(data, found[0], same, folds)
    if not len(same):
        raise DataError(f"{path} holds no pairs.")
    if folds is None:
        folds = consecutive_folds(len(same))
    elif folds.dtype.kind != "i":
        raise DataError(
            f"{path}: the column {columns.fold} must hold a whole number for each pair."
        )
    first, indices = _unique(data, places)
    rows = places[first]
    names = [f"{path.stem} {row}" for row in first.tolist()]
    store = data.store(rows, PathTable(names))
    return VerificationSet(
        images=StoredImages(store),
        names=names,
        left=indices[::2],
        right=indices[1::2],
        same=same,
        folds=np.unique(folds, return_inverse=True)[1],
        sizes=dict(Counter(image_size(store.encoded(row)) for row in range(len(store)))),
    )


def _alternating(
    data: _Set, places: np.ndarray, same: np.ndarray, folds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(places in the order of the pairs, a flag for each pair, folds of them) of rows of which each
    is an image, with the flag of its pair."""
    if data.columns.index:
        index = data.values(data.columns.index)
        if sorted(index, key=str) != sorted(range(len(index)), key=str):
            raise DataError(
                f"{data.path}: the column {data.columns.index} is no numbering of its "
                f"{len(index)} rows from 0; the set is incomplete, or of another kind."
            )
        order = np.argsort(index)
        places, same = places[order], same[order]
        folds = None if folds is None else folds[order]
    if len(places) % 2:
        raise DataError(f"{data.path} holds {len(places)} images; expected two for each pair.")
    if wrong := np.flatnonzero(same[::2] != same[1::2]).tolist():
        raise DataError(
            f"{data.path}: the column {data.columns.same} differs between images {2 * wrong[0]} "
            f"and {2 * wrong[0] + 1}, which should be one pair ({len(wrong)} such pairs)."
        )
    return places, same[::2], None if folds is None else folds[::2]


def _unique(data: _Set, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the rows of images of which none has the bytes of an earlier one, for each row the number of
    its image among these)."""
    seen: dict[bytes, int] = {}
    files = [table.file for table in data.tables]
    indices = [
        seen.setdefault(blake2b(files[file].read(offset, size), digest_size=16).digest(), len(seen))
        for file, offset, size in places.tolist()
    ]
    indices = np.array(indices, np.int64)
    return np.unique(indices, return_index=True)[1], indices
