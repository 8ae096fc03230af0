"""Image files as people have them: flawed JPEGs, rare encodings, odd sizes, swapped colours.

Pixels are compared with Pillow's.
"""

import io
import json
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from Config import Config
from tests.conftest import run_script
from Utils.Datasets_Utils.appearance import look, redness, swapped_colours
from Utils.Datasets_Utils.images import ImageError, decode_image, noting_flaws
from Utils.Training_Utils.data import describe_training_data, open_training_data

CHECK = "Utils.Datasets_Utils.check_dataset"
KINDS = {
    "baseline": {"quality": 90},
    "4:4:4": {"quality": 98, "subsampling": 0},
    "restarts": {"quality": 85, "restart_marker_blocks": 2},
    "progressive": {"quality": 80, "progressive": True},
}


@pytest.fixture
def face():
    """A blurred picture in warm colours, 48×64."""
    noise = np.random.default_rng(1).integers(0, 256, (48, 64, 3), np.uint8)
    soft = cv2.normalize(cv2.GaussianBlur(noise, (15, 15), 4), None, 0, 255, cv2.NORM_MINMAX)
    return Image.fromarray((soft * [0.6, 0.5, 0.4] + [100, 60, 40]).astype(np.uint8))


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["baseline", "4:4:4", "restarts"])
@pytest.mark.parametrize("after", [b"", bytes(600)])
def test_a_jpeg_that_only_lacks_its_end_marker_is_read_and_named(face, kind, after):
    whole = encode(face, "JPEG", **KINDS[kind])
    with noting_flaws() as flaws:
        found = decode_image(whole[:-2] + after, "a/0.jpg")
    assert np.array_equal(found, decode_image(whole, ""))
    assert flaws == ["a/0.jpg: a JPEG without its end marker"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [b"", bytes(600)])
def test_a_jpeg_that_lacks_pixels_is_refused_wherever_it_is_cut(face, kind, after):
    """Also between restart intervals, and between the scans of a progressive one."""
    whole = encode(face, "JPEG", **KINDS[kind])
    for end in range(20, len(whole) - 2, 3):
        with pytest.raises(ImageError, match="cut short"):
            decode_image(whole[:end] + after, "x.jpg")


