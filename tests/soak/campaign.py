"""What a campaign is given, and what it gives: rows of tries, survived and lost."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Row:
    """A kind of fault: how often it was tried, and what came of it.

    A try survives if nothing finished is lost and the program ends, or continues, as
    `docs/reliability.md` says. lost: a description of each try that did not, enough to repeat it.
    """

    name: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)
    note: str = ""  # such as the peak of memory

    @property
    def survived(self) -> int:
        return self.tries - len(self.lost)

    def count(self, failure: str | None) -> None:
        """Count a try; failure: what was lost, or None."""
        self.tries += 1
        if failure:
            self.lost.append(failure)


@dataclass(frozen=True)
class Allowance:
    """What a campaign may use: its folder, its seed, the time until which tries may start."""

    folder: Path
    seed: int
    until: float

    def left(self) -> bool:
        return time.monotonic() < self.until


# Yields its rows as they are finished.
Campaign = Callable[[Allowance], Iterator[Row]]
