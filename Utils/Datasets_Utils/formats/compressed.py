"""Tars that are compressed as a whole (.tgz, .tar.gz, .tar.xz, .tar.bz2): decompressed once.

A compressed tar has to be read from its beginning to reach any image, so its tar is kept: beside it
as a hidden file, or in the user's cache folder where that can't be written. The tar alone is
written, no member of it: names in it decide nothing, links are not followed, and `archive` reads
the images in place with the checks that it makes of any tar.
"""

import bz2
import gzip
import hashlib
import lzma
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from Utils.Datasets_Utils.formats.storage import cache_places, fingerprint, progress_bar
from Utils.Datasets_Utils.text import quoted
from Utils.errors import DataError, RunError
from Utils.files import atomic_path, make_folder, reading

# Photos hardly get smaller: an archive that grows more than this is no archive of photos.
MOST_GROWTH = 20
_ALWAYS_ALLOWED = 1 << 26  # bytes that any file may grow to
_LEFT_FREE = 1 << 30  # bytes of the disk
_CHUNK = 1 << 20

_OPENERS: dict[bytes, Callable[..., BinaryIO]] = {
    b"\x1f\x8b": gzip.open,
    b"\xfd7zXZ\0": lzma.open,
    b"BZh": bz2.open,
}
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError)


def is_compressed_tar(path: Path) -> bool:
    """Whether a file is a compressed tar, by its contents."""
    opener = _opener(path)
    if opener is None:
        return False
    try:
        with opener(path) as tar:
            return tar.read(512)[257:262] == b"ustar"
    except _DAMAGE:
        return False


def unpacked(path: Path) -> Path:
    """The tar in a compressed one, decompressed with a progress bar unless it was before.

    Raises DataError for an archive that is damaged, or grows beyond what photos can; RunError
    where the tar can't be written.
    """
    return made_once(path, ".tar", "unpacked", _unpack)


def made_once(path: Path, suffix: str, what: str, make: Callable[[Path, Path], None]) -> Path:
    """The file that `make(path, target)` makes of a file, unless it was made before: beside it as a
    hidden file, or in the user's cache folder where that can't be written.

    what: what is done to the file, for messages. Raises what `make` raises; RunError of one place
    leads to the next.
    """
    digest = hashlib.sha256(repr(fingerprint(path)).encode()).hexdigest()[:16]
    places = cache_places(path.with_name(f".{path.name}.{digest}{suffix}"))
    for place in places:
        if place.is_file():
            return place
    for last, place in enumerate(places, 1):
        try:
            make_folder(place.parent)
            make(path, place)
            return place
        except RunError:
            if last == len(places):
                raise
    raise RunError(f"{path} can't be {what}: neither its folder nor a home can be written to.")


def room_for(path: Path, target: Path) -> tuple[int, int]:
    """The most bytes that what is made of a file may have: by its own size, and by the disk of the
    target."""
    room = shutil.disk_usage(target.parent).free - _LEFT_FREE
    return max(MOST_GROWTH * path.stat().st_size, _ALWAYS_ALLOWED), room


def _opener(path: Path) -> Callable[..., BinaryIO] | None:
    with open(path, "rb") as f:
        head = f.read(6)
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)


def _unpack(path: Path, target: Path) -> None:
    size = path.stat().st_size
    limit, room = room_for(path, target)
    with (
        reading(path, "archive"),
        open(path, "rb") as raw,
        _opener(path)(raw) as tar,
        atomic_path(target) as temporary,
        open(temporary, "wb") as out,
        progress_bar(f"Unpacking {path.name} to {target.parent}", size, "B") as bar,
    ):
        while chunk := _read(tar, path):
            out.write(chunk)
            bar.update(raw.tell() - bar.n)
            if out.tell() > limit:
                raise DataError(
                    f"{path} unpacks to more than {limit:,} bytes, {MOST_GROWTH} times its own "
                    f"size, which no archive of photos does; if you trust it, {_by_hand(path)}."
                )
            if out.tell() > room:
                raise RunError(
                    f"{target.parent} has no room for what {path} unpacks to ({room:,} bytes "
                    f"were tried); on a larger disk, {_by_hand(path)}."
                )


def _by_hand(path: Path) -> str:
    folder = quoted(path.with_name(f"{path.name.partition('.')[0]}_unpacked"))
    return f"`mkdir {folder} && tar -xf {quoted(path)} -C {folder}` unpacks it; then give {folder}"


def _read(tar: BinaryIO, path: Path) -> bytes:
    try:
        return tar.read(_CHUNK)
    except _DAMAGE as error:
        raise DataError(
            f"{path} can't be unpacked, it is damaged or cut short ({error}); copy it again."
        ) from None
