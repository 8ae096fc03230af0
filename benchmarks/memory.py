"""The memory that a process needs for something, beyond what it had before."""

from __future__ import annotations

import threading
from pathlib import Path


class MemoryWatch:
    """The highest memory of the process that is not a file's, since the start, in bytes.

    Looked at `per_second` times a second.
    """

    def __init__(self, per_second: float = 500.0) -> None:
        self._pause = 1 / per_second

    def __enter__(self) -> MemoryWatch:
        self._before = self._highest = anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._highest = max(self._highest, anonymous_bytes())

    @property
    def used(self) -> int:
        return self._highest - self._before

    def _look(self) -> None:
        while not self._stop.wait(self._pause):
            self._highest = max(self._highest, anonymous_bytes())


def anonymous_bytes() -> int:
    """What the process has that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024
