"""Class weights that come with a network: in its own file, or in files beside it.

Those are found by the names that each lineage's training code gives to its files.
"""

import fnmatch
import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.contents import PREFIXES, State, is_plain, open_head
from Utils.Pretrained_Utils.files import read_file

# The network's file -> that of its head; with * for several, each with some of the classes.
BESIDE = (
    (r"(?P<run>.*)_net(?P<end>\.\w+)", "{run}_margin{end}"),  # QuasarLight, wujiyang
    # face.evoLVe, CurricularFace; the minute in the two names may differ.
    (r"Backbone_.*(?P<run>_Epoch_\d+_(Batch_\d+_)?)Time_.*", "Head_*{run}Time_*"),
    (r"model_(?P<run>.+)", "head_{run}"),  # TreB1eN
    (r"model\.pt", "classifier_rank*.pt"),  # CVLface
    (r"checkpoint_gpu_\d+\.pt", "checkpoint_gpu_*.pt"),  # insightface
)
RANK = re.compile(r"(?:rank|gpu_)(\d+)\.pt")
# Some keep class weights as D×C; a tensor of this name always is.
BY_COLUMNS = "kernel"


@dataclass(frozen=True)
class ClassWeights:
    """A table of class weights.

    weights: C×D; None if there are none. where: their file, or where they were looked for.
    """

    weights: Tensor | None
    where: str


def find_class_weights(
    path: Path, inside: Tensor | None, feature_dim: int, by_columns: bool
) -> ClassWeights:
    """The class weights for the network of a file.

    inside: those in the file itself, C×D. feature_dim: D. by_columns: see `class_weights`.
    """
    pattern = _pattern_beside(path.name)
    split = RANK.search(path.name) is not None  # its own weights are of some classes only
    if not pattern or (inside is not None and not split):
        return ClassWeights(inside, path.name)
    files = sorted(path.parent.glob(pattern), key=lambda file: (_rank(file) or 0, file.name))
    if not files:
        return ClassWeights(None, f"{path.name} and {pattern} beside it, which is not there")
    names = ", ".join(file.name for file in files)
    ranks = [_rank(file) for file in files]
    if len(files) > 1 and None in ranks:
        return ClassWeights(None, f"{names}, of which only one can belong to {path.name}")
    try:
        shards = [_read_shard(file, feature_dim, by_columns) for file in files]
    except CheckpointError as error:
        return ClassWeights(None, f"{path.name} and beside it: {error}".rstrip("."))
    missing = set() if None in ranks else {*range(len(ranks))} - {*ranks}
    if missing:
        return ClassWeights(None, f"{names}, but that of process {min(missing)} is not there")
    return ClassWeights(torch.cat(shards), names)


def class_weights(head: State, feature_dim: int, by_columns: bool = False) -> Tensor | None:
    """A head's class weights as C×D, from its tensors; None if none can be them.

    by_columns: whether this code keeps them as D×C under the name `weight` too.
    """
    for key, tensor in head.items():
        if not _may_be_weights(key, tensor):
            continue
        columns = by_columns or _leaf(key) == BY_COLUMNS
        if tensor.shape[0 if columns else 1] == feature_dim:
            return tensor.T if columns else tensor
        if feature_dim in tensor.shape:
            return tensor if columns else tensor.T
    return None


def _leaf(key: object) -> str:
    return str(key).rpartition(".")[2]


def _may_be_weights(key: object, tensor: Any) -> bool:
    named = _leaf(key) in ("weight", BY_COLUMNS)
    return named and is_plain(tensor) and tensor.ndim == 2 and tensor.is_floating_point()


def _is_head(state: State) -> bool:
    """Whether a file of its own holds a head: one table, and nothing that is part of a network."""
    tables = [key for key, tensor in state.items() if _may_be_weights(key, tensor)]
    network = any(key.startswith(PREFIXES) or tensor.ndim == 4 for key, tensor in state.items())
    return len(tables) == 1 and not network


def _pattern_beside(name: str) -> str:
    for network, head in BESIDE:
        match = re.fullmatch(network, name)
        if match:
            return head.format(**{k: glob.escape(text) for k, text in match.groupdict().items()})
    return ""


def is_head_of(head: str, network: str) -> bool:
    """Whether these are the names that some code gives to a head's file and its network's."""
    pattern = _pattern_beside(network)
    return bool(pattern) and head != network and fnmatch.fnmatchcase(head, pattern)


def _rank(file: Path) -> int | None:
    match = RANK.search(file.name)
    return int(match[1]) if match else None


def _read_shard(file: Path, feature_dim: int, by_columns: bool) -> Tensor:
    head = open_head(read_file(file))
    weights = class_weights(head, feature_dim, by_columns) if _is_head(head) else None
    if weights is None:
        raise CheckpointError(f"{file.name} holds no class weights for {feature_dim} values.")
    return weights
