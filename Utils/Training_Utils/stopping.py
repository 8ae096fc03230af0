"""Stopping a run between two iterations when SIGTERM announces that the machine will be lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

import torch
import torch.distributed as dist

from Utils.processes import Processes


class Sigterm:
    """A context in which SIGTERM only sets `asked`, instead of ending the process."""

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
    """A context in which SIGTERM, sent to any process, only asks all of them to stop.

    All processes stop after the same iteration. They agree on it by an all-reduce of one number in
    main memory, which runs while the next iteration is computed, so that nothing waits for a
    device. If a process has died, the all-reduce raises an error.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._group = processes.group
        self._flag = torch.zeros((), dtype=torch.int32)
        self._work: dist.Work | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # If a process has died, torchrun ends the others by SIGTERM; the error comes first.
        if kind is None or self._group is None:
            super().__exit__(kind, error, trace)
        if kind is None:
            self._agreed()

    def due(self) -> bool:
        """Whether to stop now. All processes must call this once in each iteration."""
        if self._group is None:
            return self.asked
        agreed = self._agreed()
        self._flag = torch.tensor(int(self.asked), dtype=torch.int32)
        self._work = dist.all_reduce(
            self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return agreed

    def _agreed(self) -> bool:
        """The result of the last all-reduce."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag)
