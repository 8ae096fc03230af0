"""Pictures of a test set that are in a training set too, the same or nearly so."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.quality.alike import near_hashes, picture_hash, really_alike
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import StoredImages
from Utils.Evaluation_Utils.overlap.people import Tested
from Utils.workers import SteadyLoader

_BATCH = 64


def same_pictures(data: TrainingSet, tested: Tested, num_workers: int) -> dict[int, int]:
    """Class -> a test image of which it has a copy. Reads every image of both sets."""
    sets = (StoredImages(data.images, data.rows), tested.photos.images)
    found = [_hashes(sets[0], num_workers, "training"), _hashes(sets[1], num_workers, "test")]
    hashes, readable = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rows, count = np.flatnonzero(readable), len(data)

    def picture(row: int) -> np.ndarray:
        return sets[0][row] if row < count else sets[1][row - count]

    pairs = really_alike(rows[near_hashes(hashes[rows], rows >= count)], picture)
    classes: dict[int, int] = {}
    for training, test in pairs.tolist():
        # Of training images of one hash, the pair has the first.
        alike = np.flatnonzero((hashes[:count] == hashes[training]).all(axis=1))
        for label in np.asarray(data.labels)[alike].tolist():
            classes.setdefault(label, test - count)
    return classes


def _hashes(images: Sequence[np.ndarray], num_workers: int, of: str) -> tuple:
    """(int64 N×2 hashes, bools N: whether the image can be read)."""
    hashes, readable = np.zeros((len(images), 2), np.int64), np.zeros(len(images), bool)
    loader = SteadyLoader(
        _Hashed(images), batch_size=_BATCH, num_workers=num_workers, collate_fn=list
    )
    with tqdm(total=len(images), unit="image", desc=f"Pictures of the {of} set") as bar:
        for batch in loader:
            for row, found in enumerate(batch, bar.n):
                if found is not None:
                    hashes[row], readable[row] = found, True
            bar.update(len(batch))
    return hashes, readable


class _Hashed(Dataset):
    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, int] | None:
        try:
            return picture_hash(self.images[index])
        except ImageError:
            return None
