"""MTCNN against the package that its weights come from, and against points that are known."""

import cv2
import numpy as np
import pytest
import torch

from Utils.Datasets_Utils.alignment.mtcnn import FILES, _without_overlap, open_mtcnn
from Utils.Datasets_Utils.alignment.transform import move
from Utils.Datasets_Utils.demo.loose import LoosePhoto
from Utils.Datasets_Utils.demo.people import random_identity, random_photo
from Utils.errors import CheckpointError, DataError

FRONTAL = {"yaw": (-6, 6), "pitch": (-4, 4), "roll": (-15, 15), "zoom": (0.5, 0.65)}
LIT = {"ambient": (0.7, 0.8), "light_azimuth": (-30, 30), "light_elevation": (20, 50)}
CLEAR = {"exposure": (0.9, 1.2), "blur": (0, 0.3), "noise": (0, 2), "saturation": (0.8, 1.1)}
CALM = {"smile": (0, 0.4), "mouth_open": (-0.8, -0.4), "brow_raise": (-0.2, 0.3)}


@pytest.fixture(scope="module")
def mtcnn():
    pytest.importorskip("facenet_pytorch", reason="the weights of MTCNN are in this package")
    return open_mtcnn()


def drawn(count: int, size: int) -> list[LoosePhoto]:
    rng = np.random.default_rng(size)
    ranges = {**FRONTAL, **LIT, **CLEAR, **CALM, "cover": 0.0, "glasses": 0.0, "age": (20, 40)}
    return [
        LoosePhoto(random_identity(rng), random_photo(rng, **ranges), size) for _ in range(count)
    ]


def several(shots: list[LoosePhoto]) -> np.ndarray:
    """A photograph of six people."""
    rows = [np.hstack([shot.draw() for shot in shots[start : start + 3]]) for start in (0, 3)]
    return cv2.copyMakeBorder(np.vstack(rows), 17, 40, 5, 60, cv2.BORDER_REFLECT)


def test_same_as_the_package(mtcnn):
    from facenet_pytorch import MTCNN

    theirs = MTCNN(keep_all=True, min_face_size=20, device="cpu")
    photographs = [several(drawn(6, size)) for size in (70, 120)]
    photographs += [shot.draw() for shot in drawn(2, 110)]
    for image in photographs:
        found, expected = mtcnn.detect(image), theirs.detect(image, landmarks=True)
        boxes, scores, points = (np.array(value, dtype=float) for value in expected)
        mine, other = np.argsort(-found.scores), np.argsort(-scores)
        assert len(mine) == len(other)
        np.testing.assert_allclose(found.points[mine], points[other], atol=2e-3)
        np.testing.assert_allclose(found.boxes[mine] + 1, boxes[other], atol=2e-3)
        np.testing.assert_allclose(found.scores[mine], scores[other], atol=1e-5)


def test_finds_the_points_of_drawn_faces(mtcnn):
    errors = []
    for shot in drawn(40, 100):
        for points in mtcnn.detect(shot.draw()).points[:1]:
            errors.append(np.linalg.norm(points - shot.points(), axis=1).mean())
    assert len(errors) >= 34  # MTCNN learned from photographs, and overlooks some drawings
    assert np.mean(np.array(errors) <= 3) >= 0.9


def test_finds_the_points_of_photographs_wherever_the_face_is(mtcnn, shared_data):
    files = sorted((shared_data / "lfw_half" / "images").glob("*/*.jpg"))[::85]
    rng, errors = np.random.default_rng(0), []
    for file in files:
        crop = cv2.copyMakeBorder(cv2.imread(str(file)), *[40] * 4, cv2.BORDER_REPLICATE)
        points = mtcnn.detect(crop[..., ::-1]).points[0]
        matrix = cv2.getRotationMatrix2D((96, 96), rng.uniform(-15, 15), 1)
        matrix[:, 2] += rng.uniform(10, 90, 2)
        moved = cv2.warpAffine(crop, matrix, (290, 290), borderMode=cv2.BORDER_REPLICATE)
        found = mtcnn.detect(moved[..., ::-1])
        distances = np.linalg.norm(found.points - move(points, matrix), axis=2).mean(axis=1)
        errors.append(distances.min(initial=np.inf))
    assert len(errors) == 40
    assert np.mean(np.array(errors) <= 3) >= 0.95


def test_a_large_photograph_is_shrunk_and_its_points_are_in_its_own_pixels(mtcnn):
    image = several(drawn(6, 120))
    larger = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    assert max(larger.shape) > 1280
    found, expected = mtcnn.detect(larger), mtcnn.detect(image)
    assert len(found) == len(expected) == 6
    for points in expected.points:
        distances = np.linalg.norm(found.points - points * 4, axis=2).mean(axis=1)
        assert distances.min() < 4 * 3


@pytest.mark.parametrize("size", [(1, 1), (11, 300), (19, 19), (40, 60)])
def test_nobody_in_an_empty_picture(mtcnn, size):
    assert len(mtcnn.detect(np.full((*size, 3), 120, np.uint8))) == 0


@pytest.mark.parametrize("of_the_smaller", [False, True])
def test_overlapping_boxes_against_the_definition(of_the_smaller):
    rng = np.random.default_rng(5)
    corner = rng.integers(0, 60, (80, 2))
    boxes = np.concatenate((corner, corner + rng.integers(5, 40, (80, 2))), axis=1)
    scores = rng.integers(0, 30, 80) / 30  # with ties: of equals, the first is kept
    last, kept = int(of_the_smaller), []
    for row in sorted(range(80), key=lambda row: (-scores[row], row)):
        for other in kept:
            sides = [
                min(boxes[row, 2 + k], boxes[other, 2 + k])
                - max(boxes[row, k], boxes[other, k])
                + last
                for k in (0, 1)
            ]
            area, rival = (
                (b[2] - b[0] + last) * (b[3] - b[1] + last) for b in (boxes[row], boxes[other])
            )
            common = max(sides[0], 0) * max(sides[1], 0)
            if common > 0.5 * (min(area, rival) if of_the_smaller else area + rival - common):
                break
        else:
            kept.append(row)
    found = _without_overlap(
        torch.tensor(boxes).float(), torch.tensor(scores), 0.5, of_the_smaller=of_the_smaller
    )
    assert found.tolist() == kept


def test_weights_that_are_missing_or_of_something_else(tmp_path):
    with pytest.raises(DataError, match=r"does not exist.*facenet-pytorch.*--detector_file"):
        open_mtcnn(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"pnet\.pt is not a file"):
        open_mtcnn(tmp_path)
    for name in FILES:
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / name)
    with pytest.raises(DataError, match=r"pnet\.pt does not hold this network of MTCNN"):
        open_mtcnn(tmp_path / "pnet.pt")
