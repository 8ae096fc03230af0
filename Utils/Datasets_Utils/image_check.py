"""Whether an encoded image is whole, how large it is, and which pixels it has."""

import hashlib
import io

import numpy as np
from PIL import Image

from Utils.Datasets_Utils.images import ImageError, decode_image

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
