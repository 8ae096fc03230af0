"""Find images under a wrong name: those whose features are far from the centre of their identity.

    python -m Utils.Evaluation_Utils.label_noise CHECKPOINT DATA [--file_list LIST]

CHECKPOINT is a network, trained on these images or on others; DATA anything that training opens.
--output FOLDER (Results/label_noise_<name>) gets images.csv, every image with its angle to the
centre that the others of its identity make, the most suspicious first; identities.csv, by the
angle of their median image; worst.png, to look at; report.json, with the images that can't be read;
and features, which another start uses again. A network that has memorised wrong labels finds them
right: where the worst images look right, take an earlier checkpoint.

Then write the list without the worst, from the report alone:

    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --max_angle 75

An identity's centre is the geometric median of its L2-normalised features, L2-normalised itself:
the point with the least sum of distances. It stays with the majority as long as fewer than half of
the labels are wrong, whereas the mean moves with each of them. It is found by Weiszfeld's iteration
(1937): a mean with weights 1/distance, again and again. Each image is compared with the centre of
the others, with their final weights; otherwise one of three images would be near the centre because
it is a third of it.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

from Config import ConfigError
from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder
from Utils.Datasets_Utils.photos import Photos, labelled_photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.devices import find_device
from Utils.errors import CheckpointError, run_script
from Utils.Evaluation_Utils.clean_list import write_report
from Utils.Evaluation_Utils.features import (
    embedded,
    list_digest,
    packed_features,
    weights_digest,
)
from Utils.files import make_folder
from Utils.Pretrained_Utils import find_weights, load_backbone
from Utils.Pretrained_Utils.lineages import reading_flags
from Utils.Pretrained_Utils.load import describe, read_weights

CENTRES = ("others", "weights")
ITERATIONS = 20
CLOSEST = 1e-3  # smaller distances count as this, so that no weight is infinite
ROWS = 1 << 16  # features in memory at a time


def measure(
    data: TrainingSet,
    backbone: nn.Module,
    folder: Path,
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    class_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed a training set and measure the angle of each image to the centre of its identity.

    folder: for the features (the sum of image and mirror image, L2-normalised, fp16; 0 where an
    image can't be read). They are used again for the same network and images, and read in blocks.
    class_weights: C×D, to measure against a head's weights instead.

    Returns (angles, float32 N degrees, NaN if there is none; indices, int64, of the images that
    can't be read, whose angle is NaN too).
    """
    photos, names = labelled_photos(data)
    features = keep_features(
        photos, names, str(data.images.source), backbone, folder, device, batch_size, num_workers
    )
    labels, unreadable = np.asarray(data.labels), _rows_of_zeros(features)
    if class_weights is None:
        return angles_to_centres(features, labels), unreadable
    return angles_to_weights(features, labels, class_weights), unreadable


def keep_features(
    photos: Photos,
    names: str,
    source: str,
    backbone: nn.Module,
    folder: Path,
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
) -> np.ndarray:
    """The features of photos as `measure` keeps them in a folder, N×D, memory-mapped.

    names: their `images_digest`. source: the file or folder of their images.
    """
    about = {
        "network": weights_digest(backbone),
        "list": list_digest(photos.listed),
        "dim": backbone.feature_dim,
        "dtype": "fp16",
        "flip": "sum",
        "images": names,
        "source": source,
    }
    produce = embedded(
        photos, backbone.to(device), "sum", device, batch_size, num_workers, skip_unreadable=True
    )
    return packed_features(folder, photos.listed, about, produce, progress="Embedding").table


