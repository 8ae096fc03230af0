"""The tables of a run that have a row for each class: the head's weights, and their momentum or
other state of the optimiser.

They are what a head with its classes split over processes has a part of in each. In a checkpoint
they can be taken out, and put back for any other number of processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from Head.classifier import MarginHead
from Head.sharded import ShardedHead
from Utils.Training_Utils.dcp_folder import load_tables

WEIGHT = "weight"  # the other tables have the optimiser's names

Tables = dict[str, Tensor]


def take_out(state: dict[str, Any], head: MarginHead, optimizer: torch.optim.Optimizer) -> Tables:
    """Take the tables out of a run's state, and note there what they were.

    Returns them as C×KD, distributed over the processes where the head is.
    """
    number = _number(head, optimizer)
    of_optimizer = state["optimizer"]["state"].get(number, {})
    tables = {
        name: value
        for name, value in of_optimizer.items()
        if isinstance(value, Tensor) and value.shape == head.weight.shape
    }
    rest = {name: value for name, value in of_optimizer.items() if name not in tables}
    if of_optimizer:
        states = {**state["optimizer"]["state"], number: rest}
        state["optimizer"] = {**state["optimizer"], "state": states}
    tables = {WEIGHT: state["head"].pop(WEIGHT), **tables}
    state["class_tables"] = {
        "parameter": number,
        "names": list(tables),
        "shape": [head.num_classes * head.sub_centers, head.weight.shape[1]],
    }
    return {name: _of_classes(head, rows) for name, rows in tables.items()}


def put_back(state: dict[str, Any], tables: Tables) -> None:
    """The inverse of `take_out`, for whole tables or one process's rows of them."""
    about = state.pop("class_tables")
    of_optimizer = state["optimizer"]["state"].get(about["parameter"], {})
    for name, table in tables.items():
        into = state["head"] if name == WEIGHT else of_optimizer
        into[name] = table.reshape(-1, about["shape"][1])


def whole(tables: Tables) -> Tables:
    """The tables with all rows, on every process; on the CPU."""
    return {
        name: (table.full_tensor() if isinstance(table, DTensor) else table).cpu()
        for name, table in tables.items()
    }


def fit_tables(
    saved: dict[str, Any],
    head: MarginHead,
    optimizer: torch.optim.Optimizer,
    group: torch.distributed.ProcessGroup | None,
) -> None:
    """Give a saved state the rows of this process's classes, whatever it was saved by.

    saved: as `read_run` returns it; changed. group: of all processes, which call this together.
    Raises CheckpointError for a folder that can't be read.
    """
    if "class_tables" not in saved:
        _cut_rows(saved, head, _number(head, optimizer))
        return
    tables = {name: torch.empty(head.weight.shape) for name in saved["class_tables"]["names"]}
    views = {name: _of_classes(head, rows) for name, rows in tables.items()}
    load_tables(Path(saved["class_tables"]["folder"]), views, group)
    put_back(saved, tables)


def _cut_rows(saved: dict[str, Any], head: MarginHead, number: int) -> None:
    if len(head.here) == head.num_classes:
        return
    shape = saved["head"][WEIGHT].shape
    rows = slice(head.here.start * head.sub_centers, head.here.stop * head.sub_centers)
    for values in (saved["head"], saved["optimizer"]["state"].get(number, {})):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == shape:
                values[name] = value[rows].clone()


def _number(head: MarginHead, optimizer: torch.optim.Optimizer) -> int:
    """The number of the class weights among the optimiser's, which its saved state goes by."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return next(number for number, weight in enumerate(weights) if weight is head.weight)


def _of_classes(head: MarginHead, rows: Tensor) -> Tensor:
    if isinstance(head, ShardedHead):
        return head.as_dtensor(rows)
    return rows.view(head.num_classes, -1)