@pytest.mark.parametrize(
    "after", [b"\0" * 100, b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd8 \xff\xd9 video" * 50]
)
def test_bytes_after_a_jpeg_do_not_count_as_its_end(face, after):
    whole = encode(face, "JPEG", **KINDS["baseline"])
    with noting_flaws() as flaws:
        found = decode_image(whole + after, "phone.jpg")
    assert np.array_equal(found, decode_image(whole, ""))
    assert flaws == [f"phone.jpg: {len(after)} bytes after the end of a JPEG"]
    with pytest.raises(ImageError, match="cut short"):
        decode_image(whole[:-200] + b"\0" * 100, "x.jpg")


def test_a_sound_image_has_no_flaw(face):
    with noting_flaws() as flaws:
        for kind in ("JPEG", "PNG", "BMP", "GIF"):
            decode_image(encode(face, kind), "x")
    assert flaws == []


def test_a_damaged_image_prints_nothing_among_the_tables(face, capfd):
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        with pytest.raises(ImageError, match="not an image"):
            decode_image(encode(face, kind)[:-400], "x")
    assert capfd.readouterr() == ("", "")


def png(pixels, colour_type):
    """A PNG of 16 bits, which Pillow does not write in colour. pixels: H×W×C uint16."""

    def chunk(name, content):
        end = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + end

    header = struct.pack(">IIBBBBB", *pixels.shape[1::-1], 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def rare(face):
    """name: (encoded, the pixels that a person sees)."""
    colour, grey = np.asarray(face), np.asarray(face.convert("L"))
    seen_grey = np.stack([grey] * 3, -1)
    opaque = np.full((*grey.shape, 1), 65535, np.uint16)
    wide, wide_grey = colour.astype(np.uint16) * 257, grey[..., None].astype(np.uint16) * 257
    alpha = Image.new("L", face.size, 255)
    cases = {
        "16-bit grey PNG": (png(wide_grey, 0), seen_grey),
        "16-bit grey PNG with alpha": (png(np.concatenate((wide_grey, opaque), -1), 4), seen_grey),
        "16-bit PNG": (png(wide, 2), colour),
        "16-bit TIFF": (cv2.imencode(".tif", wide[..., ::-1])[1].tobytes(), colour),
        "grey with alpha": (
            encode(Image.merge("LA", (face.convert("L"), alpha)), "PNG"),
            seen_grey,
        ),
        "CMYK": (encode(face.convert("CMYK"), "JPEG", quality=98, subsampling=0), colour),
        "CMYK TIFF": (encode(face.convert("CMYK"), "TIFF"), colour),
        "16-bit PGM": (b"P5\n64 48\n65535\n" + wide_grey.astype(">u2").tobytes(), seen_grey),
        "PGM up to 15": (b"P5\n# a\n64 48\n15\n" + (grey // 16).tobytes(), seen_grey // 16 * 17),
        "PGM up to 4095": (
            b"P5\n64 48\n4095\n" + (grey.astype(np.uint16) * 16).astype(">u2").tobytes(),
            (seen_grey * (16 * 255 / 4095)).round(),
        ),
    }
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
            encoded = encode(face, kind, exif=exif)
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB")
            cases[f"{kind} turned {turn}"] = encoded, np.asarray(upright)
    return cases


def test_rare_encodings_come_out_as_people_see_them(face):
    for name, (encoded, seen) in rare(face).items():
        found = decode_image(encoded, name)
        assert found.shape == seen.shape, name
        assert np.abs(found.astype(int) - seen).mean() < 1.5, name


# --- colours and sizes --------------------------------------------------------------------------


def photos(face, count=20, size=(112, 112)):
    rng = np.random.default_rng(3)
    pixels = np.asarray(face.resize(size[::-1])).astype(int)
    return [(pixels + rng.integers(-20, 21)).clip(0, 255).astype(np.uint8) for _ in range(count)]


def test_swapped_colours_are_noticed_and_right_or_grey_ones_are_not(face):
    right = photos(face)
    swapped = [image[..., ::-1] for image in right]
    grey = [np.stack([image[..., 1]] * 3, -1) for image in right]
    noisy = [encode(Image.fromarray(image), "JPEG", quality=30) for image in grey]
    assert "red and blue look swapped: 20 of 20" in look(swapped, (112, 112))[1]
    assert "swapped" in look([*grey, *swapped], (112, 112))[1]
    for images in (right, grey, [decode_image(e, "") for e in noisy], right + swapped[:13]):
        assert look(images, (112, 112)) == ("", "")
    assert swapped_colours([redness(image) for image in swapped[:5]]) == ""  # too few to tell


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (64, 64)])
def test_aligned_faces_and_images_of_the_networks_size_bring_no_warning(face, size):
    assert look(photos(face, 3, size), (64, 64)) == ("", "")


def test_photos_of_another_size_bring_a_warning_with_the_remedy(face):
    sizes, _ = look([*photos(face, 3, (250, 250)), *photos(face, 1)], (112, 112))
    assert "3 of 4 images looked at do not have the size" in sizes
    assert "250×250 (3)" in sizes
    assert "Utils.Datasets_Utils.align_faces" in sizes
    # Raw crops have all sizes: the most frequent ones are enough.
    sizes, _ = look([photos(face, 1, (20 + n, 16))[0] for n in range(9)] * 2, (112, 112))
    assert "112×112: 20×16 (2), 21×16 (2), 22×16 (2), .... They" in sizes


def write_tree(folder, images):
    for number, image in enumerate(images):
        (folder / str(number % 4)).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / str(number % 4) / f"{number}.png"), image[..., ::-1])


def test_training_on_swapped_images_is_warned_of_and_swapped_back(face, tmp_path):
    right = photos(face)
    write_tree(tmp_path / "bgr", [image[..., ::-1] for image in right])
    write_tree(tmp_path / "rgb", right)
    base = {"train_dataset": "Mine", "batch_size": 2}
    wrong = Config(**base, train_dataset_path=str(tmp_path / "bgr"))
    mended = Config(**base, train_dataset_path=str(tmp_path / "bgr"), train_channel_order="BGR")
    usual = Config(**base, train_dataset_path=str(tmp_path / "rgb"))
    said = [describe_training_data(c, open_training_data(c)) for c in (wrong, mended, usual)]
    assert "if they are, train with --train_channel_order BGR" in said[0][1]
    assert said[1] == said[2] == ["Mine: 20 images, 4 identities"]
    for (image, label), (other, other_label) in zip(
        open_training_data(mended), open_training_data(usual), strict=True
    ):
        assert label == other_label
        np.testing.assert_array_equal(image, other)


def test_the_check_names_swapped_colours_and_flawed_jpegs(face, tmp_path):
    write_tree(tmp_path / "faces", [image[..., ::-1] for image in photos(face, 12)])
    flawed = encode(face.resize((112, 112)), "JPEG")[:-2]
    (tmp_path / "faces/0/a.jpg").write_bytes(flawed)
    run = run_script("-m", CHECK, tmp_path / "faces", "--output", tmp_path / "out")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["unreadable"] == []
    assert len(report["read in spite of a flaw"]) == 1
    assert "0/a.jpg: a JPEG without its end marker" in run.stdout
    assert "train with --train_channel_order BGR" in report["colours"]
    assert "0/a.jpg  0" in (tmp_path / "out/clean_list.txt").read_text().splitlines()
