"""Augmentation: what each change does to an image, and that draws are each image's own."""

import dataclasses
import io
import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from Config import Config, ConfigError, validate
from Utils.Training_Utils.augmentation import Augmentation, generator_of
from Utils.Training_Utils.augmentation.jpeg import jpeg

CHANGES = ("crop", "low_res", "jitter", "jpeg", "erasing")


@pytest.fixture
def noise():
    """64 images alike, of coarse coloured noise."""
    coarse = np.random.default_rng(0).integers(30, 220, (14, 12, 3), np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((48, 56), Image.Resampling.BICUBIC))
    return torch.from_numpy(image.copy()).repeat(64, 1, 1, 1)


@pytest.fixture
def places():
    """64 images whose red is 2 × the column and green 2 × the row, of 56×48; blue is 255."""
    image = torch.full((56, 48, 3), 255, dtype=torch.uint8)
    image[..., 0] = 2 * torch.arange(48)
    image[..., 1] = 2 * torch.arange(56)[:, None]
    return image.repeat(64, 1, 1, 1)


def changed(images, iteration=0, **settings):
    return Augmentation(**settings)(images, generator_of(1, iteration))


def test_with_everything_off_images_and_flips_are_as_ever(noise):
    assert Augmentation()(noise, generator_of(1, 1)) is noise
    ours, plain = (torch.Generator().manual_seed(5) for _ in range(2))
    assert torch.equal(Augmentation().flips(64, ours), torch.rand(64, generator=plain) < 0.5)
    assert torch.equal(ours.get_state(), plain.get_state())
    assert Augmentation(flip=1).flips(9, ours).all()
    assert not Augmentation(flip=0).flips(9, ours).any()


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_each_images_own_and_can_be_repeated(noise, change):
    before = noise.clone()
    result = changed(noise, **{change: 1.0})
    assert torch.equal(noise, before)
    assert result.dtype == torch.uint8
    assert result.shape == noise.shape
    assert len(torch.unique(result.flatten(1), dim=0)) > 40  # JPEG has 76 qualities
    assert torch.equal(result, changed(noise, **{change: 1.0}))
    assert not torch.equal(result, changed(noise, iteration=1, **{change: 1.0}))


@pytest.mark.parametrize("change", CHANGES)
def test_the_probability_is_the_share_of_changed_images(noise, change):
    counts = []
    for iteration in range(12):
        result = changed(noise, iteration, **{change: 0.25})
        counts.append((result != noise).flatten(1).any(1).sum().item())
    assert 0.25 * 768 - 45 < sum(counts) < 0.25 * 768 + 45  # nearly four standard deviations


def test_what_is_drawn_for_one_change_does_not_depend_on_the_others(noise):
    erased = changed(noise, erasing=0.5)
    both = changed(noise, erasing=0.5, jitter=0.5, crop=0.5)
    # The noise boxes come last and are the same; find them in the first.
    boxes = erased != noise
    assert boxes.any()
    assert torch.equal(both[boxes], erased[boxes])


def test_a_part_of_a_batch_gets_what_it_gets_in_the_whole(noise):
    augmentation = Augmentation(crop=0.5, low_res=0.5, jitter=0.5, jpeg=0.5, erasing=0.5)
    whole = augmentation(noise, generator_of(1, 3))
    part = augmentation(noise[2:5], generator_of(1, 3), 2, len(noise))
    assert torch.equal(part, whole[2:5])


def test_generators_of_neighbouring_numbers_differ():
    keys = [(seed, iteration) for seed in (0, 1, 2**62) for iteration in (0, 1, 7)]
    draws = torch.stack([torch.rand(8, generator=generator_of(*key)) for key in keys])
    assert len(torch.unique(draws, dim=0)) == len(keys)
    assert (torch.corrcoef(draws) - torch.eye(len(keys))).abs().max() < 0.99


