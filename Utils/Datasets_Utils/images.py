"""Encoded images: reading a file, decoding its bytes, its size, and whether it is whole.

Every image of the project is decoded here, so that it has the same pixels everywhere.
"""

from __future__ import annotations

import hashlib
import io
import os

import cv2
import numpy as np
from PIL import Image

from Utils.errors import UserError

# The suffixes of image files, in lower case, in the order in which they are tried.
IMAGE_SUFFIXES = (
    *(".jpg", ".png", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".jpe"),
    *(".pgm", ".ppm", ".pnm", ".pbm", ".pam", ".gif", ".jp2", ".avif"),
)

# Markers of a JPEG (ITU-T T.81, B.1.1.3): start of image, start of scan, end of image.
_SOI, _SOS, _EOI = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


class ImageError(UserError, ValueError):
    """An image that can't be opened or decoded; the text names its file and the place in it."""


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its suffix, in lower or upper case."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """The image in a file as uint8 H×W×3 RGB; grey and 16-bit images are converted.

    Raises ImageError, naming the file, if it can't be opened or is not an image.
    """
    return decode_image(read_encoded(path), os.fspath(path))


def read_encoded(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file as uint8. Raises ImageError, naming it, if it can't be opened."""
    path = os.fspath(path)
    try:
        # cv2.imread uses the system's code page and fails on some non-ASCII paths.
        with open(path, "rb", buffering=0) as file:
            return np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be opened ({error.strerror or error}); check the path and its "
            "permissions"
        ) from None


def decode_image(encoded: bytes | np.ndarray, place: str) -> np.ndarray:
    """The image in the bytes of a file as uint8 H×W×3 RGB.

    place: the file and the place in it, for the error. Raises ImageError for bytes that are not an
    image, and for a truncated JPEG: some versions of OpenCV fill the missing rows with grey.
    """
    encoded = np.frombuffer(encoded, np.uint8)
    if _is_cut_short(encoded):
        raise ImageError(
            f"{place}: {encoded.size} bytes of a JPEG that is cut short, its end marker FF D9 is "
            "missing; copy it again or take it off the list"
        )
    try:
        image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    except cv2.error:  # no bytes, or a header with an absurd size
        image = None
    if image is None:
        raise ImageError(
            f"{place}: {encoded.size} bytes that are not an image OpenCV can decode; expected a "
            "whole JPEG, PNG or BMP file, copy it again or take it off the list"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)  # in place


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


def image_suffix(encoded: bytes | np.ndarray) -> str:
    """The suffix for a file of these bytes, by their first ones; .jpg for an unknown format."""
    head = bytes(encoded[:12])
    for magic, suffix in ((b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"II*\0", ".tif")):
        if head.startswith(magic):
            return suffix
    return ".webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else ".jpg"


def image_size(encoded: bytes | np.ndarray) -> tuple[int, int] | None:
    """(height, width) by the image's header, without decoding it; None without such a header."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.height, image.width
    except Exception:  # Pillow raises many kinds for a damaged header
        return None


def describe_sizes(sizes: dict[tuple[int, int] | None, int]) -> str:
    """`112×112 (6,000), 250×250 (12)`: height × width, the most frequent first.

    sizes: how many images have which (height, width), None for unreadable ones.
    """
    counted = sorted(sizes.items(), key=lambda item: -item[1])
    return ", ".join(
        f"{f'{size[0]}×{size[1]}' if size else 'unreadable'} ({count:,})" for size, count in counted
    )


def inspect_image(
    encoded: bytes | np.ndarray, place: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((height, width), 128-bit digest of the pixels as two int64) of an image.

    Raises ImageError for an image that OpenCV can't decode, or that Pillow, which is stricter,
    calls damaged or truncated.
    """
    image = decode_image(encoded, place)
    # A JPEG that ends with its end marker needs no second decoder.
    if bytes(encoded[:2]) != _SOI or bytes(encoded[-2:]) != _EOI:
        try:
            with Image.open(io.BytesIO(encoded)) as strict:
                strict.load()
        except Exception as error:  # Pillow raises many kinds
            raise ImageError(f"{place}: damaged or cut short ({error})") from None
    height, width = image.shape[:2]
    digest = hashlib.blake2b(image, digest_size=16, person=b"%d %d" % (height, width)).digest()
    first, second = np.frombuffer(digest, np.int64).tolist()
    return (height, width), (first, second)


def _is_cut_short(encoded: np.ndarray) -> bool:
    """Whether it is a JPEG without its end.

    An embedded thumbnail has an end marker of its own, but the photo's scan begins after it.
    """
    if encoded[:2].tobytes() != _SOI:
        return False
    content = encoded.tobytes()
    end = content.rfind(_EOI)
    return end < 0 or content.find(_SOS, end) >= 0
