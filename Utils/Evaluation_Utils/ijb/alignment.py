"""A crop of a face brought to 112×112 by its five points, as insightface does for IJB."""

from pathlib import Path

import cv2
import numpy as np

from Utils.Datasets_Utils.images import ImageError, read_image
from Utils.Evaluation_Utils.ijb.lists import Lists

SIZE = 112
# Where the five points come to lie: insightface's template for 112×112.
TEMPLATE = np.array(
    [
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    ]
)


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


class AlignedCrops:
    """The images of the lists in a folder: images[i] is uint8 112×112×3 RGB, aligned by its five
    points, or as it is if it is `aligned` already. Raises ImageError when one can't be read."""

    def __init__(self, folder: Path, lists: Lists, aligned: bool) -> None:
        self.folder, self.lists, self.aligned = folder, lists, aligned

    def __len__(self) -> int:
        return len(self.lists.names)

    def __getitem__(self, row: int) -> np.ndarray:
        image = read_image(self.folder / self.lists.names[row])
        if self.aligned:
            return image
        try:
            matrix = similarity(self.lists.points[row], TEMPLATE)
        except ValueError as error:
            raise ImageError(
                f"{self.lists.points_file}, line {self.lists.lines[row]}: {error}, so the image "
                f"can't be aligned."
            ) from None
        return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderValue=0)
