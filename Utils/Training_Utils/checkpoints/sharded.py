"""The class tables of a run: the tensors that have a row for each class.

They are the head's weight, and the state that the optimiser has for it (momentum, for example). A
head whose classes are split over processes has only some of the rows in each process. A checkpoint
file has the whole tables; a checkpoint folder has them in files of their own, which any number of
processes can read:

    iteration_00000100.dcp/common.pt             everything else, as in a checkpoint file
    iteration_00000100.dcp/shard-*.safetensors   rows of the tables, C×KD in all, one file for
                                                 each process; `torch.distributed.checkpoint`

Safetensors files hold no code; their sizes are checked before memory is allocated, and the check
sums of what is in them before it is used.
`torch.distributed.checkpoint` is imported in the functions that use it: it takes a second, which
every start of a script would wait for.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from Head.classifier import MarginHead
from Head.sharded import ShardedHead
from Utils.errors import CheckpointError, first_line
from Utils.processes import is_lost_connection
from Utils.Training_Utils.checkpoints.table_files import table_reader, table_writer

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

WEIGHT = "weight"  # the other tables have the optimiser's names
TABLES = "class_tables"  # the key in common.pt that describes them

Tables = dict[str, Tensor]


def class_tables(head: MarginHead, optimizer: torch.optim.Optimizer) -> Tables:
    """The tables of a run, (local C)·K × D: this process's rows, sharing the run's memory."""
    of_weight = optimizer.state.get(head.weight, {})
    tables = {name: value for name, value in of_weight.items() if _is_table(value, head)}
    return {WEIGHT: head.weight.detach(), **tables}


def index_in(optimizer: torch.optim.Optimizer, head: MarginHead) -> int:
    """The key of the head's weight in the optimiser's state_dict."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    return next(index for index, weight in enumerate(weights) if weight is head.weight)


def by_class(head: MarginHead, rows: Tensor) -> Tensor:
    """A C×KD view of this process's rows, (local C)·K × D; a DTensor if the classes are split."""
    return (
        head.as_dtensor(rows) if isinstance(head, ShardedHead) else rows.view(head.num_classes, -1)
    )


def whole_table(head: MarginHead, rows: Tensor) -> Tensor:
    """The table CK×D on the CPU, from the rows of all processes, which must all call this."""
    table = by_class(head, rows)
    if isinstance(head, ShardedHead):
        table = table.full_tensor()
    return table.reshape(-1, rows.shape[1]).cpu()


