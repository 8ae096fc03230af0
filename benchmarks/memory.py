"""The memory that a piece of work needs, beyond what its process used before."""

from __future__ import annotations

import threading
from pathlib import Path


class MemoryWatch:
    """The growth of the process's memory inside the context, in bytes, without the pages of files.

    It is sampled `per_second` times a second.
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
    """The bytes of the process's memory that are not pages of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
    return int(kib) * 1024
