"""What the formats share: files mapped into memory, tables of paths, and kept scans.

A set of millions of images consists of arrays of offsets and one block of text. There is no Python
object for each image: these would take twice the memory, and every worker process would copy them,
because counting references writes to them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import mmap
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.images import ImageError, persistently
from Utils.errors import DataError, RunError
from Utils.files import atomic_path, reading

Arrays = dict[str, np.ndarray]

SECONDS_WORTH_KEEPING = 0.5  # arrays that are made faster are made again, and leave no file behind

_AT_ONCE = 1 << 16  # paths that are Python objects at the same time
_STAMP = "stamp"
_PROBE = 4096  # bytes at either end of a file that tell it from another of the same size


class MappedFile:
    """A read-only file as bytes. It can be pickled; the file is opened at the first read.

    `bytes` maps the whole file, for an index to be made. `read` does not use the map: where a
    file gets shorter, or its disk fails, the system kills a process that looks at the map.

    A forked worker shares what its parent has open, which is safe because nobody writes; a spawned
    worker gets the path alone and opens the file again.

    path: the file. size: its number of bytes. Raises DataError if the file can't be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with reading(path, "file"):
            status = self.path.stat()
        self.size = status.st_size
        self._stamp = status.st_size, status.st_mtime_ns
        self._bytes: np.ndarray | None = None
        self._file: io.FileIO | None = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_bytes": None, "_file": None}

    @property
    def bytes(self) -> np.ndarray:
        """The whole file as uint8, without reading it."""
        if self._bytes is None:
            if self.size == 0:  # an empty file can't be mapped
                return np.empty(0, np.uint8)
            with reading(self.path, "file"), open(self.path, "rb") as f:
                mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = np.frombuffer(mapped, np.uint8)
        return self._bytes

    def release(self) -> None:
        """Close the map, once no view is left, and the file; a read opens it again."""
        self._bytes = self._file = None

    def read(self, offset: int, size: int) -> np.ndarray:
        """`size` bytes from `offset` on. Raises ImageError past the file's end, or if the disk
        fails; DataError if the file is not as it was when this object was made."""
        if min(offset, size) < 0 or offset + size > self.size:
            raise ImageError(
                f"{self.path}, byte {offset}: {size} bytes are expected there, but the file ends "
                f"at {self.size}; it is cut short or its index belongs to another file"
            )
        try:
            return np.frombuffer(
                persistently(partial(self._read, offset, size), self.path), np.uint8
            )
        except OSError as error:
            raise ImageError(
                f"{self.path}, byte {offset}: cannot be read ({error.strerror})"
            ) from None

    def _read(self, offset: int, size: int) -> bytes:
        try:
            if self._file is None:
                self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 - kept for more
            status = os.fstat(self._file.fileno())
            if (status.st_size, status.st_mtime_ns) != self._stamp:
                raise DataError(
                    f"{self.path} was changed while it was in use: it has {status.st_size:,} bytes "
                    f"and had {self.size:,}, or another date. Start again when it stays as it is."
                )
            content = os.pread(self._file.fileno(), size, offset)
            while 0 < len(content) < size:  # the system gives at most 2 GiB
                more = os.pread(self._file.fileno(), size - len(content), offset + len(content))
                if not more:
                    break
                content += more
        except OSError:
            self._file = None  # a server may have forgotten it
            raise
        if len(content) != size:
            raise OSError(errno.EIO, "the file ends too early")
        return content


class PathTable:
    """A read-only sequence of paths: one block of text, and the offset at which each path ends.

    Four million paths of 30 characters take 150 MB; as Python strings they take 350 MB.
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
        """(text as uint8, int64 offsets: 0 and the end of each path), to be stored."""
        return self._text, self._ends

    def has_nul(self) -> bool:
        """Whether a path has a NUL in it, which no file's name has."""
        return not self._text.all()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            ends = self._ends[start : start + _AT_ONCE + 1]
            # Slicing bytes is faster than slicing an array.
            text = self._text[ends[0] : ends[-1]].tobytes()
            for begin, end in pairwise((ends - ends[0]).tolist()):
                yield text[begin:end].decode("utf-8", "surrogateescape")

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"path {index} of {len(self)}")
        index %= len(self)
        chars = self._text[self._ends[index] : self._ends[index + 1]]
        return chars.tobytes().decode("utf-8", "surrogateescape")


