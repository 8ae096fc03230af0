"""Embeddings of images and of their mirror images, each image once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

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
    starts = range(0, len(images), batch_size)
    batches = [range(start, min(start + batch_size, len(images))) for start in starts]
    features = np.empty((2, len(images), backbone.feature_dim), np.float32)
    done = 0
    with tqdm(total=len(images), desc=progress, unit="image", disable=progress is None) as bar:
        for both in embed_batches(backbone, images, device, batches, num_workers):
            features[:, done : done + both.shape[1]] = both
            done += both.shape[1]
            bar.update(both.shape[1])
    return features[0], features[1]


def embed_batches(
    backbone: nn.Module,
    images: Sequence[np.ndarray],
    device: torch.device,
    batches: Sequence[Sequence[int]],
    num_workers: int = 0,
) -> Iterator[np.ndarray]:
    """As `embed`, for batches of chosen images: yields float32 2×n×D for each, in their order."""
    loader = DataLoader(
        _Images(images, backbone.preprocessing.input_size),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        # Its own generator, so that judging in the middle of training does not move the global one.
        generator=torch.Generator(),
    )
    was_training = backbone.training
    backbone.eval()
    try:
        if device.type == "cpu":
            yield from _in_threads(
                lambda batch: _embed_batch(backbone, batch).numpy(), _readable(loader)
            )
        else:
            for batch in _readable(loader):
                both = _embed_batch(backbone, batch.to(device, non_blocking=True))
                yield both.cpu().numpy()
    finally:
        backbone.train(was_training)


def _readable(batches: Iterable[torch.Tensor | str]) -> Iterator[torch.Tensor]:
    for batch in batches:
        if isinstance(batch, str):
            raise ImageError(batch)
        yield batch


def _in_threads(
    work: Callable[[torch.Tensor], np.ndarray], batches: Iterable[torch.Tensor]
) -> Iterator[np.ndarray]:
    """Work on batches side by side, each in one thread; gives the results in order.

    One batch in several threads has other roundings for each number of them: so, embeddings are
    the same to the last bit in however many threads and processes they are made.
    """
    count = torch.get_num_threads()
    waiting: deque[Future[np.ndarray]] = deque()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for batch in batches:
                waiting.append(pool.submit(work, batch))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(count)  # what a thread sets for itself, later threads inherit


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
