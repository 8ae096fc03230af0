"""Photographs to aligned faces: the transform, the points, the files that a run leaves."""

import math

import cv2
import numpy as np
import pytest

from Utils.Datasets_Utils.alignment.faces import Faces, choose
from Utils.Datasets_Utils.alignment.transform import (
    TEMPLATE,
    move,
    problem,
    rotation,
    similarity,
    template,
    warp,
)

# --- the transform -------------------------------------------------------------------------------


def test_points_that_a_similarity_moved_are_brought_back():
    angle, scale, shift = 0.4, 1.7, (12.0, -5.0)
    turn = scale * np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    )
    matrix = similarity(TEMPLATE @ turn.T + shift, TEMPLATE)
    moved = np.column_stack((TEMPLATE @ turn.T + shift, np.ones(5))) @ matrix.T
    assert np.abs(moved - TEMPLATE).max() < 1e-9


def test_no_similarity_is_nearer_and_none_is_a_reflection():
    rng = np.random.default_rng(0)
    for _ in range(20):
        source = rng.normal(size=(5, 2))
        target = source * (1, -1) + 0.1 * rng.normal(size=(5, 2))  # mirrored
        matrix = similarity(source, target)
        assert np.linalg.det(matrix[:, :2]) > 0
        # Least squares of (a, b, tx, ty) in x' = ax - by + tx, y' = bx + ay + ty.
        x, y = source.T
        one, none = np.ones(5), np.zeros(5)
        system = np.concatenate(
            [np.column_stack((x, -y, one, none)), np.column_stack((y, x, none, one))]
        )
        a, b, tx, ty = np.linalg.lstsq(system, target.T.ravel(), rcond=None)[0]
        assert matrix == pytest.approx(np.array([[a, -b, tx], [b, a, ty]]), abs=1e-9)


def test_the_transform_is_scikit_images_and_the_pixels_are_the_published_recipes():
    transform = pytest.importorskip("skimage.transform")
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for _ in range(50):
        angle, scale = rng.uniform(-math.pi, math.pi), rng.uniform(0.3, 4)
        turn = scale * np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        points = TEMPLATE @ turn.T + rng.normal(0, 3 * scale, (5, 2)) + rng.uniform(0, 200, 2)
        theirs = transform.SimilarityTransform()
        theirs.estimate(points, TEMPLATE)
        matrix = similarity(points, TEMPLATE)
        assert matrix == pytest.approx(theirs.params[:2], abs=1e-6)
        published = cv2.warpAffine(image, theirs.params[:2], (112, 112), borderValue=0.0)
        np.testing.assert_array_equal(warp(image, matrix), published)


def test_templates_of_other_sizes_are_the_published_ones():
    sphereface = [(30.2946, 51.6963), (65.5318, 51.5014), (48.0252, 71.7366)]
    sphereface += [(33.5493, 92.3655), (62.7299, 92.2041)]
    assert template((112, 96)) == pytest.approx(np.array(sphereface), abs=1e-9)
    assert template((224, 224)) == pytest.approx(TEMPLATE * 2, abs=1e-9)


def test_the_border_has_the_colour_that_is_asked_for():
    matrix = np.array([[1.0, 0, 50], [0, 1, 0]])
    crop = warp(np.zeros((112, 112, 3), np.uint8), matrix, border=(10, 20, 30))
    assert crop[:, :49].reshape(-1, 3).tolist() == [[10, 20, 30]] * (112 * 49)
    assert not crop[:, 51:].any()


@pytest.mark.parametrize("angle", [-170, -90, 0, 45, 180])
def test_points_of_turned_and_of_side_faces_can_be_used_and_swapped_ones_not(angle):
    matrix = cv2.getRotationMatrix2D((56, 56), -angle, 2.0)  # its angles are anticlockwise
    points = move(TEMPLATE, matrix)
    assert problem(points) == ""
    difference = rotation(similarity(points, TEMPLATE)) - angle
    assert (difference + 180) % 360 - 180 == pytest.approx(0, abs=1e-6)
    assert "swapped" in problem(points[[1, 0, 2, 4, 3]])
    from_the_side = TEMPLATE * (0.1, 1) + np.array([[0, 0], [0, 0], [25, 0], [0, 0], [0, 0]])
    assert problem(move(from_the_side, matrix)) == ""


def test_points_that_say_nothing_are_named():
    assert "at one place" in problem(np.full((5, 2), 7.0))
    assert "finite" in problem(np.where(np.eye(5, 2) > 0, np.nan, 7.0))


# --- which face ----------------------------------------------------------------------------------


def test_which_face_of_several_is_taken():
    boxes = np.array([[0, 0, 50, 50], [40, 40, 60, 60], [0, 60, 90, 100]], float)
    faces = Faces(boxes, np.zeros((3, 5, 2)), np.array([0.9, 0.8, np.nan]))
    size = (100, 100)
    assert [choose(faces, which, size)[0] for which in ("largest", "central", "best")] == [2, 1, 0]
    assert choose(faces, "all", size) == [2, 0, 1]
