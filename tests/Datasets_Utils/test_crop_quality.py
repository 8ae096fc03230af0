"""The quality of crops: blur, the size of the original, faces off the template; images alike."""

import csv
import json

import cv2
import numpy as np
import pytest

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.alignment.faces import Faces
from Utils.Datasets_Utils.alignment.transform import template
from Utils.Datasets_Utils.images import decode_image, read_image
from Utils.Datasets_Utils.quality.alike import (
    RADIUS,
    near_hashes,
    picture_hash,
    really_alike,
)
from Utils.Datasets_Utils.quality.crops import offset
from Utils.Datasets_Utils.quality.sharpness import blur, grey, original_height

CHECK = "Utils.Datasets_Utils.check_dataset"


@pytest.fixture(scope="module")
def lfw_photos(shared_data):
    """60 photographs of LFW that the estimates were not made with."""
    files = sorted((shared_data / "lfw_half/images").glob("*/*.jpg"))[9::56]
    return [read_image(file) for file in files]


def enlarged(image, height, how=cv2.INTER_LINEAR):
    small = cv2.resize(image, (height, height), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, image.shape[1::-1], interpolation=how)


def test_the_size_of_an_enlarged_original_is_estimated_to_a_third(lfw_photos):
    for height in (20, 28, 40):
        for how in (cv2.INTER_LINEAR, cv2.INTER_CUBIC):
            for quality in (None, 80):
                crops = [enlarged(photo, height, how) for photo in lfw_photos]
                if quality:
                    flags = [cv2.IMWRITE_JPEG_QUALITY, quality]
                    files = [cv2.imencode(".jpg", crop, flags)[1] for crop in crops]
                    crops = [cv2.imdecode(file, cv2.IMREAD_COLOR) for file in files]
                ratios = np.array([original_height(grey(crop)) for crop in crops]) / height
                within = (ratios > 0.67) & (ratios < 1.5)
                assert within.mean() >= 0.8, (height, how, quality)
                assert 0.8 < np.median(ratios) < 1.2, (height, how, quality)
    assert np.median([original_height(grey(photo)) for photo in lfw_photos]) > 80


def test_blur_grows_with_blurring_and_is_independent_of_contrast(lfw_photos):
    for photo in lfw_photos[:10]:
        flat = grey(photo)
        levels = [blur(cv2.GaussianBlur(flat, (0, 0), sigma)) for sigma in (0.5, 1, 2, 4)]
        assert blur(flat) < levels[0] < levels[1] < levels[2] < levels[3] < 1
        assert blur(flat * 0.3 + 40) == pytest.approx(blur(flat), abs=1e-4)
        moved = cv2.filter2D(flat, -1, np.full((1, 9), 1 / 9))  # by a hand that shook sideways
        assert blur(moved) > levels[1]
        assert blur(moved.T.copy()) == pytest.approx(blur(moved), abs=1e-4)
    # The paper's sums, pixel by pixel, of an edge of one pixel: a mean over 9 leaves a ninth of it.
    edge = np.repeat(np.repeat([[0.0, 90.0]], 20, axis=1), 40, axis=0).astype(np.float32)
    assert blur(edge) == pytest.approx(1 / 9, abs=1e-3)
    assert np.isnan(blur(np.full((20, 20), 7, np.float32)))


class FoundAt:
    """Finds one face, with these points; or none."""

    def __init__(self, points):
        self.points = np.array(points).reshape(-1, 5, 2)

    def detect(self, image):
        count = len(self.points)
        return Faces(np.full((count, 4), np.nan), self.points, np.ones(count))


@pytest.mark.parametrize("size", [(112, 112), (112, 96), (56, 48)])
def test_points_off_the_template_are_measured_in_pixels_of_112(size):
    image, border = np.zeros((*size, 3), np.uint8), size[0] // 4  # the border that it is shown with
    moved = template(size) + border + np.array((3, 4)) * size[0] / 112
    assert offset(image, FoundAt(moved)) == pytest.approx(5)
    assert offset(image, FoundAt([])) == np.inf


def test_crops_that_are_blurred_small_or_shifted_are_named_and_left_out_beyond_limits(
    lfw_photos, tmp_path
):
    pytest.importorskip("facenet_pytorch", reason="no weights of MTCNN")
    photos = {f"a/{i}.png": photo for i, photo in enumerate(lfw_photos[:6])}
    photos["b/blurred.png"] = cv2.GaussianBlur(lfw_photos[6], (0, 0), 4)
    photos["b/small.png"] = enlarged(lfw_photos[7], 20)
    photos["b/shifted.png"] = np.roll(lfw_photos[8], 14, axis=1)
    photos["b/sky.png"] = np.random.default_rng(0).integers(90, 99, (112, 112, 3), np.uint8)
    for name, photo in photos.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "faces" / name), photo[..., ::-1])
    command = ("-m", CHECK, tmp_path / "faces", "--output", tmp_path / "out")
    flags = ("--num_workers", "0", "--detector", "mtcnn")
    run = run_script(*command, *flags)
    assert run.returncode == 0, run.stdout + run.stderr
    for said in ("b/blurred.png", "b/shifted.png", "no face is found in 1"):
        assert said in run.stdout
    limits = ("--max_blur", "0.8", "--min_original", "30", "--max_offset", "9")
    run = run_script(*command, *flags, *limits)
    assert run.returncode == 2, run.stdout + run.stderr
    kept = (tmp_path / "out/clean_list.txt").read_text().splitlines()
    assert kept == [f"a/{i}.png  0" for i in range(6)]
    with open(tmp_path / "out/images.csv") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == len(photos)
    assert 10 < float(rows["b/shifted.png"]["offset"]) < 18
    assert rows["b/sky.png"]["offset"] == "inf"
    assert {name for name, row in rows.items() if row["good"] == "0"} == set(photos) - {
        f"a/{i}.png" for i in range(6)
    }
    run = run_script(*command, "--max_offset", "9")
    assert_one_paragraph(run, "max_offset", "--detector")