def angles_to_centres(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The angle, in degrees 0..180, of each image to the centre of the others of its class.

    features: N×D, L2-normalised, may be memory-mapped: about `ROWS` of them, or one class, are
    read at a time; a row of zeros stands for an image that can't be read. labels: int N, 0..C-1.
    Returns float32 N; NaN for the only image of a class and for those that can't be read.
    """
    angles = np.full(len(labels), np.nan, np.float32)
    for rows, starts in _class_blocks(labels):
        block = _read_rows(features, rows)
        for start, end in pairwise((*starts.tolist(), len(rows))):
            there = start + np.flatnonzero(block[start:end].any(1))
            if len(there) > 1:
                angles[rows[there]] = _angles_in_class(block[there].astype(np.float64))
    return angles


def angles_to_weights(
    features: np.ndarray, labels: np.ndarray, class_weights: np.ndarray
) -> np.ndarray:
    """The angle of each image to a head's weight of its class; otherwise as `angles_to_centres`.

    class_weights: C×D, of any length.
    """
    angles = np.empty(len(labels), np.float32)
    for rows, _ in _class_blocks(labels):
        block, weights = _read_rows(features, rows), class_weights[labels[rows]]
        lengths = np.linalg.norm(weights, axis=1) * np.linalg.norm(block, axis=1)
        found = _degrees(np.einsum("nd,nd->n", block, weights) / np.maximum(lengths, 1e-12))
        angles[rows] = np.where(block.any(1), found, np.nan)
    return angles


def _angles_in_class(x: np.ndarray) -> np.ndarray:
    """Degrees between each of n×D features, in float64, and the centre of the others."""
    squares = np.einsum("nd,nd->n", x, x)
    weights = np.ones(len(x))
    for _ in range(ITERATIONS):
        centre = weights @ x / weights.sum()
        distances = squares - 2 * (x @ centre) + centre @ centre  # squared
        weights = 1 / np.sqrt(np.maximum(distances, CLOSEST**2))
    # The sum of the others of image i is `total` - w_i·x_i; its products with x_i and itself:
    total = weights @ x
    along = x @ total
    lengths = total @ total - 2 * weights * along + weights**2 * squares
    return _degrees((along - weights * squares) / np.sqrt(np.maximum(lengths * squares, 1e-24)))


def _degrees(cosines: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(cosines.clip(-1, 1)))


def _class_blocks(labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(images, class by class; where each class begins among them), about `ROWS` at a time."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 2))
    first = 0
    while first < len(starts) - 1:
        last = np.searchsorted(starts, starts[first] + ROWS, side="right") - 1
        last = max(int(last), first + 1)
        yield order[starts[first] : starts[last]], starts[first:last] - starts[first]
        first = last


def _read_rows(features: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of features as float32, read in ascending order, which is faster from a disk."""
    order = np.argsort(rows)
    block = np.empty((len(rows), features.shape[1]), np.float32)
    block[order] = features[rows[order]]
    return block


def _rows_of_zeros(features: np.ndarray) -> np.ndarray:
    """The indices, int64, of the rows that hold nothing else."""
    starts = range(0, len(features), ROWS)
    found = [start + np.flatnonzero(~features[start : start + ROWS].any(1)) for start in starts]
    return np.concatenate(found)


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
    parser.add_argument("--list_encoding", default="", help="of the image list")
    add_identity_folder(parser)
    parser.add_argument("--output", help="folder for the report")
    parser.add_argument(
        "--centres",
        choices=CENTRES,
        default=CENTRES[0],
        help="an identity's centre: that of its other images, or its weights in the head, for a "
        "checkpoint that was trained with this very list",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch_size", type=int, default=64, help="images embedded at once")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read")
    given = parser.parse_args()
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(given, name) < least:
            raise ConfigError(name, getattr(given, name), f"it must be at least {least}.")
    data = open_training_set(
        given.data, given.file_list, given.identity_folder, given.list_encoding
    )
    read = (given.source, given.lineage)
    backbone = load_backbone(
        *read, given.channel_order, given.input_mean, given.input_scale, given.weights
    )
    print(f"network: {describe(backbone)}")
    class_weights = None
    if given.centres == "weights":
        head = read_weights(*read, given.weights, given.channel_order).head
        class_weights = _class_weights(head, data, backbone.feature_dim)
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
    about = {
        "checkpoint": str(find_weights(given.source)),
        "data": str(data.source),
        "centres": given.centres,
    }
    text = write_report(data, angles, unreadable, folder, about)
    print(f"\n{text}\n\nTables and pictures: {folder}")


if __name__ == "__main__":
    run_script(main)
