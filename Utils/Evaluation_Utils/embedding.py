"""Embeddings of images and of their mirror images, each image once."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from Utils.Datasets_Utils.images import ImageError, fit_image


def embed(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images with a backbone that is on `device`, in evaluation mode.

    images: N of uint8 H×W×3 RGB, any size; scaled and cut to the backbone's input size.
    progress: label of a progress bar; None shows none.

    Returns float32 N×D of the images and N×D of their mirror images, not normalised. The
    backbone's training mode is put back at the end. Raises ImageError, naming the file, where an
    image can't be read.
    """
    loader = DataLoader(
        _Images(images, backbone.preprocessing.input_size),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # Its own generator, so that judging in the middle of training does not move the global one.
        generator=torch.Generator(),
    )
    was_training = backbone.training
    backbone.eval()
    features = np.empty((2, len(images), backbone.feature_dim), np.float32)
    done = 0
    try:
        with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None) as bar:
            for batch in loader:
                if isinstance(batch, str):
                    raise ImageError(batch)
                both = _embed_batch(backbone, batch.to(device, non_blocking=True))
                features[:, done : done + len(batch)] = both.cpu().numpy()
                done += len(batch)
                bar.update(len(batch))
    finally:
        backbone.train(was_training)
    return features[0], features[1]


@torch.inference_mode()
def _embed_batch(backbone: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """uint8 N×H×W×3 -> float32 2×N×D, of the images and of their mirror images."""
    pixels = backbone.preprocessing(images)
    return torch.stack((backbone(pixels), backbone(pixels.flip(3)))).float()


class _Images(Dataset):
    def __init__(self, images: Sequence[np.ndarray], input_size: tuple[int, int]) -> None:
        self.images = images
        self.input_size = input_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray | str:
        try:
            return fit_image(self.images[index], self.input_size)
        except ImageError as error:
            # As text: an exception would come out of the worker wrapped in its traceback.
            return str(error)


def _stack(images: list[np.ndarray | str]) -> torch.Tensor | str:
    """N×H×W×3, or why an image can't be read."""
    unreadable = next((image for image in images if isinstance(image, str)), None)
    return unreadable or torch.from_numpy(np.stack(images))
