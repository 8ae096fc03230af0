"""Stopping a run between two iterations: the machine will be lost, a user presses Ctrl-C, or the
terminal is closed."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from Utils.processes import Processes

# A second Ctrl-C counts from here on: programs that start others pass the terminal's on to them, so
# that one arrives twice.
_DOUBLED = 0.5  # seconds

_NOTE = b"\nStopping; pressed again, Ctrl-C ends at once and saves nothing.\n"


class StopSignals:
    """A context in which SIGTERM, SIGHUP and SIGINT only set `asked`, instead of ending the
    process.

    SIGHUP comes where a terminal is closed, SIGINT with Ctrl-C. A second Ctrl-C raises
    KeyboardInterrupt. A signal that was ignored before stays ignored, as nohup wants SIGHUP to be.

    interrupted: whether Ctrl-C was among them.
    """

    def __init__(self) -> None:
        self.asked = False
        self.interrupted = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: not set by Python
                    self._before[number] = before
                    signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self.interrupted and now - self._since > _DOUBLED:
                raise KeyboardInterrupt
            if not self.interrupted:
                self._since = now
                self._say()
            self.interrupted = True
        self.asked = True

    def _say(self) -> None:
        with suppress(OSError):
            os.write(2, _NOTE)  # not `print`, which the signal may have interrupted


class StopRequest(StopSignals):
    """`StopSignals` of all processes together: a signal to any of them asks all to stop.

    All processes stop after the same iteration. They agree on it by an all-reduce of one number in
    main memory, which runs while the next iteration is computed, so that nothing waits for a
    device. If a process has died, the all-reduce raises an error.
    """

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes
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

    def _say(self) -> None:
        if self._processes.is_main:
            super()._say()

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

    def settle(self) -> None:
        """Give all processes the same `asked` and `interrupted`. All of them must call this at the
        end of the context."""
        self._agreed()
        seen = self._processes.gather((self.asked, self.interrupted))
        self.asked, self.interrupted = (any(values) for values in zip(*seen, strict=True))

    def _agreed(self) -> bool:
        """The result of the last all-reduce."""
        if self._work is None:
            return False
        self._work.wait()
        self._work = None
        return bool(self._flag)