def describe_tables(head: MarginHead, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The entry of common.pt: names, shape CK×D, and the weight's key in the optimiser's state."""
    return {
        "parameter": index_in(optimizer, head),
        "names": list(class_tables(head, optimizer)),
        "shape": [head.num_classes * head.sub_centers, head.weight.shape[1]],
    }


def describes_tables(about: Any) -> bool:
    """Whether an entry of common.pt is one that `describe_tables` may have made."""
    if not isinstance(about, dict) or about.keys() < {"parameter", "names", "shape"}:
        return False
    names, shape = about["names"], about["shape"]
    is_pair = isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape)
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    is_key = type(about["parameter"]) is int
    return is_key and is_pair and is_list and WEIGHT in names and min(shape) > 0


def fill_rows(
    saved: dict[str, Any],
    head: MarginHead,
    optimizer: torch.optim.Optimizer,
    group: dist.ProcessGroup | None,
) -> None:
    """Give a checkpoint that was read the table rows of this process, whoever wrote it.

    saved: from `read_run`; changed in place. group: all processes, which must all call this.
    Raises CheckpointError for a folder that can't be read.
    """
    of_weight = saved["optimizer"]["state"].get(index_in(optimizer, head), {})
    if TABLES in saved:
        about = saved.pop(TABLES)
        rows = {name: torch.empty_like(head.weight, device="cpu") for name in about["names"]}
        views = {name: by_class(head, table) for name, table in rows.items()}
        load_tables(Path(about["folder"]), views, group)
        put_tables(saved, of_weight, rows)
    elif head.group is not None:
        shape = saved["head"][WEIGHT].shape
        for values in (saved["head"], of_weight):
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == shape:
                    values[name] = value[head.local_rows.start : head.local_rows.stop].clone()


def put_tables(saved: dict[str, Any], of_weight: dict[str, Any], tables: Tables) -> None:
    """Put tables where a checkpoint file has them. of_weight: the optimiser's state of the head."""
    for name, table in tables.items():
        (saved["head"] if name == WEIGHT else of_weight)[name] = table


def write_tables(folder: Path, tables: Tables, group: dist.ProcessGroup | None) -> None:
    """Write tables C×KD, DTensors or not, into a folder that all processes see.

    group: all processes, which must all call this; None: only this one. Raises what the first of
    them raised that can't write, an OSError for example.
    """
    import torch.distributed.checkpoint as dcp

    try:
        with _without_warning():
            dcp.save(
                tables,
                storage_writer=table_writer(folder),
                process_group=group,
                no_dist=group is None,
            )
    except dcp.CheckpointException as error:
        raise _cause(error) from None


def load_tables(folder: Path, tables: Tables, group: dist.ProcessGroup | None) -> None:
    """Fill tables C×KD, DTensors or not, from a folder that any number of processes wrote.

    group: all processes, which must all call this. Raises CheckpointError, naming the folder;
    if another process dies meanwhile, an error that `is_lost_connection` recognises.
    """
    import torch.distributed.checkpoint as dcp

    found = _table_shapes(folder)
    for name, table in tables.items():
        if name not in found or found[name].size != table.shape:
            has = f"{name} of {tuple(found[name].size)}" if name in found else f"no {name}"
            raise _unreadable(folder, f"it has {has}, not {name} of {tuple(table.shape)}")
    try:
        with _without_warning():
            dcp.load(
                tables,
                storage_reader=table_reader(folder, group),
                process_group=group,
                no_dist=group is None,
            )
    except (dcp.CheckpointException, Exception) as error:  # files from anywhere: of many kinds
        cause = _cause(error)
        if group is not None and is_lost_connection(cause):
            raise
        raise _unreadable(folder, f"a file is missing or damaged ({first_line(cause)})") from None


def read_tables(folder: Path, names: list[str], num_classes: int, shape: list[int]) -> Tables:
    """The tables of a folder, CK×D as `shape` says, on the CPU; in one process.

    Raises CheckpointError, naming the folder.
    """
    found = _table_shapes(folder)
    if missing := [name for name in names if name not in found]:
        raise _unreadable(folder, f"it has no {', '.join(missing)}")
    found = {name: found[name] for name in names}
    for name, about in found.items():
        if about.size.numel() != shape[0] * shape[1] or about.size[0] != num_classes:
            raise _unreadable(
                folder, f"{name} of {tuple(about.size)} is no table of {num_classes} classes"
            )
    tables = {name: torch.empty(about.size, dtype=about.properties.dtype)
              for name, about in found.items()}  # fmt: skip
    load_tables(folder, tables, None)
    return {name: table.view(shape) for name, table in tables.items()}


def _table_shapes(folder: Path) -> dict[str, TensorStorageMetadata]:
    """What the files of a folder hold, by table. Raises CheckpointError if rows are missing."""
    import torch.distributed.checkpoint as dcp

    if any(folder.glob("*.distcp")):
        raise _unreadable(
            folder,
            "its class tables are in a form that this version of the program does not know. Merge "
            "it into one file with the version that wrote it (check out its commit, then python -m "
            "Utils.Training_Utils.merge_checkpoint FOLDER FILE), and resume from that file",
        )
    reader = dcp.HuggingFaceStorageReader(str(folder))
    try:
        found = reader.read_metadata().state_dict_metadata
    except Exception as error:  # files from anywhere, read by other programs: of many kinds
        raise _unreadable(folder, f"a file is missing or damaged ({first_line(error)})") from None
    for name, about in found.items():
        _check_rows(folder, name, about)
    return found


def _check_rows(folder: Path, name: str, about: TensorStorageMetadata) -> None:
    """Raise CheckpointError unless the pieces of a table are all its rows, each once: rows that no
    file has would be left as they were in memory."""
    if len(about.size) != 2 or not about.properties.dtype.is_floating_point:
        raise _unreadable(folder, f"{name} is no table of numbers")
    filled = 0
    for piece in sorted(about.chunks, key=lambda piece: tuple(piece.offsets)):
        if tuple(piece.offsets) != (filled, 0) or piece.sizes[1] != about.size[1]:
            raise _unreadable(
                folder,
                f"{name} of {tuple(about.size)} has a piece of {tuple(piece.sizes)} at "
                f"{tuple(piece.offsets)} after row {filled}",
            )
        filled += piece.sizes[0]


@contextmanager
def _without_warning() -> Iterator[None]:
    """Without the warning that a single process is what it takes this for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _unreadable(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} can't be read: {why}.")


def _cause(error: BaseException) -> BaseException:
    """The error of the first process that failed, where PyTorch reports those of all."""
    import torch.distributed.checkpoint as dcp

    if isinstance(error, dcp.CheckpointException):
        return next((failure for failure, _ in error.failures.values()), error)
    return error


def _is_table(value: object, head: MarginHead) -> bool:
    return isinstance(value, Tensor) and value.shape == head.weight.shape
