"""Images and sets of the demo on disk."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from Utils.errors import RunError
from Utils.files import not_written

JPEG_QUALITY = 93


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 H×W×3 RGB in the format of the path's suffix. Raises OSError."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
    encoded, data = cv2.imencode(path.suffix, image[..., ::-1], settings)
    if not encoded:
        raise OSError(f"OpenCV could not encode {path}")
    path.write_bytes(data.tobytes())


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, which `make` fills unless it is there; it appears whole or not at all.

    make: takes an empty folder beside it. Raises RunError if it can't be written.
    """
    if folder.is_dir():
        return folder
    building = folder.with_name(f".{folder.name}.building-{os.getpid()}")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        make(building)
        if not folder.is_dir():  # else another process was faster; it made the same
            building.rename(folder)
    except OSError as error:
        raise RunError(not_written(folder, error)) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder
