"""Several processes on one machine, for tests of what they do together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

# Children of a server that has imported torch already start in no time.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["Head", "Utils.Training_Utils.optimization"]
)


def in_processes(count: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """What function(group, *args) returns in each of `count` processes that talk through gloo.

    folder: an empty one. function: of a module, so that it can be found by its name.
    """
    arguments = (count, str(folder), function, args)
    multiprocessing.start_processes(_work, arguments, count, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _work(rank: int, count: int, folder: str, function: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    torch.save(function(dist.group.WORLD, *args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
