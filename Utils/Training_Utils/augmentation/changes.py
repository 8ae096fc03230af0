"""Random changes of the training images, computed on the device for all chosen images at once.

Random numbers are drawn for each image. torchvision's random transforms draw them once for a whole
batch, and from global generators that no checkpoint holds; here those of a batch come from one
generator on the CPU, so that no step waits for the device to learn the size of a crop. The number
of operations on the device does not depend on the number of images. The results are those of
`torchvision.transforms.v2.functional`, to within 1 of 255 where an image is resized.

The ranges of crop, low resolution and jitter are those of AdaFace (Kim et al., CVPR 2022, and its
code), which applies each with probability 0.2; the range of erasing is that of Zhong et al. (AAAI
2020).
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Config import Config
from Utils.devices import on_device
from Utils.Training_Utils.augmentation.jpeg import jpeg
from Utils.Training_Utils.augmentation.resizing import (
    AREA,
    Lines,
    interpolation_weights,
    resize,
)

Bounds = tuple[float, float]

CROP_RATIO = (3 / 4, 4 / 3)  # width / height
LOW_RES_SIDE = (0.2, 1.0)  # of the image's side
JITTER = (0.5, 1.5)  # factors of brightness, contrast and saturation
JPEG_QUALITY = (20, 95)
ERASED_AREA = (0.02, 0.4)  # of the image's area
ERASED_RATIO = (0.3, 1 / 0.3)

BRIGHTNESS, CONTRAST, SATURATION = range(3)

_ORDERS = np.array(list(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION))))
_STEPS = 5  # crop, low resolution, jitter, JPEG, erasing
_DRAWS = 5  # the most that a step needs, besides the one that decides whether it is applied


@dataclass(frozen=True)
class Augmentation:
    """The probability with which each change is applied to a training image.

    flip: mirrored. crop: a box of at least `crop_scale` of the area is kept; crop_kind "resize"
    enlarges it to the whole image, "blank" leaves it where it is and makes the rest black, as
    AdaFace does. low_res: made smaller and enlarged again. jitter: brightness, contrast and
    saturation, in a random order. jpeg: compressed. erasing: a box is replaced by noise.
    """

    flip: float = 0.5
    crop: float = 0.0
    crop_kind: str = "resize"
    crop_scale: float = 0.2
    low_res: float = 0.0
    jitter: float = 0.0
    jpeg: float = 0.0
    erasing: float = 0.0

    @property
    def only_flips(self) -> bool:
        """Whether an image is changed in no other way than by mirroring."""
        return not any((self.crop, self.low_res, self.jitter, self.jpeg, self.erasing))

    def flips(self, count: int, generator: torch.Generator) -> Tensor:
        """bool N on the generator's device: which images `Preprocessing` is to mirror."""
        draws = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32)
        return draws < self.flip

    def __call__(
        self, images: Tensor, generator: torch.Generator, first: int = 0, total: int | None = None
    ) -> Tensor:
        """Return changed copies of images, uint8 N×H×W×3, on their device.

        generator: on the CPU, see `generator_of`. first, total: the images are those from `first`
        on of a batch of `total`. An image's draws depend only on the generator and on its index
        in the whole batch: not on how many processes share the batch, nor on which changes are on.
        """
        if self.only_flips:
            return images
        steps = (
            (self.crop, self._crop),
            (self.low_res, _low_resolution),
            (self.jitter, _jitter),
            (self.jpeg, _jpeg),
            (self.erasing, _erase),
        )
        total = len(images) if total is None else total
        draws = torch.rand(total, _STEPS, 1 + _DRAWS, generator=generator, dtype=torch.float32)
        draws = draws[first : first + len(images)].numpy().astype(np.float64)
        result = images.clone()
        for step, (probability, change) in enumerate(steps):
            chosen = np.flatnonzero(draws[:, step, 0] < probability)
            if len(chosen):
                rows = on_device(chosen, images.device)
                changed = change(result.index_select(0, rows), draws[chosen, step, 1:])
                result.index_copy_(0, rows, changed)
        return result

    def _crop(self, images: Tensor, draws: np.ndarray) -> Tensor:
        boxes = _boxes(images, (self.crop_scale, 1.0), CROP_RATIO, draws)
        if self.crop_kind == "blank":
            return images * _inside(images, boxes)
        height, width = images.shape[1:3]
        top, left, high, wide = boxes
        lines = [Lines(top, high, height, AREA), Lines(left, wide, width, AREA)]
        rows, columns = interpolation_weights(images, lines)
        return resize(images, rows, columns)


def build_augmentation(config: Config) -> Augmentation:
    """The changes that the settings ask for."""
    return Augmentation(
        flip=config.flip_prob,
        crop=config.crop_prob,
        crop_kind=config.crop_kind,
        crop_scale=config.crop_scale,
        low_res=config.low_res_prob,
        jitter=config.jitter_prob,
        jpeg=config.jpeg_prob,
        erasing=config.erasing_prob,
    )


def generator_of(seed: int, iteration: int) -> torch.Generator:
    """The generator of an iteration's changes. It depends on these two numbers alone, so a resumed
    run draws the same without any state in the checkpoint."""
    (mixed,) = np.random.SeedSequence((seed, iteration)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed))


