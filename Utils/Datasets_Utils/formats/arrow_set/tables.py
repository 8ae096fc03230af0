"""Arrow files, mapped into memory: where each image file is, and the values of other columns.

An arrow file is a stream of record batches, whose buffers lie in it as they are in memory. pyarrow
finds and checks them; what is kept are byte offsets, so workers read images without pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from Utils.cpu import memory_limit
from Utils.Datasets_Utils.formats.storage import MappedFile
from Utils.errors import DataError
from Utils.file_kinds import other_kind

_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream
_MEMORY, _GROWTH = 1 << 29, 3  # reading may take _MEMORY bytes + _GROWTH × the file's size
_MAGIC = b"ARROW1"  # of the other form of these files, with a list of batches at its end


def package(path: Path) -> ModuleType:
    """pyarrow. Raises DataError, for the set at a path, if it is not installed."""
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{path} is a set of Hugging Face's `datasets`, which is read with the package "
            f"pyarrow, and that is not installed; `make extras` installs it, or `python -m pip "
            f"install pyarrow` (170 MB)."
        ) from None
    return pyarrow


@contextmanager
def reading_table(file: Path, arrow: ModuleType) -> Iterator[None]:
    """Raise DataError, naming the file, for what pyarrow raises of a damaged one, and of one that
    takes much more memory than its size: few bytes may hold compressed images of many GB."""
    try:
        with memory_limit(_MEMORY + _GROWTH * file.stat().st_size):
            yield
    except MemoryError:
        raise DataError(
            f"{file} can't be read: its {file.stat().st_size:,} bytes take too much memory when "
            f"they are unpacked, which images do not; it is damaged, or made to do harm."
        ) from None
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        why = other_kind(file) or (
            f"it is damaged, cut short or no table of that kind. Fetch it again. "
            f"({' '.join(str(error).split())[:200]})"
        )
        raise DataError(f"{file} can't be read: {why}") from None


def check_names(schema: Any, arrow: ModuleType) -> None:
    """Raise ValueError for a name of a column, or of its fields, that is not UTF-8."""
    for column in schema:
        fields = column.type if arrow.types.is_struct(column.type) else ()
        _ = column.name, [field.name for field in fields]  # pyarrow decodes them here


class Bytes(NamedTuple):
    """The values of a column of bytes: offsets and sizes (int64 N) in the mapped file."""

    offsets: np.ndarray
    sizes: np.ndarray


class Table:
    """An arrow file. file: its map. schema: its columns. Raises DataError if it can't be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = MappedFile(path)
        self._arrow = arrow = package(path)
        content = self.file.bytes
        with reading_table(path, arrow):
            self._source = arrow.py_buffer(content)
            start = bytes(content[: len(_MAGIC)])
            # The stacks of many threads would not fit into the memory that `reading_table` leaves.
            alone = arrow.ipc.IpcReadOptions(use_threads=False)
            if start == _MAGIC:
                reader = arrow.ipc.open_file(self._source, options=alone)
                self.batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
            else:
                reader = arrow.ipc.open_stream(self._source, options=alone)
                self.batches = list(reader)
                if bytes(content[-len(_END) :]) != _END:
                    raise ValueError("the mark at its end is missing")
            self.schema = reader.schema
            check_names(self.schema, arrow)
            for batch in self.batches:
                batch.validate(full=True)

    def bytes(self, column: str, field: str = "") -> Bytes:
        """Where the values of a column are, or of a field of a column of structures.

        Raises DataError for a row without a value, or a compressed file.
        """
        found = [self._bytes(batch, column, field) for batch in self.batches]
        joined = np.concatenate(found) if found else np.empty((0, 2), np.int64)
        return Bytes(*joined.T)

    def _bytes(self, batch: Any, column: str, field: str) -> np.ndarray:
        """N×2 offsets and sizes."""
        array = batch.column(column)
        missing = array.null_count
        if field:
            array = array.field(field)
        if missing or array.null_count:
            row = array.is_null().to_pylist().index(True) if array.null_count else 0
            raise DataError(
                f"{self.path}: row {row} of a batch has no {field or 'value'} in the column "
                f"{column}: the image files are elsewhere. Write the set again with the images in "
                f"it, as `datasets`' save_to_disk and push_to_hub do."
            )
        wide = np.int64 if self._arrow.types.is_large_binary(array.type) else np.int32
        _, ends, data = array.buffers()
        if not len(array):
            return np.empty((0, 2), np.int64)
        skipped = array.offset * np.dtype(wide).itemsize
        ends = np.frombuffer(ends, wide, len(array) + 1, skipped).astype(np.int64)
        start = (data.address if data else self._source.address) - self._source.address
        if not 0 <= start <= start + ends[-1] <= self.file.size:
            raise DataError(
                f"{self.path} is compressed; write the set again with `datasets`' save_to_disk, "
                f"which does not compress."
            )
        return np.stack([start + ends[:-1], np.diff(ends)], axis=1)

    def values(self, column: str) -> Sequence[Any]:
        """The values of a column, as Python has them."""
        with reading_table(self.path, self._arrow):
            return [value for batch in self.batches for value in batch.column(column).to_pylist()]

    def paths(self, column: str) -> Sequence[str | None]:
        """The `path` of each structure in a column of images."""
        with reading_table(self.path, self._arrow):
            parts = [batch.column(column).field("path").to_pylist() for batch in self.batches]
        return [path for part in parts for path in part]
