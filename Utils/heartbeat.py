"""Notices a process of the job that is frozen, or behind a network that is cut.

A process that ends closes its connections, which the others notice at once. One that is silent may
be at work: it evaluates its share of a million photos, or draws the demo's faces while the others
wait. So it is asked in a thread of its own, which answers however long the work takes.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable

import torch
import torch.distributed as dist

# A machine that swaps, or a virtual one that is moved, may be silent for minutes.
SILENCE = datetime.timedelta(minutes=10)
INTERVAL = 5.0  # seconds

_CLOSED = re.compile("closed|reset by peer", re.I)


class Heartbeat:
    """A thread in each process, in which all of them meet every `INTERVAL` seconds.

    on_silence: called in that thread with PyTorch's error, where another process does not come for
    as long as `SILENCE`. It has to end this process: the main thread may be waiting inside PyTorch
    for that other one, where no exception reaches it. All processes must make one at the same time.
    """

    def __init__(self, on_silence: Callable[[RuntimeError], None]) -> None:
        self._on_silence = on_silence
        self._group = dist.new_group(backend="gloo", timeout=SILENCE)
        self._leaving = threading.Event()
        self._failed = False
        self._thread = threading.Thread(target=self._meet, name="heartbeat", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """End the thread: this process has done its work. The others' threads end with it."""
        self._leaving.set()
        self._thread.join()

    def abandon(self) -> None:
        """End the thread, where this process has failed: the others notice its end."""
        self._failed = True
        self._leaving.set()
        self._thread.join(1.0)  # unless another one is silent

    def _meet(self) -> None:
        anyone_leaves = torch.zeros(())
        while not anyone_leaves:
            self._leaving.wait(INTERVAL)
            if self._failed:
                return
            anyone_leaves.fill_(self._leaving.is_set())
            try:
                dist.all_reduce(anyone_leaves, dist.ReduceOp.MAX, group=self._group)
            except RuntimeError as error:
                # A process that has ended: the main thread notices, as soon as it needs that one.
                if not _CLOSED.search(str(error)):
                    self._on_silence(error)
                return
