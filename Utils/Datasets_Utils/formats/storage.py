"""A file mapped into memory, one map for each process that reads it.

Millions of paths in two arrays, instead of a Python string each.

Arrays that take a scan of a large file to make, kept beside it, or elsewhere if that fails.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.images import ImageError
from Utils.errors import RunError
from Utils.files import atomic_path


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


_AT_ONCE = 1 << 16  # paths turned into Python objects together


class PathTable:
    """A read-only sequence of paths, held as one block of bytes and the places where each ends.

    Four million paths of 30 characters take 150 MB; as Python strings they take 350 MB, which
    moreover every worker process comes to copy, because counting references writes to them.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        text, lengths, left = bytearray(), array("q", [0]), iter(paths)
        while batch := [p.encode("utf-8", "surrogateescape") for p in islice(left, _AT_ONCE)]:
            text += b"".join(batch)
            lengths.extend(map(len, batch))
        self._text = np.frombuffer(text, np.uint8)
        self._text.flags.writeable = False
        self._ends = np.frombuffer(lengths, np.int64)
        np.cumsum(self._ends, out=self._ends)

    @classmethod
    def from_arrays(cls, text: np.ndarray, ends: np.ndarray) -> PathTable:
        """The inverse of `arrays`."""
        table = cls(())
        table._text, table._ends = text, ends
        return table

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The text as uint8, and as int64 0 and where each path ends in it; for storing."""
        return self._text, self._ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            ends = self._ends[start : start + _AT_ONCE + 1]
            # Slices of bytes are made faster than slices of an array.
            text = self._text[ends[0] : ends[-1]].tobytes()
            for begin, end in pairwise((ends - ends[0]).tolist()):
                yield text[begin:end].decode("utf-8", "surrogateescape")

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        chars = self._text[self._ends[index] : self._ends[index + 1]]
        return chars.tobytes().decode("utf-8", "surrogateescape")


Arrays = dict[str, np.ndarray]

SECONDS_WORTH_KEEPING = 0.5  # what is made faster is made again, and leaves no file behind

_STAMP = "stamp"
_PROBE = 4096  # bytes at either end of a file that tell it from another of the same size


def cached_arrays(path: Path, sources: Sequence[Path], build: Callable[[], Arrays]) -> Arrays:
    """The arrays stored at `path`, if they were made from these very files; or else `build()`'s.

    path: where they belong, an .npz beside the data. Where that can't be written, they go to the
    user's cache folder ($XDG_CACHE_HOME, or ~/.cache), and where that fails too, nowhere.
    What took less than half a second to make is not kept at all.
    """
    stamp = _stamp(sources)
    places = [path]
    with suppress(RuntimeError):  # the user has no home
        places.append(_elsewhere(path))
    for place in places:
        if (arrays := _load(place, sources, stamp)) is not None:
            return arrays
    start = time.perf_counter()
    arrays = build()
    if time.perf_counter() - start < SECONDS_WORTH_KEEPING:
        return arrays
    for place in places:
        if place is path and _read_only(path.parent):
            continue
        with suppress(OSError, RunError):
            store_arrays(place, sources, arrays)
            break
    return arrays


def store_arrays(path: Path, sources: Sequence[Path], arrays: Arrays) -> None:
    """Write arrays that `cached_arrays` will find at `path`. Raises OSError or RunError
    where that can't be done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **{_STAMP: _stamp(sources)}, **arrays)


def _read_only(folder: Path) -> bool:
    """Whether nobody may write there: root could, and must not."""
    return not folder.stat().st_mode & 0o222


def _load(path: Path, sources: Sequence[Path], stamp: np.ndarray) -> Arrays | None:
    """None where there is no such file, or it is damaged or of other data: it is made anew."""
    try:
        # A file rewritten in the middle alone keeps its stamp.
        if max(source.stat().st_mtime_ns for source in sources) > path.stat().st_mtime_ns:
            return None
        with np.load(path, allow_pickle=False) as stored:
            if np.array_equal(stored[_STAMP], stamp):
                return {name: stored[name] for name in stored.files if name != _STAMP}
    except Exception:  # numpy and zipfile raise half a dozen kinds for a damaged file
        return None
    return None


def _stamp(sources: Sequence[Path]) -> np.ndarray:
    """Sizes and check sums of both ends. No times: copying data to another disk changes those.
    That the data are not newer than what was made of them is looked at where it is loaded."""
    return np.array([_fingerprint(source) for source in sources], np.int64)


def _fingerprint(path: Path) -> tuple[int, int, int, int]:
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        head = zlib.crc32(f.read(_PROBE))
        f.seek(max(size - _PROBE, 0))
        return size, head, zlib.crc32(f.read(_PROBE)), zlib.crc32(os.fsencode(path.name))


def _elsewhere(path: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return folder / "face_recognition" / f"{path.stem}_{digest}.npz"
