"""The processes that torchrun started, or the one that there is."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

# Processes wait for the slowest one, whose share of a million photos may take hours longer.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """count processes, of which this is number `rank`; group: how they talk (None: alone)."""

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; the values are this program's own and may be any object."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value, group=self.group)
        return values

    def wait(self) -> None:
        """Until all have come here."""
        if self.group is not None:
            dist.barrier(group=self.group)


ALONE = Processes()


@contextmanager
def started_by_torchrun() -> Iterator[Processes]:
    """The processes of a torchrun launch, joined; just this one without it.

    They talk through gloo, on GPUs too: only counts and short lists are exchanged.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    finally:
        dist.destroy_process_group()
