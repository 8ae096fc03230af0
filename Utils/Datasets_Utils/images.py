"""Encoded images: reading a file, decoding its bytes, its size, and whether it is whole.

Every image of the project is decoded here, so that it has the same pixels everywhere.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import stat
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from Utils.errors import UserError

# The suffixes of image files, in lower case, in the order in which they are tried.
IMAGE_SUFFIXES = (
    *(".jpg", ".png", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".jpe"),
    *(".pgm", ".ppm", ".pnm", ".pbm", ".gif", ".jp2", ".avif"),
)

# Markers of a JPEG (ITU-T T.81, B.1.1.3): start and end of image; those without a length: a stuffed
# byte, TEM, restarts.
_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_ALONE = (0x00, 0x01, *range(0xD0, 0xD8))
_RESTARTS = b"\xff\xdd"  # defines their distance
_OTHER_DATA = b"\xa5\x5a" * 32

# The largest value in the header of a PGM or PPM file.
_LARGEST = re.compile(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)\s")


# Photos have up to 200 million pixels; a file of few bytes may say that it has a thousand million.
MOST_PIXELS = 3 * 2**26

# What a file server says when it is busy or was started again, and a disk that is worn.
_MAY_PASS = {
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "ENOTCONN", "EREMOTEIO", "EHOSTDOWN")
    if hasattr(errno, name)
}
_PAUSES = (0.1, 1.0, 5.0)  # seconds, before each further try

T = TypeVar("T")


class ImageError(UserError, ValueError):
    """An image that can't be opened or decoded; the text names its file and the place in it."""


class ImageWarning(UserWarning):
    """An image that was read in spite of a flaw; the text names its place. See `noting_flaws`."""


warnings.simplefilter("ignore", ImageWarning)  # where nobody collects them
# An image that can't be decoded is an ImageError; OpenCV would print lines among the tables too.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def noting_flaws() -> Iterator[list[str]]:
    """Yield a list that has the texts of the block's ImageWarnings at its end."""
    flaws: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ImageWarning)
        yield flaws
    flaws += [str(warning.message) for warning in caught]


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def without_suffix(name: str) -> str:
    """A name without an image's suffix, if it has one: other dots may belong to it."""
    return os.path.splitext(name)[0] if is_image_name(name) else name


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 H×W×3 RGB; grey and 16-bit images are converted.

    Raises ImageError, naming the file, if it can't be opened or is not an image.
    """
    return decode_image(read_encoded(path), os.fspath(path))


def read_encoded(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as uint8. Raises ImageError, naming it, if it can't be opened."""
    path = os.fspath(path)

    def read() -> np.ndarray:
        # cv2.imread uses the system's code page and fails on some non-ASCII paths.
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(f"{path}: is no file but a pipe, a device or the like")
            return np.frombuffer(file.read(), np.uint8)

    try:
        return persistently(read, path)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error}); check the "
            "path and its permissions"
        ) from None


