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
    path = os.fspath(path)
    try:
        # cv2.imread goes through the system's code page and fails on some non-ASCII paths.
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(
            f"{path}: cannot be opened ({error.strerror or error}); check the path and its "
            "permissions"
        ) from error
    image = _decode(encoded)
    if image is None:
        raise ImageError(
            f"{path}: {encoded.size} bytes that are not an image OpenCV can decode; expected a "
            "whole JPEG, PNG or BMP file, copy it again or take it off the list"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


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
