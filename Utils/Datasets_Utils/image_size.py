"""The size of an encoded image, without decoding it."""

import io

import numpy as np
from PIL import Image


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
