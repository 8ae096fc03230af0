"""A face brought to the template by five points, as the field's training and test sets are aligned.

The points are the left eye, the right eye, the tip of the nose, and the left and right corner of
the mouth, left and right as they are in the picture. x and y are in pixels; (0, 0) is the centre of
the upper left pixel.
"""

import cv2
import numpy as np

from Backbone import preprocessing

# Where the five points come to lie in 112×112, 5×2.
TEMPLATE = np.array(preprocessing.TEMPLATE)
_SIDE = preprocessing.TEMPLATE_SIDE
_SMALLEST = 1.0  # pixels between the outermost points
_FARTHEST = 1e6  # pixels: of no photograph


def template(size: tuple[int, int]) -> np.ndarray:
    """Where the five points come to lie in crops of size (height, width), float64 5×2.

    The height decides how large the face is, and the width how much there is beside it: 112×96
    lacks 8 columns of 112×112 on either side, which is SphereFace's template.
    """
    height, width = size
    scale = height / _SIDE
    return TEMPLATE * scale + ((width - _SIDE * scale) / 2, 0)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The 2×3 matrix (cR | t) of the similarity that brings K×2 points nearest to K×2 others.

    Least squares, without reflection: Umeyama, "Least-squares estimation of transformation
    parameters between two point patterns" (1991), equations 38 to 43. Raises ValueError if the
    source's points are all the same.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    mean, target_mean = source.mean(axis=0), target.mean(axis=0)
    variance = ((source - mean) ** 2).sum(axis=1).mean()  # σx²
    if variance == 0:
        raise ValueError("all points are the same")
    covariance = (target - target_mean).T @ (source - mean) / len(source)  # Σxy
    left, singular, right = np.linalg.svd(covariance)
    signs = np.array([1.0, np.sign(np.linalg.det(left) * np.linalg.det(right))])  # S
    rotation = left * signs @ right
    scaled = (singular * signs).sum() / variance * rotation
    return np.column_stack((scaled, target_mean - scaled @ mean))


def move(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """K×2 points moved by a 2×3 matrix."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int] = (_SIDE, _SIDE),
    border: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """The crop of size (height, width), uint8 H×W×3, that a 2×3 matrix makes of an image.

    Bilinear, as in the recipes that published networks were trained with. border: the colour of
    what is outside the image.
    """
    return cv2.warpAffine(image, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderValue=border)


def problem(points: np.ndarray) -> str:
    """Why five points can't be used; empty if they can."""
    if not (np.abs(points) < _FARTHEST).all():  # NaN is not either
        return "the points are not pixels of a photograph"
    if np.ptp(points, axis=0).max() < _SMALLEST:
        return "the five points are at one place"
    matrix, mirrored = similarity(points, TEMPLATE), similarity(points, TEMPLATE * (-1, 1))
    # From the side, the five points are nearly in a line, and a reflection fits almost as well.
    if 2 * misfit(points, mirrored, TEMPLATE * (-1, 1)) < misfit(points, matrix, TEMPLATE):
        return "left and right are swapped: the left eye is the one on the left of the picture"
    return ""


def misfit(points: np.ndarray, matrix: np.ndarray, target: np.ndarray) -> float:
    """How far K×2 points, moved by a matrix, are from the target: root of the mean square, in its
    pixels."""
    return float(np.sqrt(((move(points, matrix) - target) ** 2).sum(axis=1).mean()))


def rotation(matrix: np.ndarray) -> float:
    """By how many degrees, -180 to 180, the face is turned clockwise in the picture."""
    return float(np.degrees(np.arctan2(-matrix[1, 0], matrix[0, 0])))


def enlargement(matrix: np.ndarray) -> float:
    """How many times as large as in the picture the face is in the crop."""
    return float(np.hypot(matrix[0, 0], matrix[1, 0]))
