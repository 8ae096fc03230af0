"""A trained network as the teacher of the one that is trained: its student.

Beside the margin loss, the student learns to give an image the embedding that the teacher gives it.
Hinton et al. (https://arxiv.org/abs/1503.02531) had a network learn another one's outputs; FitNets
(https://arxiv.org/abs/1412.6550) did so with its features; ShrinkTeaNet
(https://arxiv.org/abs/1905.10620) with the directions of face embeddings.

`load_teacher` reads the network, `Teacher` gives a step its embeddings, and `Distillation` is the
loss, with the one layer that it may train.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Backbone import Preprocessing
from Config import Config
from Utils.Datasets_Utils.photos import PhotoList, Photos
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import CheckpointError
from Utils.Evaluation_Utils.embedding import fold
from Utils.Evaluation_Utils.features import (
    embedded,
    folder_for,
    pack_features,
    photos_digest,
    weights_digest,
)
from Utils.files import make_folder
from Utils.Pretrained_Utils.load import describe, load_backbone
from Utils.processes import Processes
from Utils.Training_Utils.augmentation import Augmentation, build_augmentation
from Utils.Training_Utils.data import ImagesOnly

FOLDER = "teacher_embeddings"  # in save_dir
_TABLE_VERSION = 1  # raise it when the same teacher and images would give another table


def distillation_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How far the embeddings of a batch are from the teacher's, both N×T: a scalar.

    cosine: the mean of 1 - cos(student, teacher), 0..2, which compares directions alone.
    ShrinkTeaNet (eq. 4) squares each of these differences; without the square the gradient does not
    vanish near the teacher. It is half the squared distance of the L2-normalised embeddings, as
    ‖a - b‖² = 2 (1 - cos) for ‖a‖ = ‖b‖ = 1.
    l2: the mean of (student - teacher)² over images and values, of the embeddings as they are: so
    the student learns their norms too. FitNets (eq. 3) has half the sum over the values; the mean
    does not depend on T.
    """
    if kind == "l2":
        return F.mse_loss(student, teacher)
    return (1 - F.cosine_similarity(student, teacher)).mean()