# Each change takes uint8 n×H×W×3 and float64 draws n×5 in 0..1, and returns uint8 n×H×W×3.


def _low_resolution(images: Tensor, draws: np.ndarray) -> Tensor:
    height, width = images.shape[1:3]
    side = _between(LOW_RES_SIDE, draws[:, 0])
    high, wide = (np.maximum((side * length).astype(int), 1) for length in (height, width))
    down, up = (draws[:, 1:3] * 4).astype(int).T  # an interpolation for each
    lines = [
        Lines(0, height, high, down),
        Lines(0, width, wide, down),
        Lines(0, high, height, up),
        Lines(0, wide, width, up),
    ]
    down_rows, down_columns, up_rows, up_columns = interpolation_weights(images, lines)
    small = resize(images, down_rows, down_columns)
    return resize(small, up_rows, up_columns)


def _jitter(images: Tensor, draws: np.ndarray) -> Tensor:
    factors = _between(JITTER, draws[:, :3])  # n×3: of the first change, the second, the third
    orders = _ORDERS[2 * (draws[:, 3] * 3).astype(int) + (draws[:, 4] * 2).astype(int)]  # n×3
    pixels = images.permute(0, 3, 1, 2).contiguous()  # n×3×H×W
    for factor, change in zip(factors.T, orders.T, strict=True):
        pixels = _adjust(pixels, _each(images, change), factor)
    return pixels.permute(0, 2, 3, 1)


def _adjust(pixels: Tensor, change: Tensor, factor: np.ndarray) -> Tensor:
    """factor·pixel + (1 - factor)·base for uint8 n×3×H×W, where the base is black for brightness,
    the image's mean grey for contrast, and the pixel's own grey for saturation.

    change: n×1×1×1, one of the three. factor: n. Rounds as torchvision's `adjust_...` do.
    """
    red, green, blue = pixels.unbind(1)
    grey = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]
    base = torch.where(change == CONTRAST, grey.mean((2, 3), keepdim=True), grey)
    base.masked_fill_(change == BRIGHTNESS, 0)
    scaled = pixels * _each(pixels, factor)
    return scaled.addcmul_(base, _each(pixels, 1 - factor)).clamp_(0, 255).to(torch.uint8)


def _jpeg(images: Tensor, draws: np.ndarray) -> Tensor:
    return jpeg(images, np.rint(_between(JPEG_QUALITY, draws[:, 0])).astype(int))


def _erase(images: Tensor, draws: np.ndarray) -> Tensor:
    inside = _inside(images, _boxes(images, ERASED_AREA, ERASED_RATIO, draws))
    return torch.where(inside, _noise(images, (draws[:, 4] * (1 << 24)).astype(np.int64)), images)


def _noise(images: Tensor, seeds: np.ndarray) -> Tensor:
    """Uniform noise of the images' shape, uint8 n×H×W×3; each image's depends on its seed alone."""
    height, width = images.shape[1:3]
    pixel = torch.arange(height * width, device=images.device).view(height, width, 1)
    bits = _hash(_hash(_each(images, seeds)) + pixel)  # n×H×W×1, of which 24 bits are used
    shifts = torch.arange(0, 24, 8, device=images.device)
    return ((bits >> shifts) & 255).to(torch.uint8)


def _hash(values: Tensor) -> Tensor:
    """A hash of int64 values to 0..2^32-1: Wellons' "lowbias32", each product modulo 2^32."""
    values = values & 0xFFFFFFFF
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        values = (values ^ (values >> shift)) * factor & 0xFFFFFFFF
    return values ^ (values >> 16)


Boxes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # top, left, height, width: int n


def _boxes(images: Tensor, area: Bounds, ratio: Bounds, draws: np.ndarray) -> Boxes:
    """A box inside each image, uniform in its area (as a share of the image's) and its position,
    with the logarithm of width/height uniform too; a side longer than the image is cut."""
    height, width = images.shape[1:3]
    wanted = height * width * _between(area, draws[:, 0])
    stretch = np.exp(_between((math.log(ratio[0]), math.log(ratio[1])), draws[:, 1]))
    wide = np.clip(np.rint(np.sqrt(wanted * stretch)), 1, width)
    high = np.clip(np.rint(np.sqrt(wanted / stretch)), 1, height)
    top, left = draws[:, 2] * (height - high + 1), draws[:, 3] * (width - wide + 1)
    return top.astype(int), left.astype(int), high.astype(int), wide.astype(int)


def _inside(images: Tensor, boxes: Boxes) -> Tensor:
    """bool n×H×W×1: which pixels are inside an image's box."""
    top, left, high, wide = boxes
    height, width = images.shape[1:3]
    rows = _is_between(_each(images, top), _each(images, top + high), height)
    columns = _is_between(_each(images, left), _each(images, left + wide), width)
    return rows.transpose(1, 3) & columns.transpose(2, 3)


def _is_between(start: Tensor, end: Tensor, length: int) -> Tensor:
    """bool n×1×1×length: start <= index < end."""
    index = torch.arange(length, device=start.device)
    return (index >= start) & (index < end)


def _between(bounds: Bounds, draws: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _each(images: Tensor, values: np.ndarray) -> Tensor:
    """A value for each image, as n×1×1×1 on the images' device."""
    return on_device(values, images.device)[:, None, None, None]
