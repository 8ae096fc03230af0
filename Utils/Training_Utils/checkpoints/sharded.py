"""Checkpoints as folders, which many processes write and any number of them can read.

    iteration_00000100.dcp/common.pt      all but the class tables, as in a checkpoint file
    iteration_00000100.dcp/.metadata ...  the class tables, by `torch.distributed.checkpoint`

A folder gets its name when everything in it is written. `.metadata` is a pickle; it is read with
an unpickler that knows the classes which such a file is made of and nothing else, so that nothing
in a folder is ever run.

The tables of a run that have a row for each class: the head's weights, and their momentum or
other state of the optimiser.

They are what a head with its classes split over processes has a part of in each. In a checkpoint
they can be taken out, and put back for any other number of processes.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from Head.classifier import MarginHead
from Head.sharded import ShardedHead
from Utils.errors import CheckpointError
from Utils.processes import is_lost_connection
from Utils.run_folder import METADATA

_METADATA = "torch.distributed.checkpoint.metadata"
_STORAGE = "torch.distributed.checkpoint.filesystem"
_ALLOWED = {
    *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta")),
    *((_METADATA, name) for name in ("TensorStorageMetadata", "TensorProperties")),
    *((_METADATA, name) for name in ("ChunkStorageMetadata", "_MEM_FORMAT_ENCODING")),
    (_STORAGE, "_StorageInfo"),
    ("torch", "Size"),
    *(("torch", name) for name in ("float16", "bfloat16", "float32", "float64")),
    ("torch.serialization", "_get_layout"),
}


def write_tables(
    folder: Path, tables: dict[str, Tensor], group: dist.ProcessGroup | None
) -> Future[Any]:
    """Begin to write tables into a folder that all processes see; they are copied before it
    returns. The result comes when all processes have written, and raises what went wrong.

    group: all processes, which call this together; not used for anything else meanwhile. None: this
    one alone, which writes at once.
    """
    writer = dcp.FileSystemWriter(folder)
    if group is not None:
        return dcp.async_save(tables, storage_writer=writer, process_group=group)
    with _alone():
        dcp.save(tables, storage_writer=writer, no_dist=True)
    written: Future[Any] = Future()
    written.set_result(None)
    return written


def load_tables(folder: Path, tables: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Fill tables, distributed or not, from a folder, whoever wrote it.

    group: all processes, which call this together. Raises CheckpointError, naming the folder; where
    another process ends meanwhile, what `is_lost_connection` knows.
    """
    reader = _Reader(folder)
    found = reader.read_metadata().state_dict_metadata
    for name, table in tables.items():
        if name not in found or found[name].size != table.shape:
            has = f"{name} of {tuple(found[name].size)}" if name in found else f"no {name}"
            raise _unreadable(folder, f"it has {has}, not {name} of {tuple(table.shape)}")
    try:
        with _alone() if group is None else nullcontext():
            dcp.load(tables, storage_reader=reader, process_group=group, no_dist=group is None)
    except (dcp.CheckpointException, *_READ_ERRORS) as error:
        if group is not None and is_lost_connection(error):
            raise
        raise _unreadable(folder, f"a file is missing or damaged ({_last_line(error)})") from None


def read_tables(folder: Path) -> dict[str, Tensor]:
    """All tables of a folder, whole, on the CPU; in one process."""
    found = _Reader(folder).read_metadata().state_dict_metadata
    tables = {
        name: torch.empty(about.size, dtype=about.properties.dtype) for name, about in found.items()
    }
    load_tables(folder, tables, None)
    return tables


_READ_ERRORS = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, AttributeError, TypeError),
    *(OSError, RuntimeError, AssertionError, MemoryError),
)


class _Reader(dcp.FileSystemReader):
    """Reads tensors alone, from files in the folder itself."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        folder = Path(self.path)
        try:
            metadata = _Unpickler(io.BytesIO((folder / METADATA).read_bytes())).load()
            _check_tensors_alone(metadata, folder)
        except _READ_ERRORS as error:
            raise _unreadable(folder, f"its {METADATA}: {_last_line(error)}") from None
        return metadata


# The one written in Python: the other sets aside as much memory as a damaged file asks for.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib" and name.endswith("Path"):
            return _Place  # where it was written, which nothing asks for
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which it has no use for")
        return super().find_class(module, name)


class _Place:
    def __init__(self, *parts: str) -> None:
        self.parts = parts


def _check_tensors_alone(metadata: Metadata, folder: Path) -> None:
    """Raise ValueError for what is not whole tensors in files of this folder, of their size."""
    if not isinstance(metadata, Metadata):
        raise ValueError(f"it is a {type(metadata).__name__}")
    size = 0
    for name, about in metadata.state_dict_metadata.items():
        if not isinstance(about, TensorStorageMetadata):
            raise ValueError(f"{name} is no tensor")
        _check_whole(name, about, metadata)
        size += about.size.numel() * about.properties.dtype.itemsize
    for stored in metadata.storage_data.values():
        if Path(stored.relative_path).name != stored.relative_path or stored.transform_descriptors:
            raise ValueError(f"{stored.relative_path!r} is no plain file of the folder")
    there = sum(entry.stat().st_size for entry in os.scandir(folder))
    if size > there:
        raise ValueError(f"it has {size} bytes of tensors, and the folder {there}")


def _check_whole(name: str, about: TensorStorageMetadata, metadata: Metadata) -> None:
    """Raise ValueError where a tensor's pieces are not within it, do not make it up, or have no
    place: what no piece fills would be whatever lay in memory."""
    shape = tuple(about.size)
    if min(shape, default=0) < 0:
        raise ValueError(f"{name} has the shape {shape}")
    filled = 0
    for chunk in about.chunks:
        begin, lengths = tuple(chunk.offsets), tuple(chunk.sizes)
        if not all(
            b >= 0 and n >= 0 and b + n <= whole
            for b, n, whole in zip(begin, lengths, shape, strict=True)
        ):
            raise ValueError(f"{name} of {shape} has a piece of {lengths} at {begin}")
        if MetadataIndex(name, chunk.offsets) not in metadata.storage_data:
            raise ValueError(f"the piece of {name} at {begin} is in no file")
        filled += math.prod(lengths)
    if filled != math.prod(shape):
        raise ValueError(f"{name} has {math.prod(shape)} numbers, and its pieces {filled}")


@contextmanager
def _alone() -> Iterator[None]:
    """Without the warning that a single process is what it takes this for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _unreadable(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder} can't be read: {why}.")


def _last_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__


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
    if len(head.local_classes) == head.num_classes:
        return
    shape = saved["head"][WEIGHT].shape
    rows = slice(head.local_rows.start, head.local_rows.stop)
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
