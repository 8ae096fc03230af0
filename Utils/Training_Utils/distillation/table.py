"""The teacher's embeddings of all images of a training set, computed once and kept on disk.

They are in a folder of `save_dir` that every run with the same teacher and the same images uses.
Its name is a digest of both, so that a changed teacher or changed images have another table.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Config import Config
from Utils.Datasets_Utils.photos import PhotoList, Photos, labelled_photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import RunError
from Utils.Evaluation_Utils.features import embedded, folder_for, pack_features
from Utils.files import make_folder, not_written
from Utils.processes import Processes
from Utils.Training_Utils.data import ImagesOnly

FOLDER = "teacher_embeddings"  # in save_dir
_VERSION = 2  # raise it when the same teacher and images would give another table


class EmbeddingTable(Sequence[np.ndarray]):
    """float16 2×T for an index of the training set: the teacher's embeddings of the image and of
    its mirror image; zeros for an image that could not be read when the table was made. The file is
    mapped in each process that reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_rows": None}

    def __len__(self) -> int:
        return len(self._mapped())

    def __getitem__(self, index: int) -> np.ndarray:
        return np.array(self._mapped()[index]).reshape(2, -1)

    def _mapped(self) -> np.ndarray:
        if self._rows is None:
            self._rows = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return self._rows


def embedding_table(
    network: nn.Module,
    digest: str,
    config: Config,
    data: TrainingSet,
    device: torch.device,
    processes: Processes,
) -> EmbeddingTable:
    """The embeddings of all images of a training set, in a folder of `save_dir` that all runs with
    the same teacher and images use; those that are missing are computed, in float32.

    Raises as `pack_features` does. All processes must call this.
    """
    about = {
        "version": _VERSION,
        "network": digest,
        "input_size": list(config.input_size),
        "images": processes.from_main(lambda: labelled_photos(data)[1]),
        "channel_order": data.channel_order,
        "dim": 2 * network.feature_dim,
        "dtype": "fp16",
    }
    parent = Path(config.save_dir) / FOLDER
    folder = folder_for(parent, Path(config.teacher).stem, about, processes)
    listed = PhotoList([str(row) for row in range(len(data))], None, str(data.source))
    produce = embedded(
        Photos(listed, ImagesOnly(data)),
        network,
        "concat",
        device,
        config.eval_batch_size,
        config.num_workers,
        skip_unreadable=True,  # training takes the next image for it, see `FittedImages`
        unit=False,
    )
    with _alone(parent, processes):
        files = pack_features(
            folder, listed, about, produce, processes, say=lambda _: None, progress="Teacher"
        )
    return EmbeddingTable(files.table)


@contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Wait until no other run makes tables in a folder."""
    if not processes.is_main:
        yield
        return
    make_folder(folder)
    path = folder / ".lock"
    try:
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if error.filename != str(path):
            raise
        raise RunError(not_written(path, error)) from None