def progress_bar(text: str, total: int, unit: str) -> tqdm:
    """A progress bar that appears only after a second, so that small sets open in silence."""
    return tqdm(total=total, desc=text, unit=unit, unit_scale=True, delay=1)


def cached_arrays(
    path: Path,
    sources: Sequence[Path],
    build: Callable[[], Arrays],
    fits: Callable[[Arrays], object],
) -> Arrays:
    """The arrays stored at `path`, if they were made from these very files; else `build()`'s.

    path: an .npz beside the data. Where that can't be written, the arrays are stored in the user's
    cache folder ($XDG_CACHE_HOME, or ~/.cache), and where that fails too, nowhere. fits: whether
    stored arrays can be those of `build`, as a file beside a data set came with it, from anywhere;
    it may raise anything where they can't. Arrays that take less than half a second to build are
    not stored at all.
    """
    stamp = _stamp(sources)
    stores = cache_places(path)
    for stored in dict.fromkeys((path, *stores)):
        if (arrays := _load(stored, sources, stamp, fits)) is not None:
            return arrays
    start = time.perf_counter()
    arrays = build()
    if time.perf_counter() - start < SECONDS_WORTH_KEEPING:
        return arrays
    for stored in stores:
        with suppress(OSError, RunError):
            store_arrays(stored, sources, arrays)
            break
    return arrays


def cache_places(path: Path) -> list[Path]:
    """Where a file that belongs at `path` may be written: there, and in the user's cache folder."""
    places = []
    if path.parent.stat().st_mode & 0o222:  # else read-only: root could write there, but must not
        places.append(path)
    with suppress(RuntimeError):  # the user has no home
        places.append(_in_user_cache(path))
    return places


def store_arrays(path: Path, sources: Sequence[Path], arrays: Arrays) -> None:
    """Write arrays that `cached_arrays` will find at `path`.

    Raises OSError or RunError if they can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        np.savez(f, **{_STAMP: _stamp(sources)}, **arrays)


def are_columns(count: int, *columns: np.ndarray) -> bool:
    """Whether these are int64 or int32 arrays of so many values."""
    return all(c.shape == (count,) and c.dtype in (np.int64, np.int32) for c in columns)


def are_paths(count: int, text: np.ndarray, ends: np.ndarray) -> bool:
    """Whether `PathTable.from_arrays` makes so many paths of these arrays."""
    whole = are_columns(count + 1, ends) and text.dtype == np.uint8 and text.ndim == 1
    return whole and ends[0] == 0 and ends[-1] == len(text) and bool((np.diff(ends) >= 0).all())


def _load(
    path: Path, sources: Sequence[Path], stamp: np.ndarray, fits: Callable[[Arrays], object]
) -> Arrays | None:
    """The stored arrays; None for a file that is missing, damaged or of other data."""
    try:
        # A source that was rewritten in the middle alone has its old stamp, but is newer.
        if max(source.stat().st_mtime_ns for source in sources) > path.stat().st_mtime_ns:
            return None
        with np.load(path, allow_pickle=False) as stored:
            if any(member.compress_type for member in stored.zip.infolist()):  # not written here
                return None
            if np.array_equal(stored[_STAMP], stamp):
                arrays = {name: stored[name] for name in stored.files if name != _STAMP}
                return arrays if fits(arrays) else None
    except Exception:  # numpy and zipfile raise half a dozen kinds for a damaged file
        return None
    return None


def _stamp(sources: Sequence[Path]) -> np.ndarray:
    """Names, sizes and check sums of both ends. No times: copying a data set changes them."""
    return np.array([fingerprint(source) for source in sources], np.int64)


def fingerprint(path: Path) -> tuple[int, int, int, int]:
    """Size, check sums of both ends and of the name: what tells a file from another."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        head = zlib.crc32(f.read(_PROBE))
        f.seek(max(size - _PROBE, 0))
        return size, head, zlib.crc32(f.read(_PROBE)), zlib.crc32(os.fsencode(path.name))


def _in_user_cache(path: Path) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return folder / "face_recognition" / f"{path.stem}_{digest}{path.suffix}"
