"""Reading one image file, the same way everywhere."""

from __future__ import annotations

import os

import cv2
import numpy as np


class ImageError(ValueError):
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
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be opened ({error.strerror or error}); check the path and its "
            "permissions"
        ) from error


def decode_image(encoded: bytes | np.ndarray, place: str) -> np.ndarray:
    """The image in the bytes of a file as uint8 H×W×3, RGB.

    place: where they come from, for the error. Raises ImageError where they are no image.
    """
    encoded = np.frombuffer(encoded, np.uint8)
    image = _decode(encoded)
    if image is None:
        raise ImageError(
            f"{place}: {encoded.size} bytes that are not an image OpenCV can decode; expected a "
            "whole JPEG, PNG or BMP file, copy it again or take it off the list"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def image_suffix(encoded: bytes | np.ndarray) -> str:
    """The suffix that a file of these bytes should have, from its first ones; .jpg if unknown."""
    head = bytes(encoded[:12])
    for magic, suffix in ((b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"II*\0", ".tif")):
        if head.startswith(magic):
            return suffix
    return ".webp" if head[:4] == b"RIFF" and head[8:] == b"WEBP" else ".jpg"


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
