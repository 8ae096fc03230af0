"""Training images: a list of Python strings, and each image made float in Python."""

import os
import random
from collections.abc import Sequence

import cv2
import torch
from torch.utils.data import Dataset


def read_list(root: str, file_list: str) -> list[tuple[str, int]]:
    """(path, label) of each line `path  label`; every file is looked for."""
    images = []
    with open(file_list) as file:
        for line in file:
            path, label = line.rstrip().rsplit(None, 1)
            path = os.path.join(root, path)
            if not os.path.isfile(path):
                raise FileNotFoundError(path)
            images.append((path, int(label)))
    return images


class PlainImages(Dataset):
    """(float 3×H×W in -1..1, label) of each file, mirrored at random."""

    def __init__(self, images: Sequence[tuple[str, int]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.images[index]
        image = cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)
        if random.random() < 0.5:
            image = cv2.flip(image, 1)
        tensor = torch.from_numpy(image.transpose(2, 0, 1)).float().div(255)
        return tensor.sub_(0.5).div_(0.5), label
