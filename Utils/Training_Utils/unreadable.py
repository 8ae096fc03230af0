"""The images of a run that could not be read, named in its log."""

import logging
from collections.abc import Iterable

from Utils.processes import Processes


class UnreadableImages:
    """Collects why images were left out, and logs each reason once."""

    def __init__(self, log: logging.Logger, processes: Processes) -> None:
        self._log = log
        self._processes = processes
        self._known: set[str] = set()
        self._new: list[str] = []

    def add(self, reasons: Iterable[str]) -> None:
        """Take in the reasons of a batch."""
        self._new += reasons

    def report(self) -> None:
        """Log what is new; called by all processes together, whose images are not the same."""
        for reason in (reason for new in self._processes.gather(self._new) for reason in new):
            if reason not in self._known:
                self._known.add(reason)
                self._log.info(f"image left out, the next one taken in its place: {reason}")
        self._new = []
