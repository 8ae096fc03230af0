"""Resizing of many images at once, each from a box of its own, with an interpolation of its own.

An image is multiplied by a matrix for its rows and one for its columns, so the number of operations
does not depend on the number of images.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from Utils.devices import on_device

# Interpolations that AdaFace draws from; its fifth, Lanczos, does not exist for tensors. AREA is
# bilinear with antialiasing: it averages where the image is made smaller.
NEAREST, BILINEAR, AREA, BICUBIC = range(4)


class Lines(NamedTuple):
    """How the rows, or the columns, of n images are to be interpolated.

    Each value is one for all images, or n of them. start, length: the part of the image's line that
    is used. out: the new length, at most the image's. kind: one of the interpolations above.
    """

    start: np.ndarray | int
    length: np.ndarray | int
    out: np.ndarray | int
    kind: np.ndarray | int


def resize(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resize uint8 n×H×W×3 by weights of its rows and columns, from `interpolation_weights`."""
    height, width = images.shape[1:3]
    rows, columns = rows[:, :height, :height], columns[:, :width, :width]
    pixels = torch.bmm(rows, images.flatten(2).float()).unflatten(2, (width, 3))  # n×H×W×3
    pixels = torch.bmm(columns, pixels.transpose(1, 2).flatten(2)).unflatten(2, (height, 3))
    return pixels.transpose(1, 2).round_().clamp_(0, 255).to(torch.uint8)


def interpolation_weights(images: Tensor, lines: list[Lines]) -> tuple[Tensor, ...]:
    """Interpolation weights for each of the lines, float32 n×S×S with S the images' longer side:
    how much of each old pixel (last dimension) goes into each new one.

    They are those of `torch.nn.functional.interpolate`. A new line begins at 0; the weights of
    pixels after its end are undefined, but finite.
    """
    device, side = images.device, max(images.shape[1:3])
    *sizes, kinds = np.concatenate([np.stack(np.broadcast_arrays(*line)) for line in lines], 1)
    sizes = np.stack(sizes).astype(float)  # 3×m: start, length, out
    old = torch.arange(side, device=device, dtype=torch.float32)
    weights = torch.empty((len(kinds), side, side), device=device)
    for kind, interpolate in enumerate((_nearest, _bilinear, _area, _bicubic)):
        chosen = np.flatnonzero(kinds == kind)
        if len(chosen):
            start, length, out = on_device(sizes[:, chosen], device)[..., None, None]  # k×1×1
            found = interpolate(old, start, start + length - 1, length / out)
            weights.index_copy_(0, on_device(chosen, device), found)
    return weights.chunk(len(lines))


# Each interpolation takes old: S, the indices of a line's pixels; first, last: k×1×1, the first and
# last pixel used; scale: k×1×1, the old length divided by the new. It returns the weights k×S×S.


def _nearest(old: Tensor, first: Tensor, last: Tensor, scale: Tensor) -> Tensor:
    return (old == torch.minimum(first + (old[:, None] * scale).floor_(), last)).float()


def _bilinear(
    old: Tensor, first: Tensor, last: Tensor, scale: Tensor, radius: Tensor | float = 1.0
) -> Tensor:
    """radius: pixels at which the weight has fallen to 0."""
    weights = (1 - (old - _centre(old, first, scale)).abs_() / radius).clamp_(min=0)
    weights *= (old >= first) & (old <= last)
    return weights.div_(weights.sum(2, keepdim=True).clamp_(min=1e-6))


def _area(old: Tensor, first: Tensor, last: Tensor, scale: Tensor) -> Tensor:
    return _bilinear(old, first, last, scale, radius=scale.clamp(min=1))


def _bicubic(old: Tensor, first: Tensor, last: Tensor, scale: Tensor) -> Tensor:
    """Keys' convolution kernel of four pixels, with a = -0.75 as in PyTorch."""
    centre = _centre(old, first, scale)
    pixels = centre.floor() + torch.arange(-1, 3, device=old.device)  # k×S×4
    x = (centre - pixels).abs_()
    near = (1.25 * x - 2.25) * x**2 + 1  # x <= 1
    far = -0.75 * (((x - 5) * x + 8) * x - 4)  # 1 <= x <= 2
    shares = torch.where(x <= 1, near, far)
    pixels = torch.clamp(pixels, first, last)  # the pixel at the border is repeated
    taps = zip(pixels.split(1, 2), shares.split(1, 2), strict=True)
    return sum((old == pixel) * share for pixel, share in taps)


def _centre(old: Tensor, first: Tensor, scale: Tensor) -> Tensor:
    """k×S×1: the position of each new pixel's centre among the old pixels."""
    return first + (old[:, None] + 0.5) * scale - 0.5
