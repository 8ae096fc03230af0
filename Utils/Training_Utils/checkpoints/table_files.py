"""The safetensors files of a checkpoint folder: their check sums, writing them, reading them.

`torch.distributed.checkpoint` decides which rows each process writes and reads. It is imported in
the functions that use it: that takes a second, which every start of a script would wait for.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from Utils.errors import CheckpointError
from Utils.files import sync

if TYPE_CHECKING:
    from torch.distributed.checkpoint import (
        LoadPlan,
        LoadPlanner,
        SavePlan,
        SavePlanner,
        StorageReader,
        StorageWriter,
    )

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_CRC = "crc32"  # of all values of a file, in hexadecimal, in its `__metadata__`


def table_writer(folder: Path) -> StorageWriter:
    """PyTorch's writer of safetensors files, without its three copies of all tables in memory."""
    import torch.distributed.checkpoint as dcp

    class Writer(dcp.HuggingFaceStorageWriter):
        def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future:
            offsets = {
                item.index.fqn: {"saved_offsets": list(item.tensor_data.chunk.offsets)}
                for item in plan.items
            }
            tables = {item.index.fqn: planner.resolve_data(item) for item in plan.items}
            about = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
            if tables:
                number = plan.storage_data["shard_index"]
                name = f"shard-{number:05d}-model-00001-of-00001.safetensors"
                write_safetensors(folder / name, tables, about)
            written: Future = Future()
            written.set_result([])
            return written

    return Writer(str(folder), save_distributed=True)


def table_reader(folder: Path, group: dist.ProcessGroup | None) -> StorageReader:
    """PyTorch's reader of these files, which compares their check sums first: each process checks
    some of the files, and PyTorch tells all processes of an error."""
    import torch.distributed.checkpoint as dcp

    class Reader(dcp.HuggingFaceStorageReader):
        def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future:
            rank, count = (group.rank(), group.size()) if group is not None else (0, 1)
            for path in sorted(folder.glob("*.safetensors"))[rank::count]:
                check_safetensors(path)
            return super().read_data(plan, planner)

    return Reader(str(folder))


def write_safetensors(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a file of https://github.com/huggingface/safetensors, a chunk of a tensor at a time.

    about: its `__metadata__`, to which the check sum of all values is added (`check_safetensors`).
    Raises OSError; the file is then incomplete.
    """
    header, end, crc = {"__metadata__": {**about, _CRC: f"{0:08x}"}}, 0, 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + tensor.nbytes],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for chunk in chunks_on_cpu(tensor):
                values = chunk.view(torch.uint8).numpy()
                crc = zlib.crc32(values, crc)
                file.write(values)
        file.seek(8 + text.index(f'"{_CRC}": "'.encode()) + len(_CRC) + 5)
        file.write(f"{crc:08x}".encode())
        file.flush()
        sync(file.fileno())


def check_safetensors(path: Path) -> None:
    """Raise CheckpointError if the values of a file have another check sum than its `__metadata__`
    says; OSError or ValueError if it is no such file. One without a check sum is taken as it is."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path.name} is cut short")
        wanted = json.loads(file.read(length)).get("__metadata__", {}).get(_CRC)
        crc = 0
        while wanted and (values := file.read(2**24)):
            crc = zlib.crc32(values, crc)
    if wanted and wanted != f"{crc:08x}":
        raise CheckpointError(f"the check sum of {path.name} is {crc:08x}, not {wanted}")


def chunks_on_cpu(tensor: Tensor, size: int = 2**24) -> Iterator[Tensor]:
    """The values of a tensor in order, in flat chunks of at most `size` values on the CPU.

    Values on a GPU come through one pinned buffer, which the next chunk overwrites: copies into
    other memory are several times slower.
    """
    flat, buffer = tensor.detach().reshape(-1), None
    if not tensor.is_cpu:
        buffer = torch.empty(min(size, len(flat)), dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    for chunk in flat.split(size):
        yield chunk if buffer is None else buffer[: len(chunk)].copy_(chunk)