def test_a_blank_crop_keeps_a_box_at_its_place_and_is_black_around(places):
    for image, original in zip(changed(places, crop=1.0, crop_kind="blank"), places, strict=True):
        kept = image[..., 2] == 255
        rows, columns = kept.any(1), kept.any(0)
        assert torch.equal(kept, rows[:, None] & columns)  # one box
        assert torch.equal(image[kept], original[kept])
        assert (image[~kept] == 0).all()
        high, wide = rows.sum().item(), columns.sum().item()
        assert high * wide >= 0.19 * 56 * 48
        # A box too long for the image was cut: it may be longer than 4:3.
        assert high == 56 or wide == 48 or 0.7 < wide / high < 1.4


def test_a_resized_crop_is_a_box_enlarged_to_the_whole_image(places):
    shares = []
    for image in changed(places, crop=1.0, crop_scale=0.5).float():
        columns, rows = image[:, :, 0].mean(0), image[:, :, 1].mean(1)
        assert (image[:, :, 0] - columns).abs().max() <= 1  # still the same in each row
        assert (image[:, :, 2] == 255).all()
        middle = (columns[40] - columns[7]) / 33, (rows[48] - rows[7]) / 41
        shares.append(middle[0].item() / 2 * middle[1].item() / 2)
        assert columns.min() >= 0
        assert columns.max() <= 94
    assert min(shares) > 0.45
    assert max(shares) < 1.02
    assert max(shares) - min(shares) > 0.3


def test_low_resolution_takes_detail_and_leaves_the_rest():
    fine = torch.zeros(64, 64, 64, 3, dtype=torch.uint8)
    fine[:, ::2, ::2] = fine[:, 1::2, 1::2] = 200
    fine[:, 32:] //= 2  # and a coarse difference between the halves
    result = changed(fine, low_res=1.0).float()
    # What is drawn near full size keeps detail; most lose nearly all of it.
    assert result[:, 4:28].flatten(1).std(1).median() < 0.75 * fine[:, 4:28].float().std()
    averaged = result.flatten(2).mean(2)
    halves = averaged[:, 4:28].mean(1), averaged[:, 36:60].mean(1)
    assert (halves[0] > halves[1]).float().mean() > 0.9


def test_jitter_multiplies_brightness_and_keeps_grey_grey():
    grey = torch.full((64, 8, 8, 3), 100, dtype=torch.uint8)
    result = changed(grey, jitter=1.0)
    values = result[:, 0, 0, 0].float()
    assert (result == result[:, :1, :1, :1]).all()
    assert 50 <= values.min() < 65
    assert 135 < values.max() <= 150


def test_jitter_changes_saturation_and_contrast(noise):
    result = changed(noise, jitter=1.0).float()
    weights = torch.tensor([0.2989, 0.587, 0.114])
    luminance = result @ weights
    for measure in (
        luminance.flatten(1).std(1) / luminance.flatten(1).mean(1),  # contrast
        (result - luminance[..., None]).flatten(1).std(1) / luminance.flatten(1).std(1),
    ):
        assert measure.max() / measure.min() > 1.8


def test_jpeg_is_that_of_another_program_at_some_quality(noise):
    image = Image.fromarray(noise[0].numpy())
    coded = []
    for quality in range(20, 96):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        coded.append(np.asarray(Image.open(file)).astype(int))
    nearest = [
        np.abs(np.stack(coded) - one.numpy()).mean((1, 2, 3)) for one in changed(noise, jpeg=1.0)
    ]
    assert max(distances.min() for distances in nearest) < 0.6
    qualities = [20 + int(distances.argmin()) for distances in nearest]
    assert min(qualities) < 35
    assert max(qualities) > 80


