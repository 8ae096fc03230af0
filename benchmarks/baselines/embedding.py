"""A verification set embedded pair by pair: four passes a batch, photos again in each pair."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class _Pairs(Dataset):
    """For each pair: left, left mirrored, right, right mirrored, float 3×H×W."""

    def __init__(self, left: Sequence[str], right: Sequence[str]) -> None:
        self.left, self.right = left, right

    def __len__(self) -> int:
        return len(self.left)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        images = []
        for path in (self.left[index], self.right[index]):
            photo = cv2.imread(path)[:, :, ::-1]
            images += [photo, photo[:, ::-1]]
        normalised = [((image - 127.5) / 127.5).transpose(2, 0, 1) for image in images]
        return [torch.from_numpy(image.copy()).float() for image in normalised]


def embed_pairs(
    backbone: nn.Module, left: Sequence[str], right: Sequence[str], batch_size: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """float32 P×2D of the left and of the right photos (files), each beside its mirror image's."""
    backbone.eval()
    sides: list[list[np.ndarray]] = [[], []]
    for batch in DataLoader(_Pairs(left, right), batch_size):
        with torch.no_grad():
            found = [backbone(images).numpy() for images in batch]
        sides[0].append(np.concatenate(found[:2], axis=1))
        sides[1].append(np.concatenate(found[2:], axis=1))
    return np.concatenate(sides[0]), np.concatenate(sides[1])
