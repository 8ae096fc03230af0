"""Find images under a wrong name: those whose features lie far from the centre of their identity.

    python -m Utils.Evaluation_Utils.label_noise CHECKPOINT DATA [--file_list LIST]

CHECKPOINT is a network, trained on these images or on others; DATA anything that training opens.
--output FOLDER (Results/label_noise_<name>) gets images.csv, every image with its angle to the
centre that the others of its identity make, the most suspicious first; identities.csv, by the
angle of their median image; worst.png, to look at; report.json, with the images that can't be read;
and features, which another start uses again. A network that was taught wrong labels until it knew
them by heart finds them right: where the worst images look right, take an earlier checkpoint.

Then write the list without the worst, from the report alone:

    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --max_angle 75
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.images import ImageError
from Utils.Datasets_Utils.photos import PhotoList, Photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.Datasets_Utils.verification_set import StoredImages
from Utils.devices import find_device
from Utils.errors import CheckpointError, run_script
from Utils.Evaluation_Utils.class_centres import (
    angles_to_centres,
    angles_to_weights,
    rows_of_zeros,
    typical_images,
)
from Utils.Evaluation_Utils.extraction import about_photos, embedded, weights_digest
from Utils.Evaluation_Utils.features import Producer, packed_features
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet
from Utils.files import atomic_path, make_folder, save_json
from Utils.Pretrained_Utils.lineages import reading_flags
from Utils.Pretrained_Utils.load import build, read_weights
from Utils.processes import ALONE

CENTRES = ("others", "weights")
IMAGE_COLUMNS = ("rank", "angle", "label", "image", "name")
IDENTITY_COLUMNS = ("rank", "median angle", "label", "images", "largest angle", "typical image")
SHOWN_IMAGES, SHOWN_IDENTITIES, PRINTED = 30, 15, 10
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)


def measure(
    data: TrainingSet,
    backbone: nn.Module,
    folder: Path,
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    class_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The angle of each image to the centre of its identity, float32 N degrees, nan without one;
    and the images, int64, that can't be read, whose angle is nan too.

    The features (image and mirror image added up, length 1, fp16; 0 where there is no image) go to
    a file in folder, and are used again for the same network and images: memory holds a block of
    them.
    class_weights: C×D, to measure against a head's weights instead.
    """
    numbers = PhotoList([str(i) for i in range(len(data))], None, str(data.source))
    about = about_photos(
        *(weights_digest(backbone), numbers, backbone.feature_dim, "fp16", "sum"),
        images=_digest(data.name(i) for i in range(len(data))),
        source=str(data.images.source),
    )
    rows = np.arange(len(data)) if data.rows is None else data.rows
    images = _Readable(StoredImages(data.images, rows))
    producer = embedded(
        *(Photos(numbers, images), backbone.to(device), "sum", device),
        *(batch_size, num_workers, "Embedding", ALONE),
    )
    features = packed_features(folder, numbers, about, images.without_others(producer)).table
    labels, unreadable = np.asarray(data.labels), rows_of_zeros(features)
    if class_weights is None:
        return angles_to_centres(features, labels), unreadable
    return angles_to_weights(features, labels, class_weights), unreadable