def _without_waiting(path: str, flags: int) -> int:
    """Opens a file; a pipe, too, at once."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def persistently(read: Callable[[], T], place: str) -> T:
    """What `read` returns, if need be at a later try, with an ImageWarning: file servers fail now
    and then. Raises what the last try raised."""
    for pause in (*_PAUSES, None):
        try:
            found = read()
        except OSError as error:
            if pause is None or error.errno not in _MAY_PASS:
                raise
            reason = error.strerror
            time.sleep(pause)
            continue
        if pause != _PAUSES[0]:
            text = f"{place}: read only when tried again, after {reason!r}"
            warnings.warn(text, ImageWarning, stacklevel=2)
        return found
    raise AssertionError("the last try returns or raises")


def decode_image(encoded: bytes | np.ndarray, place: str, flags: int = 0) -> np.ndarray:
    """The image in the bytes of a file as uint8 H×W×3 RGB.

    place: the file and the place in it, for messages. flags: of cv2.imdecode, beside
    IMREAD_COLOR. A JPEG that only lacks its end marker, or
    that has bytes after it, is read with an ImageWarning. Raises ImageError for bytes that are not
    an image, and for a truncated JPEG: some versions of OpenCV fill the missing rows with grey.
    """
    encoded = np.frombuffer(encoded, np.uint8)
    _check_size(encoded, place)
    if encoded[:2].tobytes() == _SOI and encoded[-2:].tobytes() != _EOI:
        encoded = _jpeg_alone(encoded.tobytes(), place)
    header = _LARGEST.match(encoded[:200].tobytes())
    largest = int(header[1]) if header else 255
    try:
        if largest in (255, 65535):
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | flags)
        else:  # which OpenCV does not scale
            image = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            image = np.uint8(np.clip(image * (255 / largest), 0, 255).round())
    except (cv2.error, TypeError, ZeroDivisionError):  # no bytes, or a header with an absurd size
        image = None
    if image is None:
        raise ImageError(
            f"{place}: {encoded.size} bytes that are not an image OpenCV can decode; expected a "
            "whole JPEG, PNG or BMP file, copy it again or take it off the list"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)  # in place


def _check_size(encoded: np.ndarray, place: str) -> None:
    """Raise ImageError for an image whose header says more pixels than a photo has: they would fill
    the memory, whatever they are."""
    head = encoded[:32].tobytes()
    if head.startswith(_SOI):
        size = _jpeg_size(encoded)
    elif head.startswith(b"\x89PNG") and len(head) > 23:
        size = struct.unpack(">II", head[16:24])[::-1]
        if size[0] * size[1] > MOST_PIXELS // 4 and _is_animation(encoded):
            raise ImageError(f"{place}: an animation, not a photo; take it off the list")
    else:
        size = image_size(encoded) or (0, 0)
    # OpenCV makes 32-bit floats of Radiance's pictures before it makes bytes of them.
    if size[0] * size[1] > MOST_PIXELS or head.startswith(b"#?R"):
        raise ImageError(
            f"{place}: {encoded.size:,} bytes that say they are {size[0]:,}×{size[1]:,} pixels; at "
            f"most {MOST_PIXELS:,} are read, make it smaller or take it off the list"
        )


def _is_animation(encoded: np.ndarray) -> bool:
    """Whether a PNG says before its first pixels that it has several frames."""
    at = 8
    while at + 8 <= encoded.size:
        length, kind = struct.unpack(">I4s", encoded[at : at + 8].tobytes())
        if kind in (b"acTL", b"IDAT"):
            return kind == b"acTL"
        at += 12 + length
    return False


def _jpeg_size(encoded: np.ndarray) -> tuple[int, int]:
    """(height, width) by the header of a JPEG's frame; (0, 0) without one."""
    at, end = len(_SOI), len(encoded) - 9
    while at < end:
        first, marker = encoded[at : at + 2].tolist()
        if first != 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack(">HH", encoded[at + 5 : at + 9].tobytes())
        elif marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4].tobytes(), "big")
    return 0, 0