class Distillation(nn.Module):
    """The loss of student embeddings N×D against those of its teacher, N×T.

    Where D is not T, a linear map of the student's embeddings is compared, which is trained too, as
    the regressor of FitNets is. It has no bias, so that a direction is mapped to a direction. The
    network itself stays as it is: the map is used in training alone. (If the teacher's embeddings
    were mapped instead, the loss would be smallest where that map is 0.)

    kind: of `distillation_loss`. teacher: the digest of its weights, for checkpoints.
    """

    def __init__(self, kind: str, feature_dim: int, teacher_dim: int, teacher: str = "") -> None:
        super().__init__()
        self.kind, self.teacher = kind, teacher
        self.projection: nn.Linear | None = None
        if feature_dim != teacher_dim:
            self.projection = nn.Linear(feature_dim, teacher_dim, bias=False)

    def forward(self, embeddings: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar, computed in float32 whatever autocast says."""
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.projection is not None:
                embeddings = self.projection(embeddings.to(self.projection.weight.dtype))
            embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            return distillation_loss(embeddings, targets.to(embeddings.dtype), self.kind)

    def saved(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        return {"teacher": self.teacher, "weights": self.state_dict()}

    def restore(self, saved: dict[str, Any]) -> None:
        """The inverse of `saved`. A map that was not saved remains new."""
        if saved["weights"]:
            self.load_state_dict(saved["weights"])


class TeacherNetwork(nn.Module):
    """A teacher that takes its student's images, as its `preprocessing` says.

    It resizes them by the ratio of the heights, and crops or fills the columns: the usual 112×112
    and 112×96 show the face at one size. New columns are black, as the edges of aligned faces are.
    """

    def __init__(self, backbone: nn.Module, input_size: tuple[int, int]) -> None:
        super().__init__()
        own = backbone.preprocessing
        self.backbone, self.feature_dim = backbone, backbone.feature_dim
        self.preprocessing = replace(own, input_size=tuple(input_size))
        self._black = -own.mean / own.scale
        (height, width), (ours, columns) = own.input_size, input_size
        self._size = (height, max(1, round(columns * height / ours)))
        self._resizes = height != ours
        left = (width - self._size[1]) // 2
        self._pad = (left, width - self._size[1] - left)  # below 0: cropped

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings N×T of float N×3×H×W, of the student's size."""
        if self._resizes:
            pixels = F.interpolate(pixels, self._size, mode="bilinear", antialias=True)
        if any(self._pad):
            pixels = F.pad(pixels, self._pad, value=self._black)
        return self.backbone(pixels)


class EmbeddingTable(Sequence[np.ndarray]):
    """float16 2×T for an index of the training set: the teacher's embeddings of the image and of
    its mirror image. The file is mapped in each process that reads it."""

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


@dataclass
class Teacher:
    """Gives a step the teacher's embeddings: out of a table, or computed.

    network: on the run's device, but on the CPU until `prepare`; None where the table has its
    embeddings. feature_dim: T. digest: of its weights. amp_dtype: under autocast; None: float32.
    lines: for the log.
    """

    network: nn.Module | None
    preprocessing: Preprocessing
    feature_dim: int
    digest: str
    amp_dtype: torch.dtype | None = None
    table: EmbeddingTable | None = None
    lines: list[str] = field(default_factory=list)

    def prepare(
        self, config: Config, data: TrainingSet, device: torch.device, processes: Processes
    ) -> None:
        """Make the table of all embeddings, or find it, if augmentation only mirrors the images;
        otherwise move the network to the device. All processes must call this.

        Raises RunError if the table can't be written, DataError if an embedding is not finite.
        """
        network = TeacherNetwork(self.network, config.input_size).to(device)
        self.preprocessing = network.preprocessing
        changes = build_augmentation(config)
        if changes.only_flips and not config.para_adj_mode:
            self.table = embedding_table(network, self.digest, config, data, device, processes)
            self.network = None
            size = self.table.path.stat().st_size / 1e9
            self.lines.append(
                f"its embeddings of all images and mirror images are computed once, as nothing "
                f"else changes an image: {self.table.path.parent} ({size:.2g} GB)"
            )
            return
        self.network = fold(network).requires_grad_(False)
        self.lines.append(f"its embeddings are computed in each step, {_why_each_step(changes)}")

    @torch.no_grad()
    def __call__(self, images: Tensor, flips: Tensor, known: Tensor) -> Tensor:
        """Embeddings N×T of uint8 images N×H×W×3, some of them mirrored.

        flips: bool N. known: N×2×T, the rows of the table; not looked at where there is none.
        """
        if self.table is not None:
            return torch.where(flips[:, None], known[:, 1], known[:, 0])
        pixels = self.preprocessing(images, flips)
        with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            return self.network(pixels)


def load_teacher(config: Config, amp_dtype: torch.dtype | None = None) -> Teacher:
    """The teacher that the settings name, on the CPU.

    Raises CheckpointError if its file is missing or no network.
    """
    lineage = "" if config.pretrained else config.lineage
    try:
        network = load_backbone(config.teacher, lineage or None, which=config.weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"the teacher can't be used: {error} A run needs its teacher whenever it starts or "
            f"resumes; if the file has moved, give its path with --teacher."
        ) from None
    weights = (
        f"{config.teacher_loss} loss × {config.teacher_weight:g}, margin loss × "
        f"{config.margin_weight:g}"
    )
    lines = [f"teacher {config.teacher}: {describe(network)}; {weights}"]
    if network.feature_dim != config.feature_dim:
        lines.append(
            f"a linear map of the {config.feature_dim} values of an embedding to the teacher's "
            f"{network.feature_dim} is trained too"
        )
    return Teacher(
        network=network,
        preprocessing=network.preprocessing,
        feature_dim=network.feature_dim,
        digest=weights_digest(network),
        amp_dtype=amp_dtype,
        lines=lines,
    )


def check_teacher(
    saved: dict[str, Any], path: Path, config: Config, teacher: Teacher | None
) -> None:
    """Raise CheckpointError if a checkpoint's map is not of this teacher's size, or the teacher's
    file has changed. A run may be resumed with a teacher that it did not have."""
    before = saved.get("distillation")
    if before is None:
        return
    if before["weights"]:
        theirs = tuple(before["weights"]["projection.weight"].shape)
        if teacher is None or theirs != (teacher.feature_dim, config.feature_dim):
            ours = f"a teacher of {teacher.feature_dim}" if teacher else "no teacher"
            raise CheckpointError(
                f"checkpoint {path} has a map of its embeddings to the {theirs[0]} values of its "
                f"teacher, and the settings have {ours}; resume with the run's own teacher, or "
                f"start a new run from these weights with --pretrained."
            )
    same_name = config.teacher == saved["settings"].get("teacher")
    if teacher and same_name and before["teacher"] != teacher.digest:
        raise CheckpointError(
            f"checkpoint {path}: the teacher {config.teacher} has other weights now than when the "
            f"run was saved; put the file back, or give the new one another name, with --teacher."
        )


def embedding_table(
    network: TeacherNetwork,
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
        "version": _TABLE_VERSION,
        "network": digest,
        "input_size": list(config.input_size),
        "images": processes.from_main(lambda: images_digest(data)),
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
        skip_unreadable=True,  # training takes the next image for it, and that one's embedding
        unit=False,
    )
    with _alone(parent, processes):
        files = pack_features(
            folder, listed, about, produce, processes, say=lambda _: None, progress="Teacher"
        )
    return EmbeddingTable(files.table)


def images_digest(data: TrainingSet) -> str:
    """SHA-256 of the names of a set's images in their order, and of the sizes and times of their
    files: other images, and the same in another order, have another one."""
    store = data.images
    rows = range(len(store)) if data.rows is None else data.rows.tolist()
    if os.path.isfile(store.place(rows[0])):  # each image is a file
        files: Any = map(store.place, rows)
    else:
        source = Path(store.source)
        files = [source, *sorted(source.rglob("*"))]
    found = hashlib.sha256(f"{data.channel_order} {photos_digest(files)}\n".encode())
    for row in rows:
        found.update(store.name(row).encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()


@contextmanager
def _alone(folder: Path, processes: Processes) -> Iterator[None]:
    """Wait until no other run makes tables in a folder."""
    if not processes.is_main:
        yield
        return
    make_folder(folder)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _why_each_step(changes: Augmentation) -> str:
    if changes.only_flips:
        return "as para_adj_mode writes no files"
    return "as augmentation changes more of an image than its side"
