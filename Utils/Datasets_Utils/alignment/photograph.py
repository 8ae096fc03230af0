"""Photographs as cameras and programs write them: upright, in 8 bits, and of any size.

The EXIF orientation turns a photograph upright, in every format that can have one. A large JPEG is
decoded at a half, a quarter or an eighth of its size, in as little memory.
"""

import io
import warnings
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageOps

from Utils.Datasets_Utils.images import ImageError, decode_image

# A pixel takes up to 9 bytes, in each process that aligns.
MOST_PIXELS = 1 << 27
_MOST_OF_A_JPEG = 1 << 26  # of more, less is decoded

_LONGEST = 32_766  # pixels of a side: OpenCV warps no larger ones

FRAMES = ("upright", "stored")

_HEIC = (b"ftypheic", b"ftypheix", b"ftyphevc")
_ORIENTATION = 0x0112  # EXIF's tag
# By its value: whether rows become columns, and then whether x and y run the other way.
_TURNS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
_AS_STORED = (False, False, False)
_REDUCED = {2: 16, 4: 32, 8: 64}  # OpenCV's flags, beside IMREAD_COLOR


@dataclass(frozen=True, eq=False)
class Photograph:
    """image: uint8 H×W×3 RGB, upright. size: (height, width) of the whole photograph, upright;
    larger than the image's where it was decoded at a smaller size. orientation: EXIF's, 1 to 8."""

    image: np.ndarray
    size: tuple[int, int]
    orientation: int = 1

    @property
    def _scale(self) -> float:
        return self.image.shape[1] / self.size[1]

    def on_image(self, points: np.ndarray) -> np.ndarray:
        """Points (…×2) of the upright photograph, in pixels of the image."""
        return points if self._scale == 1 else (points + 0.5) * self._scale - 0.5

    def on_photograph(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `on_image`."""
        return points if self._scale == 1 else (points + 0.5) / self._scale - 0.5

    def upright(self, points: np.ndarray) -> np.ndarray:
        """Points (…×2) of the photograph as it is stored, in the upright one."""
        swap, flip_x, flip_y = _TURNS.get(self.orientation, _AS_STORED)
        points = points[..., ::-1] if swap else points
        last = np.array(self.size[::-1]) - 1
        return np.where((flip_x, flip_y), last - points, points)


def open_photograph(encoded: bytes | np.ndarray, place: str) -> Photograph:
    """Decode a photograph. place: its file, for messages.

    Transparency is ignored, as the rest of the project does. Raises ImageError for bytes that are
    no image, and for an image too large that can't be decoded at a smaller size.
    """
    encoded = np.frombuffer(encoded, np.uint8)
    if not encoded.size:
        raise ImageError(f"{place}: the file is empty")
    if encoded[4:12].tobytes() in _HEIC:
        raise ImageError(f"{place}: a HEIC photograph, which OpenCV can't decode; save it as JPEG")
    header = _open(encoded)
    if header is None:  # OpenCV may know the format, and turns upright what it can
        image = decode_image(encoded, place)
        return Photograph(image, image.shape[:2])
    with header, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
        width, height = header.size
        orientation = _orientation(header)
        if width * height <= MOST_PIXELS and header.format == "TIFF" and header.mode == "RGBA":
            image = _with_alpha(header, place)  # OpenCV would darken what is transparent
            return Photograph(image, image.shape[:2], orientation)
        reduction = _reduction(header, place)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | _REDUCED.get(reduction, 0)
    image = decode_image(encoded, place, flags)
    swap, flip_x, flip_y = _TURNS.get(orientation, _AS_STORED)
    if header.format != "TIFF":  # which OpenCV and Pillow turn in any case
        if swap:
            image, height, width = image.transpose(1, 0, 2), width, height
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return Photograph(np.ascontiguousarray(image), (height, width), orientation)


def _open(encoded: np.ndarray) -> Image.Image | None:
    """The image's header, without a limit of its size; None for a format that Pillow lacks."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(io.BytesIO(encoded))
    except Exception:  # Pillow raises many kinds for a damaged header
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _orientation(header: Image.Image) -> int:
    exif = Image.Exif()
    try:
        if header.format == "PNG":  # for which Pillow's getexif decodes the image
            exif.load(header.info.get("exif", b""))
        else:
            exif = header.getexif()
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF data
        return 1


def _reduction(header: Image.Image, place: str) -> int:
    """By what to divide the size: 1, 2, 4 or 8. Raises ImageError if that can't be done."""
    width, height = header.size
    pixels, longest = width * height, max(width, height)
    # All coefficients of a progressive JPEG are in memory before the first pixel.
    progressive = "progressive" in header.info and pixels > MOST_PIXELS
    if header.format in ("JPEG", "MPO") and not progressive:
        for factor in (1, *_REDUCED):
            if pixels <= _MOST_OF_A_JPEG * factor**2 and longest <= _LONGEST * factor:
                return factor
    elif pixels <= MOST_PIXELS and longest <= _LONGEST:
        return 1
    raise ImageError(
        f"{place}: {width:,}×{height:,} pixels are more than the {MOST_PIXELS:,}, and {_LONGEST:,} "
        f"a side, that are decoded; shrink it, or save it as a JPEG that is not progressive"
    )


def _with_alpha(header: Image.Image, place: str) -> np.ndarray:
    try:
        return np.array(ImageOps.exif_transpose(header).convert("RGB"))
    except Exception as error:  # Pillow raises many kinds
        raise ImageError(f"{place}: damaged or cut short ({error})") from None