class _Readable(Sequence[np.ndarray]):
    """Images, with a black one for each that can't be read, which all processes then know of."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._images = images
        self._unreadable = torch.zeros(len(images), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> np.ndarray:
        try:
            return self._images[index]
        except ImageError:
            self._unreadable[index] = True
            return np.zeros((1, 1, 3), np.uint8)

    def without_others(self, producer: Producer) -> Producer:
        """The producer's features, 0 for images that can't be read."""

        def produce(lots: Sequence[range]) -> Iterator[np.ndarray]:
            for lot, features in zip(lots, producer(lots), strict=True):
                features[self._unreadable[lot.start : lot.stop].numpy()] = 0
                yield features

        return produce


def write_report(
    data: TrainingSet, angles: np.ndarray, unreadable: np.ndarray, folder: Path, about: dict
) -> str:
    """Write tables, contact sheet and report.json; returns lines for printing.

    angles, unreadable: as `measure` returns them.
    """
    labels = np.asarray(data.labels)
    images = np.argsort(-np.nan_to_num(angles, nan=-1.0), kind="stable")
    typical = typical_images(angles, labels)
    identities, medians, largest = _identities(angles, labels)
    counts = np.bincount(labels)
    _write_csv(
        folder / "images.csv",
        IMAGE_COLUMNS,
        (
            (rank, f"{angles[i]:.2f}", labels[i], i, data.name(i))
            for rank, i in enumerate(images.tolist(), 1)
        ),
    )
    _write_csv(
        folder / "identities.csv",
        IDENTITY_COLUMNS,
        (
            (rank, f"{medians[c]:.2f}", c, counts[c], f"{largest[c]:.2f}", data.name(typical[c]))
            for rank, c in enumerate(identities.tolist(), 1)
        ),
    )
    contact_sheet(
        _sheet(data, angles, images, identities, medians, typical),
        folder / "worst.png",
        f"Far from their identity: {data.source.name}",
    )
    names = [data.name(i) for i in unreadable.tolist()]
    summary = {**about, **_summary(angles, counts), "images that can't be read": names}
    save_json(folder / "report.json", summary)
    return _table(data, angles, images, identities, medians, summary)


def _identities(
    angles: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(identities, the most suspicious first; median and largest angle of each by label)."""
    order = np.lexsort((angles, labels))  # nan last in its identity
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    measured = np.bincount(labels[~np.isnan(angles)], minlength=len(starts))
    ordered, last = angles[order], np.maximum(measured - 1, 0)
    medians = (ordered[starts + last // 2] + ordered[starts + measured // 2]) / 2
    ranked = np.argsort(-np.nan_to_num(medians, nan=-1.0), kind="stable")
    return ranked, medians, ordered[starts + last]


def _sheet(
    data: TrainingSet,
    angles: np.ndarray,
    images: np.ndarray,
    identities: np.ndarray,
    medians: np.ndarray,
    typical: np.ndarray,
) -> dict[str, list[SheetPair]]:
    """Each image beside the most typical one of its identity; identities as their two extremes."""
    labels = np.asarray(data.labels)

    def pair(left: int, right: int, caption: str) -> SheetPair:
        return data[left][0], data[right][0], caption

    worst = [i for i in images[:SHOWN_IMAGES].tolist() if not np.isnan(angles[i])]
    firsts = images[np.unique(labels[images], return_index=True)[1]]  # the furthest of each
    odd = [c for c in identities[:SHOWN_IDENTITIES].tolist() if not np.isnan(medians[c])]
    return {
        "Images furthest from their identity, each beside its most typical image": [
            pair(i, typical[labels[i]], f"{angles[i]:.0f}°, label {labels[i]}\n{data.name(i)}")
            for i in worst
        ],
        "Identities of the widest spread: the furthest image and the most typical one": [
            pair(firsts[c], typical[c], f"label {c}, median {medians[c]:.0f}°") for c in odd
        ],
    }


def _summary(angles: np.ndarray, counts: np.ndarray) -> dict[str, Any]:
    found = angles[~np.isnan(angles)]
    at = np.percentile(found, PERCENTILES).tolist() if found.size else []
    return {
        "images": len(angles),
        "identities": len(counts),
        "identities with one image": int((counts == 1).sum()),
        "angle percentiles": {f"{p} %": round(a, 2) for p, a in zip(PERCENTILES, at, strict=False)},
    }


def _table(
    data: TrainingSet,
    angles: np.ndarray,
    images: np.ndarray,
    identities: np.ndarray,
    medians: np.ndarray,
    summary: dict[str, Any],
) -> str:
    shares = "".join(f"{share:>8}" for share in summary["angle percentiles"])
    degrees = "".join(f"{angle:>7.1f}°" for angle in summary["angle percentiles"].values())
    lines = [
        f"{len(data):,} images of {data.num_classes:,} identities",
        "",
        f"{'images up to':<14}{shares}",
        f"{'angle':<14}{degrees}",
        "",
        f"{'angle':>6}{'label':>8}  most suspicious images",
    ]
    lines += [
        f"{angles[i]:>5.1f}°{data.labels[i]:>8}  {data.name(i)}" for i in images[:PRINTED].tolist()
    ]
    lines += ["", f"{'median':>6}{'label':>8}{'images':>8}  most suspicious identities"]
    counts = np.bincount(data.labels)
    lines += [f"{medians[c]:>5.1f}°{c:>8}{counts[c]:>8}" for c in identities[:PRINTED].tolist()]
    unreadable = summary["images that can't be read"]
    if unreadable:
        lines += ["", f"images that can't be read: {len(unreadable):,}", *unreadable[:PRINTED]]
    return "\n".join(lines)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _digest(names: Iterable[str]) -> str:
    found = hashlib.sha256()
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


def _class_weights(head: torch.Tensor | None, data: TrainingSet, feature_dim: int) -> np.ndarray:
    shape = (data.num_classes, feature_dim)
    if head is None or tuple(head.shape) != shape:
        found = "none" if head is None else "×".join(map(str, head.shape))
        raise CheckpointError(
            f"--centres weights needs class weights {shape[0]}×{shape[1]} for this set, the "
            f"checkpoint has {found}; use --centres others."
        )
    return head.float().numpy()


def main() -> None:
    """Read the command line, measure, write the report, print it."""
    parser = reading_flags(__doc__)
    parser.add_argument("data", help="the training set: all that training opens")
    parser.add_argument("--file_list", help="its image list")
    parser.add_argument("--output", help="folder for the report")
    parser.add_argument(
        *("--centres",), choices=CENTRES, default=CENTRES[0],
        help="an identity's centre: that of its other images, or its weights in the head, for a "
        "checkpoint that was trained with this very list",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch_size", type=int, default=64, help="images embedded at once")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read")
    given = parser.parse_args()
    data = open_training_set(given.data, given.file_list)
    weights = read_weights(given.source, given.lineage, given.weights)
    backbone = build(weights, given.channel_order, given.input_mean, given.input_scale)
    by_weights = given.centres == "weights"
    class_weights = _class_weights(weights.head, data, backbone.feature_dim) if by_weights else None
    folder = Path(given.output or f"Results/label_noise_{Path(given.data).absolute().name}")
    make_folder(folder)
    angles, unreadable = measure(
        data,
        backbone,
        folder / "features",
        find_device(given.device),
        given.batch_size,
        given.num_workers,
        class_weights,
    )
    about = {"checkpoint": str(weights.path), "data": str(data.source), "centres": given.centres}
    text = write_report(data, angles, unreadable, folder, about)
    print(f"\n{text}\n\nTables and pictures: {folder}")


if __name__ == "__main__":
    run_script(main)
