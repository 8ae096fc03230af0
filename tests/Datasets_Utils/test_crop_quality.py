"""The quality of crops: blur, the size of the original, faces off the template; images alike."""

import csv

import cv2
import numpy as np
import pytest

from tests.conftest import assert_one_paragraph, run_script
from Utils.Datasets_Utils.alignment.faces import Faces
from Utils.Datasets_Utils.alignment.transform import template
from Utils.Datasets_Utils.images import read_image
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
