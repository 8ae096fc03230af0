"""A file mapped into memory, one map for each process that reads it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.images import ImageError


class MappedFile:
    """A read-only file as bytes. It can be pickled; the map is made at the first read.

    A worker made by fork shares its parent's map, which is safe as nobody writes; one made by
    spawn gets the path alone and maps the file anew.

    path: the file. size: its bytes when this was made. Raises OSError where it can't be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self._bytes: np.ndarray | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None}

    @property
    def bytes(self) -> np.ndarray:
        """The whole file as uint8, without reading it."""
        if self._bytes is None:
            if self.size == 0:  # an empty file can't be mapped
                return np.empty(0, np.uint8)
            with open(self.path, "rb") as f:
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = np.frombuffer(mapped, np.uint8)
        return self._bytes

    def release(self) -> None:
        """Let go of the map, and of its file descriptor once no view is left; a read makes anew."""
        self._bytes = None

    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes from `offset` on, as a view. Raises ImageError past the end of the file."""
        view = self.bytes[offset : offset + size]
        if offset < 0 or len(view) != size:
            raise ImageError(
                f"{self.path}, byte {offset}: {size} bytes are expected there, but the file ends "
                f"at {len(self.bytes)}; it is cut short or its index belongs to another file"
            )
        return view
