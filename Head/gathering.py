"""What the processes of a group have, put together on each of them."""

import torch.distributed as dist
from torch import Tensor


def gather_rows(rows: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all processes, in order of their ranks, as many from each; without a group, the
    rows themselves. No gradient passes through it."""
    if group is None:
        return rows
    rows = rows.contiguous()
    every = rows.new_empty((group.size() * len(rows), *rows.shape[1:]))
    dist.all_gather(list(every.chunk(group.size())), rows, group=group)
    return every
