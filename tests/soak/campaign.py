"""What a campaign is given, and what it gives: rows of tries, survived and lost."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


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

# A try, from the generator of its draws and an empty folder: what was lost, or None.
Try = Callable[[random.Random, Path], str | None]


def tried(allowance: Allowance, kinds: Sequence[tuple[str, Try | None, float]]) -> Iterator[Row]:
    """A row for each kind of fault: its name, what tries it, and its weight in sharing the time.
    None: it can't be tried on this machine, or by this user."""
    draw = random.Random(allowance.seed)
    for number, (name, attempt, until) in enumerate(shared_time(allowance, kinds)):
        row = Row(name)
        if attempt is None:
            row.note = "skipped: it takes root, on Linux"
            yield row
            continue
        while allowance.left() and (not row.tries or time.monotonic() < until):
            folder = allowance.folder / f"{number}_{row.tries}"
            folder.mkdir()
            row.count(attempt(draw, folder))
        row.note = getattr(attempt, "note", "")
        yield row


def shared_time(
    allowance: Allowance, kinds: Sequence[tuple[str, T, float]]
) -> Iterator[tuple[str, T, float]]:
    """The kinds of fault in an order of the seed: name, what tries it, and the time until which its
    tries may start, by its weight; the first may start later. If there is little time, the last
    kinds get none."""
    kinds = random.Random(allowance.seed).sample(kinds, len(kinds))
    for number, (name, attempt, weight) in enumerate(kinds):
        now, weights = time.monotonic(), sum(kind[2] for kind in kinds[number:])
        yield name, attempt, now + weight / max(weights, 1) * (allowance.until - now)
