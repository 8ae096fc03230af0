"""Reading one image file, the same way everywhere.

The size of an encoded image, without decoding it.

Whether an encoded image is whole, how large it is, and which pixels it has.
"""

from __future__ import annotations

import hashlib
import io
import os

import cv2
import numpy as np
from PIL import Image

from Utils.errors import UserError

# Of files that hold images, in lower case; a name without one is tried with each in this order.
IMAGE_SUFFIXES = (".jpg", ".png", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


class ImageError(UserError, ValueError):
    """An image file that cannot be opened or decoded; the message names it."""


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 H×W×3, RGB; grey and 16-bit images are converted.

    Raises ImageError naming the file when it cannot be opened or is not an image.
    """
    return decode_image(read_encoded(path), os.fspath(path))


def read_encoded(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as uint8. Raises ImageError naming it when it cannot be opened."""
    path = os.fspath(path)
    try:
        # cv2.imread goes through the system's code page and fails on some non-ASCII paths.
        with open(path, "rb", buffering=0) as file:
            return np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be opened ({error.strerror or error}); check the path and its "
            "permissions"
        ) from error


def decode_image(encoded: bytes | np.ndarray, place: str) -> np.ndarray:
    """The image in the bytes of a file as uint8 H×W×3, RGB.

    place: where they come from, for the error. Raises ImageError where they are no image, or a
    JPEG that is cut short: not every OpenCV refuses one, some fill what is missing with grey.
    """
    encoded = np.frombuffer(encoded, np.uint8)
    if _is_cut_short(encoded):
        raise ImageError(
            f"{place}: {encoded.size} bytes of a JPEG that is cut short, its end marker FF D9 is "
            "missing; copy it again or take it off the list"
        )
    image = _decode(encoded)
    if image is None:
        raise ImageError(
            f"{place}: {encoded.size} bytes that are not an image OpenCV can decode; expected a "
            "whole JPEG, PNG or BMP file, copy it again or take it off the list"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)  # in place


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_suffix(encoded: bytes | np.ndarray) -> str:
    """The suffix that a file of these bytes should have, from its first ones; .jpg if unknown."""
    head = bytes(encoded[:12])
    for magic, suffix in ((b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"II*\0", ".tif")):
        if head.startswith(magic):
            return suffix
    return ".webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else ".jpg"


def _is_cut_short(encoded: np.ndarray) -> bool:
    """Whether it is a JPEG whose end is missing (ITU-T T.81, B.1.1.3: SOI, SOS and EOI markers).

    A thumbnail inside has an end marker of its own, but the photo's pixels begin after it.
    """
    if encoded[:2].tobytes() != b"\xff\xd8":
        return False
    content = encoded.tobytes()
    end = content.rfind(b"\xff\xd9")
    return end < 0 or content.find(b"\xff\xda", end) >= 0


def _decode(encoded: np.ndarray) -> np.ndarray | None:
    try:
        return cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error:  # an empty file, or a header with an absurd size
        return None


def fit_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bring uint8 H×W×3 to (height, width): scaled to cover it, then its middle cut out.

    An image that already covers it in one direction exactly is only cut: a 112×112 face becomes
    the 112×96 one of the SphereFace alignment by losing 8 columns on either side.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    factor = max(size[0] / height, size[1] / width)
    if factor != 1:
        scaled = (max(size[1], round(width * factor)), max(size[0], round(height * factor)))
        # Averaging over areas when shrinking: other filters skip pixels, and alias.
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, scaled, interpolation=how)
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def image_size(encoded: bytes | np.ndarray) -> tuple[int, int] | None:
    """(height, width) as the image's header says; None where there is no header to read."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except Exception:  # Pillow raises many kinds for a damaged header
        return None


def describe_sizes(sizes: dict[tuple[int, int] | None, int]) -> str:
    """`112×112 (6,000), 250×250 (12)`, the most frequent first; height first."""
    counted = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(f"{_size_text(size)} ({count:,})" for size, count in counted)


def _size_text(size: tuple[int, int] | None) -> str:
    return f"{size[0]}×{size[1]}" if size else "unreadable"


_JPEG_BEGIN, _JPEG_END = b"\xff\xd8", b"\xff\xd9"


def examine(encoded: bytes | np.ndarray, place: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width), 128-bit digest of the pixels as two int64) of an image.

    Raises ImageError for one that can't be decoded, or that Pillow, which forgives less than
    OpenCV, calls damaged or cut short.
    """
    image = decode_image(encoded, place)
    if _may_be_cut_short(encoded):
        _decode_strictly(encoded, place)
    height, width = image.shape[:2]
    digest = hashlib.blake2b(image, digest_size=16, person=b"%d %d" % (height, width)).digest()
    first, second = np.frombuffer(digest, np.int64).tolist()
    return (height, width), (first, second)


def _may_be_cut_short(encoded: bytes | np.ndarray) -> bool:
    """All but JPEGs that end as they must; those need no second look."""
    return bytes(encoded[:2]) != _JPEG_BEGIN or bytes(encoded[-2:]) != _JPEG_END


def _decode_strictly(encoded: bytes | np.ndarray, place: str) -> None:
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
    except Exception as error:  # Pillow raises many kinds
        raise ImageError(f"{place}: damaged or cut short ({error})") from None
