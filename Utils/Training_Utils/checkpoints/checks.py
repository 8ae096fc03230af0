"""What a checkpoint must hold for a run to resume from it.

A file that was damaged, or changed by another program, may still load. Without these checks it
would end in a KeyError or in PyTorch's size mismatch, far from the file's name.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from Head.classifier import MarginHead
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.lineages.descriptions import check_kinds
from Utils.Training_Utils.checkpoints.sharded import TABLES, WEIGHT
from Utils.Training_Utils.reports.means import ENTRIES

_COUNT = "a whole number"
_ENTRIES = {
    "num_classes": _COUNT,
    "num_images": _COUNT,
    "head": "a dictionary of tensors",
    "optimizer": {"state": "a dictionary"},
    "scaler": "a dictionary",
    "best": "a dictionary",
    "position": {"epoch": _COUNT, "batch": _COUNT, "iteration": _COUNT},
    "random": "a dictionary",
    "distillation?": {"teacher": "text", "weights": "a dictionary of tensors"},
}


def check_entries(state: dict[str, Any], path: Path) -> None:
    """Raise CheckpointError if an entry that a run resumes from is missing or of another type.

    Those that describe the backbone are checked where it is built.
    """
    check_kinds(path, "", state, _ENTRIES)
    if wrong := next(_wrong_values(state), None):
        raise _damaged(path, wrong)


def check_tensors(
    state: dict[str, Any], path: Path, head: MarginHead, optimizer: torch.optim.Optimizer
) -> None:
    """Raise CheckpointError if the tensors of a checkpoint's head or optimiser do not have the
    shapes of this run's, which has the same settings and number of classes."""
    table = (head.num_classes * head.sub_centers, head.weight.shape[1])  # of all processes
    needed = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    needed[WEIGHT] = table
    if TABLES in state:
        del needed[WEIGHT]
    found = {name: tuple(tensor.shape) for name, tensor in state["head"].items()}
    for name in needed.keys() | found.keys():
        if found.get(name) != needed.get(name):
            raise _damaged(path, f"head.{name} is {found.get(name)}; expected {needed.get(name)}")
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in state["optimizer"]["state"].items():
        where = f"optimizer.state.{index}"
        if index not in range(len(weights)):
            raise _damaged(path, f"{where} is not that of any weight")
        shape = table if weights[index] is head.weight else tuple(weights[index].shape)
        for name, value in values.items():
            is_tensor = isinstance(value, Tensor)
            if is_tensor and value.ndim and tuple(value.shape) != shape:
                raise _damaged(
                    path, f"{where}.{name} is {tuple(value.shape)}; its weight is {shape}"
                )
            if not (is_tensor or value is None or isinstance(value, int | float)):
                raise _damaged(path, f"{where}.{name} is neither a tensor nor a number")


def _wrong_values(state: dict[str, Any]) -> Iterator[str]:
    """Descriptions of the wrong values among a checkpoint's entries."""
    if min(state["position"].values()) < 0:
        yield f"its position is {state['position']}"
    for index, values in state["optimizer"]["state"].items():
        if not isinstance(values, dict):
            yield f"optimizer.state.{index} is not a dictionary"
    for name, best in state["best"].items():
        if not (isinstance(best, dict) and best.keys() == {"accuracy", "iteration"}):
            yield f"best.{name} is not an accuracy and an iteration"
    means = state.get("means", [])
    if not (isinstance(means, list) and all(map(_are_means, means))):
        yield "means is not the sums of each process"
    if type(state.get("tested", 0)) is not int:
        yield "tested is not an iteration"
    random = state["random"]
    others = random.get("others", [])
    for own in (random, *others) if isinstance(others, list) else (None,):
        if not _are_random_states(own):
            yield "random is not the states of random generators"
    if not _is_random_state(random.get("flip")):
        yield "random.flip is not the state of a random generator"


def _are_means(own: object) -> bool:
    """Whether a value is the sums of a process, as `Means.checkpoint` gives them."""
    if not (isinstance(own, dict) and own.keys() == set(ENTRIES)):
        return False
    return all(isinstance(value, int | float) for value in own.values())


def _are_random_states(own: object) -> bool:
    """Whether a value is the states of a process's own generators."""
    if not (isinstance(own, dict) and isinstance(own.get("cuda"), list)):
        return False
    return all(map(_is_random_state, (own.get("cpu"), *own["cuda"])))


def _is_random_state(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.uint8 and value.ndim == 1


def _damaged(path: str | Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path}: {what}. The file is damaged, or was not written by this program."
    )
