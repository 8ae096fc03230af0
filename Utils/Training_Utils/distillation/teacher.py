"""The teacher: `load_teacher` reads the network, and `Teacher` gives a step its embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Backbone import Preprocessing
from Config import Config
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import CheckpointError
from Utils.Evaluation_Utils.embedding import fold
from Utils.Evaluation_Utils.features import weights_digest
from Utils.Pretrained_Utils.load import describe, load_backbone
from Utils.processes import Processes
from Utils.Training_Utils.augmentation import Augmentation, build_augmentation
from Utils.Training_Utils.distillation.table import EmbeddingTable, embedding_table

MAP = "projection.weight"  # T×D, of `Distillation`, where D is not T


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
            size = self.table.path.stat().st_size / 1e6
            self.lines.append(
                f"its embeddings of all images and mirror images are computed once, as nothing "
                f"else changes an image: {self.table.path.parent}, {size:,.1f} MB"
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
    file has changed. A run may be resumed with a teacher that it did not have; where it had another
    one, the log says so."""
    before = saved.get("distillation")
    if before is None:
        return
    for name, weight in before["weights"].items():
        needed = (teacher.feature_dim, config.feature_dim) if teacher else None
        if name != MAP or tuple(weight.shape) != needed:
            ours = f"a teacher of {teacher.feature_dim}" if teacher else "no teacher"
            raise CheckpointError(
                f"checkpoint {path} has a map of its embeddings to those of its teacher, {name} of "
                f"{tuple(weight.shape)}, and the settings have {ours}; resume with the run's own "
                f"teacher, or start a new run from these weights with --pretrained."
            )
    if teacher is None or before["teacher"] == teacher.digest:
        return
    if config.teacher == saved["settings"].get("teacher"):
        raise CheckpointError(
            f"checkpoint {path}: the teacher {config.teacher} has other weights now than when the "
            f"run was saved; put the file back, or give the new one another name, with --teacher."
        )
    teacher.lines.append("it is another network than the run's teacher so far")


def _why_each_step(changes: Augmentation) -> str:
    if changes.only_flips:
        return "as para_adj_mode writes no files"
    return "as augmentation changes more of an image than its side"
