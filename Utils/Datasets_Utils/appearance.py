"""What decoded images look like: whether they have an aligned face's size, and a skin's colours.

Both mistakes go unnoticed otherwise: photos that nobody aligned are cropped like any other, and
images with red and blue swapped are decoded like any other; only the figures are too low.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from Utils.Datasets_Utils.images import ImageError, describe_sizes
from Utils.Datasets_Utils.text import SHOWN

# Height and width of faces as the field distributes them; the narrow ones are SphereFace's.
ALIGNED = ((112, 112), (112, 96))

LOOKED_AT = 64  # images of a set
_COLOURED = 3.0  # mean difference of red and blue, 0..255, from which an image is no grey one
_FEWEST, _LEAST_SHARE = 10, 0.1  # coloured images from which colours are judged
_SWAPPED = 2 / 3  # share of the coloured ones that are more blue than red


def redness(image: np.ndarray) -> float:
    """How much redder than blue the middle of an image is, in grey levels; NaN for a grey one.

    image: uint8 H×W×3 RGB. Skin of any tone is redder than blue.
    """
    height, width = image.shape[0] // 4, image.shape[1] // 4
    middle = image[height : image.shape[0] - height, width : image.shape[1] - width]
    difference = middle[..., 0].astype(np.int16) - middle[..., 2]
    return float(difference.mean()) if np.abs(difference).mean() >= _COLOURED else float("nan")


def swapped_colours(reds: Sequence[float]) -> str:
    """A warning if the `redness` of images says that red and blue are swapped; else empty."""
    values = np.asarray(reds, float)
    coloured = values[~np.isnan(values)]
    if len(coloured) < max(_FEWEST, _LEAST_SHARE * len(values)):
        return ""
    blue = int((coloured < 0).sum())
    if blue <= _SWAPPED * len(coloured):
        return ""
    return (
        f"red and blue look swapped: {blue:,} of {len(coloured):,} coloured images are more blue "
        f"than red in their middle, which faces are not"
    )


def some_of(images: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """LOOKED_AT of a set's images, from all over it, without those that can't be read."""
    for index in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)).tolist():
        try:
            image = images[index]
        except ImageError:  # is reported where every image is read
            continue
        yield image


def image_warnings(
    images: Sequence[np.ndarray], input_size: tuple[int, int], name: str = ""
) -> list[str]:
    """The warnings of `look`. name: of a part of the set, to begin each with."""
    start = f"{name}: " if name else ""
    return [start + warning for warning in look(images, input_size) if warning]


def look(images: Sequence[np.ndarray], input_size: tuple[int, int]) -> tuple[str, str]:
    """(a warning about sizes, one about colours) from some of a set's images; empty if none.

    images: N of uint8 H×W×3 RGB, of which LOOKED_AT are decoded. input_size: the network's.
    """
    sizes, reds = Counter(), []
    for image in some_of(images):
        sizes[image.shape[:2]] += 1
        reds.append(redness(image))
    other = {size: n for size, n in sizes.items() if size not in (*ALIGNED, tuple(input_size))}
    size_warning = ""
    if other:
        most = describe_sizes(dict(Counter(other).most_common(SHOWN)))
        most += ", ..." if len(other) > SHOWN else ""
        size_warning = (
            f"{sum(other.values())} of {sizes.total()} images looked at do not have the size of "
            f"aligned faces, 112×112: {most}. They are scaled and their centre is "
            f"cropped. If they are photos that nobody aligned, figures are far too low: align them "
            f"first (python -m Utils.Datasets_Utils.align_faces, see docs/alignment.md), or take "
            f"an aligned copy of the set, such as lfw.bin"
        )
    return size_warning, swapped_colours(reds)
