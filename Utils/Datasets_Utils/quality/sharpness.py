"""How blurred a crop is, and how many pixels of the original photograph are in it."""

from functools import lru_cache

import cv2
import numpy as np

SIDE = 112  # pixels: the height at which crops are looked at
_FILTER = 9  # pixels of the low-pass filter; the paper's value
_LOWEST, _NOISE = 3, 46  # cycles in the crop's height: less is not seen as detail, more is noise
_SHARE = 0.95  # of the weighted energy
# The cycles in the height below which that share lies, and the height of the original. Medians over
# 40 photographs of LFW, shrunk to that height and enlarged again by three filters (linear, cubic,
# Lanczos), as they are and as JPEGs of quality 90 and 70.
_SEEN = np.log([(8.3, 17), (10.3, 22), (12.4, 28), (15.3, 39), (18.3, 56), (24.5, SIDE)]).T


def grey(image: np.ndarray) -> np.ndarray:
    """An image, uint8 H×W×3 RGB, as float32 of the height SIDE."""
    height, width = image.shape[:2]
    flat = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if height != SIDE:
        size = (max(1, round(width * SIDE / height)), SIDE)
        how = cv2.INTER_AREA if height > SIDE else cv2.INTER_LINEAR
        flat = cv2.resize(flat, size, interpolation=how)
    return flat.astype(np.float32)


def blur(flat: np.ndarray) -> float:
    """From 0, sharp, to 1, blurred: the share of the differences between neighbouring pixels that
    is left when the image is blurred once more; NaN for an image of one colour.

    flat: float H×W. Contrast and brightness do not change it. Crété-Roffet, Dolmiere, Ladret,
    Nicolas: "The Blur Effect: Perception and Estimation with a New No-Reference Perceptual Blur
    Metric" (2007); of the two directions the worse one.
    """
    both = (_blur_down(flat), _blur_down(np.ascontiguousarray(flat.T)))
    return max((value for value in both if not np.isnan(value)), default=float("nan"))


def _blur_down(flat: np.ndarray) -> float:
    again = cv2.blur(flat, (1, _FILTER))
    before = np.abs(np.diff(flat, axis=0))
    lost = np.maximum(0, before - np.abs(np.diff(again, axis=0)))
    total = float(before.sum())
    return 1 - float(lost.sum()) / total if total else float("nan")


def original_height(flat: np.ndarray) -> float:
    """About how many pixels of the original the crop's height was, at most SIDE; NaN for an image
    of one colour.

    flat: of `grey`. A crop that was enlarged lacks the high frequencies: most of its energy, each
    frequency weighted with itself, Σ f |F|², lies below a frequency that is the lower the smaller
    the face was. A blurred crop is like one of a smaller face: there is no more to see in it. Twice
    the mean of the highest frequencies is subtracted first: noise, and the edges of JPEG's blocks.
    """
    window, rings, counts = _rings(flat.shape[1])
    power = np.abs(np.fft.rfft2((flat - flat.mean()) * window)) ** 2
    power = np.bincount(rings, power.ravel())[: SIDE // 2 + 1] / counts
    cycles = np.arange(len(power))
    detail = np.maximum(power - 2 * power[_NOISE:].mean(), 0) * cycles**2
    detail[:_LOWEST] = 0
    below = detail.cumsum()
    if not below[-1] > 0:
        return float("nan")
    found = np.interp(_SHARE * below[-1], below, cycles)
    seen, heights = _SEEN
    height = np.exp(np.interp(np.log(found), seen, heights))
    return float(min(height, height * found / np.exp(seen[0])))


@lru_cache
def _rings(width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(window SIDE×width, the ring of each frequency of rfft2, how many are in each ring)."""
    window = np.outer(np.hanning(SIDE + 2)[1:-1], np.hanning(width + 2)[1:-1])
    distance = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(width))
    rings = np.round(distance * SIDE).astype(np.int64).ravel()
    return window, rings, np.maximum(np.bincount(rings)[: SIDE // 2 + 1], 1)
