"""The crops of IJB brought to 112×112 by their five points, as insightface does."""

import warnings
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.alignment.transform import TEMPLATE, move, similarity, warp
from Utils.Datasets_Utils.images import ImageError, ImageWarning, read_image
from Utils.Evaluation_Utils.ijb.lists import Lists


class AlignedCrops:
    """The images of the lists in a folder: images[i] is uint8 112×112×3 RGB, aligned by its five
    points, or as it is if it is `aligned` already. Raises ImageError when one can't be read; an
    ImageWarning tells of points that are all outside of it."""

    def __init__(self, folder: Path, lists: Lists, aligned: bool) -> None:
        self.lists, self.aligned = lists, aligned
        self.paths = [str(folder / name) for name in lists.names]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> np.ndarray:
        image = read_image(self.paths[row])
        if self.aligned:
            return image
        points = self.lists.points[row]
        if not ((points >= 0) & (points < image.shape[1::-1])).all(axis=1).any():
            warnings.warn(
                f"{self.lists.points_file}, line {self.lists.lines[row]}: none of the five points "
                f"is inside of the crop",
                ImageWarning,
                stacklevel=2,
            )
        try:
            matrix = similarity(points, TEMPLATE)
        except ValueError as error:
            raise ImageError(
                f"{self.lists.points_file}, line {self.lists.lines[row]}: {error}, so the image "
                f"can't be aligned."
            ) from None
        return warp(image, matrix)

    def keypoints(self, row: int) -> np.ndarray | None:
        """The five points of images[row], for networks with KP-RPE: float64 5×2, in its pixels.
        None if the images are aligned already: the points are those of other crops."""
        points = self.lists.points[row]
        return None if self.aligned else move(points, similarity(points, TEMPLATE))