def test_hashes_that_differ_in_few_bits_are_found():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (300, 128), np.uint8)
    for copy, original in enumerate(range(100, 200)):  # copies with 0 to 9 bits turned over
        bits[copy] = bits[original]
        bits[copy, rng.choice(128, copy % 10, replace=False)] ^= 1
    hashes = np.packbits(bits, axis=1).view(np.int64)
    pairs = set(map(tuple, near_hashes(hashes).tolist()))
    assert {(copy, copy + 100) for copy in range(100) if copy % 10 <= 5} <= pairs
    differing = (bits[:, None] != bits[None]).sum(axis=2)
    assert all(left < right and differing[left, right] <= RADIUS for left, right in pairs)
    second = np.arange(300) % 2 == 0
    across = {(i, j) for i, j in pairs if second[i] != second[j]}
    assert set(map(tuple, near_hashes(hashes, second).tolist())) == across
    second = np.arange(300) >= 100
    assert pairs == set(map(tuple, near_hashes(hashes, second).tolist()))
    same = np.repeat(hashes[:1], 5, axis=0)
    assert near_hashes(same).tolist() == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert near_hashes(same, np.array([0, 1, 0, 1, 1])).tolist() == [[0, 1]]


def saved(photo, quality):
    encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return decode_image(encoded, "a copy")


COPIES = {
    "saved with quality 50": (0.99, lambda photo: saved(photo, 50)),
    "64 pixels": (0.99, lambda photo: cv2.resize(photo, (64, 64), interpolation=cv2.INTER_AREA)),
    "enlarged from 40 pixels": (0.99, lambda photo: enlarged(photo, 40)),
    "brighter": (0.99, lambda photo: (photo * 1.15 + 10).clip(0, 255).astype(np.uint8)),
    "a pixel further": (0.9, lambda photo: np.roll(photo, 1, axis=1)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_a_picture_are_found_and_other_photographs_are_not(lfw_photos, shared_data, kind):
    least, change = COPIES[kind]
    files = sorted((shared_data / "lfw_half/images").glob("*/*.jpg"))[::4]
    photos = [read_image(file) for file in files]
    copies = [change(photo) for photo in photos[::5]]
    every = photos + copies
    hashes = np.array([picture_hash(image) for image in every])
    second = np.arange(len(every)) >= len(photos)
    found = really_alike(near_hashes(hashes, second), every.__getitem__)
    right = found[:, 0] == 5 * (found[:, 1] - len(photos))
    assert right.all()
    assert len(found) >= least * len(copies)
    assert not really_alike(near_hashes(hashes[: len(photos)]), every.__getitem__).size


def test_a_picture_of_one_colour_is_like_no_other():
    images = [np.full((112, 112, 3), colour, np.uint8) for colour in (0, 0, 200)]
    pairs = near_hashes(np.array([picture_hash(image) for image in images]))
    assert len(pairs) == 2
    assert not really_alike(pairs, images.__getitem__).size


def test_nearly_equal_pictures_are_named_and_left_out_if_asked(lfw_photos, tmp_path):
    photos = {f"{person}/{i}.png": lfw_photos[3 * i + n] for n, person in enumerate("abc")
              for i in range(3)}  # fmt: skip
    photos["a/again.png"] = saved(photos["a/0.png"], 60)
    photos["c/wrong.png"] = saved(photos["b/1.png"], 60)
    for name, photo in photos.items():
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "faces" / name), photo[..., ::-1])
    command = ("-m", CHECK, tmp_path / "faces", "--output", tmp_path / "out", "--num_workers", "0")
    run = run_script(*command, check=True)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["nearly the same"] == [
        "c/wrong.png (label 2) ~ b/1.png (label 1)",
        "a/again.png (label 0) ~ a/0.png (label 0)",
    ]
    assert report["of them, with two labels"] == 1
    assert "c/wrong.png (label 2) ~ b/1.png" in run.stdout
    clean = open_training_set(tmp_path / "faces", tmp_path / "out/clean_list.txt")
    assert len(clean) == len(photos)
    assert run_script(*command, "--leave_out_near").returncode == 2
    clean = open_training_set(tmp_path / "faces", tmp_path / "out/clean_list.txt")
    kept = {clean.name(i) for i in range(len(clean))}
    assert kept == photos.keys() - {"a/again.png", "b/1.png", "c/wrong.png"}
