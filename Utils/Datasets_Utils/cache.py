"""Arrays that take a scan of a large file to make, kept beside it, or elsewhere if that fails."""

from __future__ import annotations

import hashlib
import os
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from Utils.files import atomic_path

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
        with suppress(OSError):
            store_arrays(place, sources, arrays)
            break
    return arrays


def store_arrays(path: Path, sources: Sequence[Path], arrays: Arrays) -> None:
    """Write arrays that `cached_arrays` will find at `path`. Raises OSError where it can't."""
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
