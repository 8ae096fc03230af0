"""The processes that torchrun started, or the one that there is."""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from Utils.errors import USER_ERRORS, RunError

# Processes wait for the slowest one, whose share of a million photos may take hours longer.
_PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """count processes, of which this is number `rank`. They talk in torch's default group."""

    # The group itself is not kept: whoever held it at the end would bring the process down.
    rank: int = 0
    count: int = 1

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank; the values are this program's own and may be any object.

        Raises OtherProcessError where another process failed instead of coming here.
        """
        return [value] if self.count == 1 else self._exchange(None, value)

    def wait(self) -> None:
        """Until all have come here. Raises OtherProcessError as `gather` does."""
        self.gather(None)

    def tell(self, error: Exception) -> None:
        """Make the others' next `gather` or `wait` fail with this error. Raises OtherProcessError
        where another process of a lower rank failed too."""
        if self.count > 1:
            self._exchange(_describe(error), None)

    def _exchange(self, error: str | None, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.count
        try:
            dist.all_gather_object(found, (error, value))
        except RuntimeError:
            # gloo's words for it are about sockets.
            raise OtherProcessError(
                "another process of this torchrun ended in the middle of the work; what it printed "
                "says why. What was extracted is kept: run the same command again."
            ) from None
        failed = [rank for rank, (message, _) in enumerate(found) if message is not None]
        if failed and failed[0] != self.rank:
            raise OtherProcessError(found[failed[0]][0])
        return [value for _, value in found]


class OtherProcessError(RunError):
    """The work was given up because of an error in another process."""


ALONE = Processes()


@contextmanager
def started_by_torchrun() -> Iterator[Processes]:
    """The processes of a torchrun launch, joined; just this one without it.

    They talk through gloo, on GPUs too: only counts and short lists are exchanged. An error in one
    of them ends them all; the first process raises it, whoever's it was, and the others end without
    a word (but for an error that is no user's to mend: that is raised where it happened, too).
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Processes()
        return
    dist.init_process_group("gloo", timeout=_PATIENCE)
    processes = Processes(dist.get_rank(), dist.get_world_size())
    try:
        with _told_to_all(processes):
            yield processes
    except USER_ERRORS:
        if processes.rank == 0:
            raise
        # A status other than 0 would make torchrun end the first process before it has spoken.
        sys.exit(0)
    finally:
        dist.destroy_process_group()


@contextmanager
def _told_to_all(processes: Processes) -> Iterator[None]:
    try:
        yield
    except OtherProcessError:
        raise
    except Exception as error:
        processes.tell(error)
        raise
    processes.wait()  # an error of one that is not as far yet


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, USER_ERRORS) else f"{type(error).__name__}: {error}"