def image_size(encoded: bytes | np.ndarray) -> tuple[int, int] | None:
    """(height, width) by the image's header, without decoding it; None without such a header,
    65535×65535 for a size that Pillow refuses to name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(encoded)) as image:
                return image.height, image.width
    except Image.DecompressionBombError:
        return 65535, 65535
    except Exception:  # Pillow raises many kinds for a damaged header
        return None


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring uint8 H×W×3 to (height, width): scale it to cover the size, then crop its centre.

    An image that already covers the size in one direction exactly is only cropped: a 112×112 face
    becomes the 112×96 face of the SphereFace alignment by losing 8 columns on either side.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    factor = max(size[0] / height, size[1] / width)
    if factor != 1:
        scaled = (max(size[1], round(width * factor)), max(size[0], round(height * factor)))
        # Areas are averaged when an image shrinks: other filters skip pixels, and alias.
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, scaled, interpolation=how)
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def fit_points(
    points: np.ndarray, image_size: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """Where `fit_image` brings K×2 points, x and y in pixels, of an image of (height, width)."""
    given, wanted = np.array(image_size[::-1]), np.array(size[::-1])
    scaled = np.maximum(wanted, np.round(given * (wanted / given).max()))
    return (points + 0.5) * scaled / given - 0.5 - (scaled - wanted) // 2


def image_suffix(encoded: bytes | np.ndarray) -> str:
    """The suffix for a file of these bytes, by their first ones; .jpg for an unknown format."""
    head = bytes(encoded[:12])
    for magic, suffix in ((b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"II*\0", ".tif")):
        if head.startswith(magic):
            return suffix
    return ".webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else ".jpg"


def describe_sizes(sizes: dict[tuple[int, int] | None, int]) -> str:
    """`112×112 (6,000), 250×250 (12)`: height × width, the most frequent first.

    sizes: how many images have which (height, width), None for unreadable ones.
    """
    counted = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{f'{size[0]}×{size[1]}' if size else 'unreadable'} ({count:,})" for size, count in counted
    )


def inspect_image(encoded: bytes | np.ndarray, place: str) -> tuple[np.ndarray, tuple[int, int]]:
    """(uint8 H×W×3 RGB, 128-bit digest of the pixels as two int64) of an image.

    Raises ImageError for an image that OpenCV can't decode, or that Pillow, which is stricter,
    calls damaged or truncated.
    """
    image = decode_image(encoded, place)
    if bytes(encoded[:2]) != _SOI:  # whether a JPEG is whole was seen by decoding it
        try:
            with Image.open(io.BytesIO(encoded)) as strict:
                strict.load()
        except Exception as error:  # Pillow raises many kinds
            raise ImageError(f"{place}: damaged or cut short ({error})") from None
    height, width = image.shape[:2]
    digest = hashlib.blake2b(image, digest_size=16, person=b"%d %d" % (height, width)).digest()
    first, second = np.frombuffer(digest, np.int64).tolist()
    return image, (first, second)


def _jpeg_alone(content: bytes, place: str) -> np.ndarray:
    """A JPEG without the bytes after it, or with the end marker that it lacks, and an ImageWarning.

    Raises ImageError if more than the end marker is missing.
    """
    if end := _jpeg_end(content):
        after = f"{place}: {len(content) - end:,} bytes after the end of a JPEG"
        warnings.warn(after, ImageWarning, stacklevel=2)
        return np.frombuffer(content, np.uint8, end)
    # Zeros fill files that were never written to their end. A stuffed 0 belongs to the 0xFF before.
    whole = content.rstrip(b"\0")
    whole += b"\0" * whole.endswith(b"\xff")
    if not _has_all_pixels(whole):
        raise ImageError(
            f"{place}: {len(content)} bytes of a JPEG that is cut short, its end marker FF D9 is "
            "missing; copy it again or take it off the list"
        )
    warnings.warn(f"{place}: a JPEG without its end marker", ImageWarning, stacklevel=2)
    return np.frombuffer(whole + _EOI, np.uint8)


def _jpeg_end(content: bytes) -> int:
    """Where the first image of a JPEG file ends, without those embedded in it; 0: it does not."""
    at = len(_SOI)
    while 0 <= at < len(content) - 1:
        marker = content[at + 1]
        if content[at] != 0xFF:
            at = content.find(b"\xff", at)
        elif marker == _EOI[1]:
            return at + 2
        elif marker == 0xFF:  # any number may precede a marker
            at += 1
        else:
            size = 0 if marker in _ALONE else int.from_bytes(content[at + 2 : at + 4], "big")
            at += 2 + size
    return 0


def _has_all_pixels(content: bytes) -> bool:
    """Whether a JPEG without end marker is complete: then no pixel depends on what follows it.

    Of a progressive one it can't be told: without its last scans it is only less sharp.
    """
    following = [b"", _OTHER_DATA]
    if _RESTARTS in content:  # other data is skipped up to the next restart marker
        following += [bytes((0xFF, number)) + _OTHER_DATA for number in range(0xD0, 0xD8)]
    try:
        found = [Image.open(io.BytesIO(content + more + _EOI)) for more in following]
        first, *others = map(np.asarray, found)
    except Exception:  # Pillow raises many kinds
        return False
    progressive = "progressive" in found[0].info
    return not progressive and all(np.array_equal(first, other) for other in others)
