"""Photographs of every kind, orientation and size: the pixels that pillow gives them."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from Utils.Datasets_Utils.alignment import photograph as photograph_module
from Utils.Datasets_Utils.alignment.photograph import open_photograph
from Utils.Datasets_Utils.images import ImageError


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def saved(image: Image.Image, kind: str, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    ramp = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
    image.putalpha(Image.fromarray(ramp))
    return image


KINDS = {
    "grey jpeg": lambda image: saved(image.convert("L"), "JPEG"),
    "grey png": lambda image: saved(image.convert("L"), "PNG"),
    "grey png with alpha": lambda image: saved(image.convert("LA"), "PNG"),
    "palette": lambda image: saved(image.convert("P"), "PNG"),
    "gif": lambda image: saved(image.convert("P"), "GIF"),
    "rgba png": lambda image: saved(with_alpha(image), "PNG"),
    "rgba webp": lambda image: saved(with_alpha(image), "WEBP", lossless=True, exact=True),
    "rgba tiff": lambda image: saved(with_alpha(image), "TIFF"),
    "cmyk jpeg": lambda image: saved(image.convert("CMYK"), "JPEG", quality=95, subsampling=0),
    "cmyk tiff": lambda image: saved(image.convert("CMYK"), "TIFF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_photographs_of_every_kind_have_the_pixels_that_pillow_gives_them(kind):
    encoded = KINDS[kind](Image.fromarray(smooth(64, 50)))
    reference = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    found = open_photograph(encoded, "x").image
    assert np.abs(found.astype(int) - reference).max() <= 1


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("colours", [1, 3])
def test_sixteen_bits_become_eight(suffix, colours):
    image = smooth(64, 50)
    deep = image.astype(np.uint16) * 257
    stored = deep[..., 0] if colours == 1 else deep[..., ::-1]
    encoded = cv2.imencode(suffix, stored)[1].tobytes()
    expected = image if colours == 3 else np.repeat(image[..., :1], 3, axis=2)
    np.testing.assert_array_equal(open_photograph(encoded, "x").image, expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_the_photograph_and_its_points(kind, orientation):
    image = smooth(40, 72)
    image[8:16, 40:48] = (255, 0, 0)  # a block; its centre:
    stored = np.array([[43.5, 11.5]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0}
    encoded = saved(Image.fromarray(image), kind, exif=exif, **({} if kind in "PNG TIFF" else how))
    reference = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    photograph = open_photograph(encoded, "x")
    assert np.abs(photograph.image.astype(int) - reference).max() <= 1
    assert photograph.size == reference.shape[:2]
    x, y = np.rint(photograph.upright(stored)[0] - 0.5).astype(int)
    block = photograph.image[y - 3 : y + 5, x - 3 : x + 5].astype(int)
    assert np.abs(block - (255, 0, 0)).mean() < 20


def test_a_large_jpeg_is_decoded_smaller_and_other_large_files_are_a_reason(monkeypatch):
    monkeypatch.setattr(photograph_module, "MOST_PIXELS", 100_000)
    monkeypatch.setattr(photograph_module, "_MOST_OF_A_JPEG", 50_000)
    image = Image.fromarray(smooth(600, 800))
    photograph = open_photograph(saved(image, "JPEG", quality=95), "x")
    assert photograph.image.shape == (150, 200, 3)
    assert photograph.size == (600, 800)
    ends = np.array([[-0.5, -0.5], [799.5, 599.5]])  # of the pixels at the corners
    assert photograph.on_image(ends) == pytest.approx(np.array([[-0.5, -0.5], [199.5, 149.5]]))
    assert photograph.on_photograph(photograph.on_image(ends)) == pytest.approx(ends)
    for encoded in (saved(image, "PNG"), saved(image, "JPEG", progressive=True)):
        with pytest.raises(ImageError, match="800×600 pixels are more than the 100,000"):
            open_photograph(encoded, "x")
    with pytest.raises(ImageError, match="40,000×1 pixels"):  # OpenCV warps no such sides
        open_photograph(saved(Image.new("1", (40_000, 1)), "PNG"), "x")