@pytest.mark.parametrize("size", [(112, 112), (51, 37), (8, 8)])
def test_jpeg_is_that_of_opencv_at_the_same_quality(size):
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (64, 14, 12, 3), np.uint8)
    images = np.stack([cv2.resize(i, size[::-1], interpolation=cv2.INTER_CUBIC) for i in coarse])
    qualities = random.integers(20, 96, 64)
    coded = []
    for image, quality in zip(images, qualities.tolist(), strict=True):
        _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        coded.append(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
    coded = np.stack(coded).astype(float)
    found = jpeg(torch.from_numpy(images), qualities).numpy()
    assert np.abs(images - coded).mean() > 4
    assert np.abs(found - coded).mean() < 0.3
    assert np.median(np.abs(found - coded).mean((1, 2, 3))) < 0.2


def torchvision_box(height, width, area, ratio, draws):
    """(top, left, height, width), computed as torchvision's own random crops and boxes are."""
    wanted = height * width * (area[0] + (area[1] - area[0]) * draws[0])
    low, high = map(math.log, ratio)
    stretch = math.exp(low + (high - low) * draws[1])
    wide = min(max(round(math.sqrt(wanted * stretch)), 1), width)
    high = min(max(round(math.sqrt(wanted / stretch)), 1), height)
    return int(draws[2] * (height - high + 1)), int(draws[3] * (width - wide + 1)), high, wide


def torchvision_crop(image, draws):
    box = torchvision_box(*image.shape[1:], (0.2, 1), (3 / 4, 4 / 3), draws)
    return rounded(F.resized_crop(image.float(), *box, list(image.shape[1:]), antialias=True))


def torchvision_low_resolution(image, draws):
    kinds = (
        (InterpolationMode.NEAREST, False),
        (InterpolationMode.BILINEAR, False),
        (InterpolationMode.BILINEAR, True),
        (InterpolationMode.BICUBIC, False),
    )
    whole = list(image.shape[1:])
    small = [max(1, int((0.2 + (1.0 - 0.2) * draws[0]) * side)) for side in whole]
    for size, draw in ((small, draws[1]), (whole, draws[2])):
        mode, antialias = kinds[int(draw * 4)]
        image = rounded(F.resize(image.float(), size, mode, antialias=antialias))
    return image


def torchvision_jitter(image, draws):
    changes = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation]
    order = [changes.pop(int(draws[3] * 3)), changes.pop(int(draws[4] * 2)), *changes]
    for change, draw in zip(order, draws[:3], strict=True):
        image = change(image, 0.5 + (1.5 - 0.5) * draw)
    return image


def rounded(image):
    return image.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("change", "step", "one_by_one", "tolerance"),
    [
        ("crop", 0, torchvision_crop, 1),
        ("low_res", 1, torchvision_low_resolution, 1),
        ("jitter", 2, torchvision_jitter, 0),
    ],
)
def test_a_batch_is_changed_as_torchvision_changes_one_image(
    noise, change, step, one_by_one, tolerance
):
    fine = torch.randint(0, 256, noise.shape, dtype=torch.uint8)
    for images, iteration in itertools.product((noise, fine), range(3)):
        result = changed(images, iteration, **{change: 1.0})
        draws = torch.rand(64, 5, 6, generator=generator_of(1, iteration))[:, step, 1:].tolist()
        pixels = images.permute(0, 3, 1, 2)
        expected = [one_by_one(image, draw) for image, draw in zip(pixels, draws, strict=True)]
        difference = (result.int() - torch.stack(expected).permute(0, 2, 3, 1).int()).abs()
        assert difference.max() <= tolerance
        assert (difference > 0).float().mean() < 0.002  # halves, rounded one way or the other


class Operations(TorchDispatchMode):
    """Counts operators that compute something, which views do not."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_batch(noise):
    counts = []
    for images in (noise, noise.repeat(4, 1, 1, 1)):
        with Operations() as operations:
            changed(images, crop=0.5, low_res=0.5, jitter=0.5, jpeg=0.5, erasing=0.5)
        counts.append(operations.count)
    assert counts[0] == counts[1] < 350


def test_erasing_puts_noise_into_one_box(noise):
    areas = []
    for image, original in zip(changed(noise, erasing=1.0), noise, strict=True):
        differs = (image != original).any(2)
        rows, columns = differs.any(1).nonzero(), differs.any(0).nonzero()
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        areas.append(box[..., 0].numel() / (56 * 48))
        assert differs.sum() > 0.95 * box[..., 0].numel()
        if box.numel() > 600:
            assert 60 < box.float().std() < 90  # uniform in 0..255: 74
    assert 0.01 < min(areas) < 0.08
    assert 0.3 < max(areas) < 0.42


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop_prob", 1.2), ("jpeg_prob", -0.1), ("crop_scale", 0.0), ("crop_kind", "black")],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ConfigError, match=f"setting {name} is {value!r}"):
        validate(dataclasses.replace(Config(), **{name: value}))
