"""MegaFace's features: embedded from photos, or read from the devkit's files.

No random augmentation: the feature of a photo joins the embeddings of it and of its mirror image,
in the way that `FLIPS` names, and is L2-normalised.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from Utils.Datasets_Utils.photos import PhotoList, Photos
from Utils.errors import DataError
from Utils.Evaluation_Utils.embedding import embed_batches
from Utils.Evaluation_Utils.features import Producer, by_lots
from Utils.Evaluation_Utils.identification.exact_scores import unit_rows
from Utils.Evaluation_Utils.megaface.devkit import read_devkit_file, read_features
from Utils.processes import Processes

# sum: the sum of both, as insightface does for MegaFace. concat: one after the other, as the
# lineage does for verification; twice as large. none: that of the photo alone.
FLIPS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "sum": lambda straight, mirrored: straight + mirrored,
    "concat": lambda straight, mirrored: np.concatenate([straight, mirrored], axis=1),
    "none": lambda straight, mirrored: straight,
}


def feature_size(backbone: nn.Module, flip: str) -> int:
    """The dimension of a photo's feature."""
    return backbone.feature_dim * (2 if flip == "concat" else 1)


def embedded(
    photos: Photos,
    backbone: nn.Module,
    flip: str,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    progress: str | None,
    processes: Processes,
) -> Producer:
    """A producer of features from photos. progress: label of a bar that the first process shows."""

    def produce(lots: Sequence[range]) -> Iterable[np.ndarray]:
        # No batch reaches beyond its lot, so each photo is always in the same batch, however much
        # was done before and however many processes there are.
        batches = [
            range(start, min(start + batch_size, lot.stop))
            for lot in lots
            for start in range(lot.start, lot.stop, batch_size)
        ]
        made = embed_batches(backbone, photos.images, device, batches, num_workers)
        joined = (unit_rows(FLIPS[flip](*both)) for both in made)
        return by_lots(lots, _shown(joined, lots, progress, "image", processes))

    return produce


def from_devkit(
    folder: Path,
    listed: PhotoList,
    suffix: str,
    dtype: str,
    progress: str | None,
    processes: Processes,
) -> tuple[Producer, int]:
    """A producer of features from the devkit's files, and their dimension.

    dtype: of the table that they are written to. fp32 keeps every bit; fp16 has not the range for
    features of any length, so they are L2-normalised.
    """
    dim = len(read_devkit_file(folder / f"{listed.names[0]}{suffix}"))

    def produce(lots: Sequence[range]) -> Iterable[np.ndarray]:
        rows = [row for lot in lots for row in lot]
        parts = (part[None] for part in read_features(folder, listed.names, suffix, rows, dim))
        if dtype == "fp16":
            parts = map(unit_rows, parts)
        return by_lots(lots, _shown(parts, lots, progress, "file", processes))

    return produce, dim


def weights_digest(backbone: nn.Module) -> str:
    """SHA-256 of a network's weights and of its preprocessing, as 64 hexadecimal digits."""
    found = hashlib.sha256(repr(backbone.preprocessing).encode())
    for name, value in backbone.state_dict().items():
        found.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def list_digest(listed: PhotoList) -> str:
    """SHA-256 of the names and identities of a list."""
    found = hashlib.sha256("\n".join(listed.names).encode("utf-8", "surrogateescape"))
    found.update("\n".join(listed.ids or ()).encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def about_photos(
    network: str, listed: PhotoList, dim: int, dtype: str, flip: str, **more: Any
) -> dict[str, Any]:
    """What features of photos were made with, for `packed_features`. network: its fingerprint.
    more: whatever else changes the features, as plain values."""
    made_with = {"network": network, "list": list_digest(listed), "dim": dim, "dtype": dtype}
    return {**made_with, "flip": flip, **more}


def about_devkit(files: str, listed: PhotoList, dim: int, dtype: str) -> dict[str, Any]:
    """What features from the devkit's files were made with; files: their fingerprint."""
    return {"files": files, "list": list_digest(listed), "dim": dim, "dtype": dtype}


def check_same_network(probes: dict[str, Any], distractors: dict[str, Any]) -> None:
    """Raises DataError for features of two networks, or of one that was used in two ways, as far as
    both tables say what they were made with."""
    for name in ("network", "dim", "flip", "preprocessing"):
        if name in probes and name in distractors and probes[name] != distractors[name]:
            raise DataError(
                f"the features of the probes and of the distractors can't be compared: their "
                f"{name} differs ({_short(probes[name])} and {_short(distractors[name])}); extract "
                f"both with the same network and feature_flip."
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) != 64 else f"{text[:12]}..."  # a fingerprint


def _shown(
    parts: Iterable[np.ndarray],
    lots: Sequence[range],
    progress: str | None,
    unit: str,
    processes: Processes,
) -> Iterable[np.ndarray]:
    hidden = progress is None or not processes.is_main
    total = sum(len(lot) for lot in lots)
    with tqdm(total=total, desc=progress, unit=unit, disable=hidden) as bar:
        for part in parts:
            bar.update(len(part))
            yield part
