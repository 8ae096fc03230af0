"""Ending a run between two iterations when the machine is to be taken away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from Utils.processes import Processes


class Sigterm:
    """Whether SIGTERM has come; as a context, instead of what it does otherwise."""

    def __init__(self) -> None:
        self.asked = False
        self._before: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True


class StopRequest(Sigterm):
    """Whether SIGTERM has come, to any process; as a context, instead of what it does otherwise.

    All processes stop after the same iteration. They agree on it with one number that is exchanged
    through main memory while the next iteration is computed, so that nothing waits for a device;
    where a process has died, the exchange says so.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._group = processes.group
        self._flag = torch.zeros((), dtype=torch.int32)
        self._exchange: dist.Work | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Where a process has died, torchrun ends the others by SIGTERM; they first say why.
        if kind is None or self._group is None:
            super().__exit__(kind, error, trace)
        if kind is None:
            self._agreed()

    def due(self) -> bool:
        """Whether to stop now; called once in each iteration, by all processes."""
        if self._group is None:
            return self.asked
        agreed = self._agreed()
        self._flag = torch.tensor(int(self.asked), dtype=torch.int32)
        self._exchange = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def _agreed(self) -> bool:
        """What came of the last exchange."""
        if self._exchange is None:
            return False
        self._exchange.wait()
        self._exchange = None
        return bool(self._flag)
