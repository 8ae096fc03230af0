"""Random changes of the training images, on the device, each image with a draw of its own.

The transforms are torchvision's (`transforms.v2.functional`); its random ones would draw once for a
whole batch, and from global generators that no checkpoint holds. Here the draws come from one
generator, on the host so that no step waits for the device to know how large a crop is; JPEG alone
is coded on the host, and its images wait for that.

The ranges are those of AdaFace (Kim et al., CVPR 2022, and its code) for crop, low resolution and
jitter, each of them with probability 0.2 there; of Zhong et al. (AAAI 2020) for erasing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from Config import Config

CROP_RATIO = (3 / 4, 4 / 3)  # width / height
LOW_RES_SIDE = (0.2, 1.0)  # of the image's side
JITTER = 0.5  # factors 0.5..1.5 for brightness, contrast and saturation
JPEG_QUALITY = (20, 95)
ERASED_AREA = (0.02, 0.4)  # of the image's area
ERASED_RATIO = (0.3, 1 / 0.3)

# (interpolation, whether it averages when it makes smaller): nearest, linear, area and cubic, as
# AdaFace draws them; its fifth, Lanczos, there is not for tensors.
INTERPOLATIONS = (
    (InterpolationMode.NEAREST, False),
    (InterpolationMode.BILINEAR, False),
    (InterpolationMode.BILINEAR, True),
    (InterpolationMode.BICUBIC, False),
)

_STEPS = 5  # crop, low resolution, jitter, JPEG, erasing
_NUMBERS = 5  # that a step draws from at most, besides whether it is done

Numbers = list[float]  # uniform in 0..1


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images, with the probability of each.

    crop: to a box of at least crop_scale of the area, at its place; crop_kind "resize" enlarges it
    to the whole image, "blank" keeps it where it is with black around, as AdaFace does.
    low_res: made smaller and enlarged again. jitter: brightness, contrast and saturation, in any
    order. jpeg: coded with losses. erasing: a box becomes noise.
    """

    flip: float = 0.5
    crop: float = 0.0
    crop_kind: str = "resize"
    crop_scale: float = 0.2
    low_res: float = 0.0
    jitter: float = 0.0
    jpeg: float = 0.0
    erasing: float = 0.0

    def flips(self, count: int, generator: torch.Generator) -> Tensor:
        """bool N on the generator's device: which images to mirror; for `Preprocessing`."""
        draws = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float32)
        return draws < self.flip

    def __call__(
        self, images: Tensor, generator: torch.Generator, first: int = 0, total: int | None = None
    ) -> Tensor:
        """uint8 N×H×W×3 -> the same, changed, on the same device; the argument stays as it was.

        generator: on the CPU; see `generator_of`. first, total: where in a batch of how many the
        images stand, if they are a part of one. What an image's draws are depends on the generator
        and on its place in the whole batch, not on which of the changes are on.
        """
        steps = (
            (self.crop, self._crop),
            (self.low_res, _low_resolution),
            (self.jitter, _jitter),
            (self.jpeg, _jpeg),
            (self.erasing, _erase),
        )
        if not any(probability for probability, _ in steps):
            return images
        total = len(images) if total is None else total
        draws = torch.rand(total, _STEPS, 1 + _NUMBERS, generator=generator, dtype=torch.float32)
        draws = draws[first : first + len(images)].tolist()
        pixels = images.permute(0, 3, 1, 2).clone()  # N×3×H×W
        for image, rows in zip(pixels, draws, strict=True):
            for (probability, change), (chance, *numbers) in zip(steps, rows, strict=True):
                if chance < probability:
                    image.copy_(change(image, numbers))
        return pixels.permute(0, 2, 3, 1)

    def _crop(self, image: Tensor, numbers: Numbers) -> Tensor:
        height, width = image.shape[1:]
        top, left, high, wide = _box(image, (self.crop_scale, 1.0), CROP_RATIO, numbers)
        if self.crop_kind == "resize":
            return F.resized_crop(image, top, left, high, wide, [height, width], antialias=True)
        blank = torch.zeros_like(image)
        blank[:, top : top + high, left : left + wide] = F.crop(image, top, left, high, wide)
        return blank


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
    """The generator of an iteration's changes: it follows from these numbers alone, so a run goes
    on exactly without a state of it in the checkpoint."""
    (mixed,) = np.random.SeedSequence((seed, iteration)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed))


def _low_resolution(image: Tensor, numbers: Numbers) -> Tensor:
    height, width = image.shape[1:]
    side = _between(LOW_RES_SIDE, numbers[0])
    small = [max(1, int(side * height)), max(1, int(side * width))]
    for size, number in ((small, numbers[1]), ([height, width], numbers[2])):
        how, average = INTERPOLATIONS[int(number * len(INTERPOLATIONS))]
        image = F.resize(image, size, how, antialias=average)
    return image


def _jitter(image: Tensor, numbers: Numbers) -> Tensor:
    changes: list[Callable[[Tensor, float], Tensor]] = [
        F.adjust_brightness,
        F.adjust_contrast,
        F.adjust_saturation,
    ]
    first = int(numbers[3] * 3)
    order = [changes.pop(first), changes.pop(int(numbers[4] * 2)), *changes]
    for change, number in zip(order, numbers, strict=False):
        image = change(image, _between((1 - JITTER, 1 + JITTER), number))
    return image


def _jpeg(image: Tensor, numbers: Numbers) -> Tensor:
    quality = round(_between(JPEG_QUALITY, numbers[0]))
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy()[..., ::-1])
    # OpenCV's coder: torchvision has given up its own, and codes on the host as well.
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    coded = np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])
    return torch.from_numpy(coded).permute(2, 0, 1)


def _erase(image: Tensor, numbers: Numbers) -> Tensor:
    top, left, high, wide = _box(image, ERASED_AREA, ERASED_RATIO, numbers)
    generator = torch.Generator().manual_seed(int(numbers[4] * (1 << 24)))
    noise = torch.randint(0, 256, (3, high, wide), generator=generator, dtype=torch.uint8)
    return F.erase(image, top, left, high, wide, noise.to(image.device, non_blocking=True))


def _box(
    image: Tensor, area: tuple[float, float], ratio: tuple[float, float], numbers: Numbers
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a box inside the image, uniform in area and place, the
    logarithm of width/height uniform in that of ratio; a box too long for the image is cut."""
    height, width = image.shape[1:]
    wanted = height * width * _between(area, numbers[0])
    stretch = math.exp(_between((math.log(ratio[0]), math.log(ratio[1])), numbers[1]))
    wide = min(max(round(math.sqrt(wanted * stretch)), 1), width)
    high = min(max(round(math.sqrt(wanted / stretch)), 1), height)
    top, left = int(numbers[2] * (height - high + 1)), int(numbers[3] * (width - wide + 1))
    return top, left, high, wide


def _between(bounds: tuple[float, float], number: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * number
