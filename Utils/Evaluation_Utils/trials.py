"""What is to be scored: trials, and how they share one pass over the distractors.

A trial is a list of probes and a set of distractors. Several are asked for at once (10, 100, ...
1,000,000 distractors; with and without mislabelled photos), and they overlap. Distractors that are
in the same sets make a segment, probes that are in the same lists a group; every trial is a union
of whole cells (group × segment), and each cell is scored once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_BITS = 32

DEVKIT_PROBES = 100  # the devkit's tool takes its negatives from the first hundred probes alone


@dataclass(frozen=True, eq=False)
class Trial:
    """probes: int64 rows of the probe table in the list's order, each once.
    distractors: int64 rows of the distractor table, ascending.
    far: further distractors that count, but score below everything (see `noise`)."""

    probes: np.ndarray
    distractors: np.ndarray
    far: int = 0

    @property
    def gallery(self) -> int:
        """How many distractors count."""
        return len(self.distractors) + self.far

    @property
    def devkit_probes(self) -> np.ndarray:
        """The probes that the devkit's negatives come from."""
        return self.probes[:DEVKIT_PROBES]


@dataclass(frozen=True, eq=False)
class Part:
    """A group or segment: its rows, and for each kind of list whether its rows are in it."""

    rows: np.ndarray
    member: np.ndarray


def split(count: int, lists: list[np.ndarray]) -> list[Part]:
    """The rows 0..count-1 that are in any of the lists, by the lists they are in."""
    code = np.zeros(count, np.int64)
    for number, rows in enumerate(lists, start=1):
        code *= 2
        code[rows] += 1
        if number % _BITS == 0:  # count anew what combinations there are, before the bits run out
            code = np.unique(code, return_inverse=True)[1]
    _, first, part_of = np.unique(code, return_index=True, return_inverse=True)
    member = np.zeros((len(first), len(lists)), bool)
    for number, rows in enumerate(lists):
        inside = np.zeros(count, bool)
        inside[rows] = True
        member[:, number] = inside[first]
    order = np.argsort(part_of, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(part_of))[:-1])
    return [Part(r, m) for r, m in zip(rows, member, strict=True) if m.any()]


class Plan:
    """Groups, segments and how many of each cell's highest scores are kept.

    trials: what is asked for. probes, distractors: the sizes of the tables. keep: says how many of
    its highest scores a trial needs, of how many scores and kept in how many lists (`lists`).
    """

    def __init__(
        self,
        trials: list[Trial],
        probes: int,
        distractors: int,
        keep: Callable[[int, int], int],
    ) -> None:
        self.trials = trials
        lists = [trial.probes for trial in trials] + [trial.devkit_probes for trial in trials]
        self.groups = split(probes, lists)
        self.segments = split(distractors, [trial.distractors for trial in trials])
        self.keep_all = [keep(len(t.probes) * t.gallery, self.lists) for t in trials]
        self.keep_devkit = [keep(len(t.devkit_probes) * t.gallery, self.lists) for t in trials]

    @property
    def lists(self) -> int:
        """How many lists of scores share the memory: one for each group, while a segment is gone
        over; and what all cells leave, as scores alone, which take about an eighth of it."""
        return len(self.groups) * (8 + len(self.segments)) // 8

    @property
    def order(self) -> np.ndarray:
        """int64: the rows of the probe table, each group's together."""
        return np.concatenate([group.rows for group in self.groups])

    def group_rows(self, column: int) -> list[slice]:
        """Where in `order` the groups are that are in a kind of list: number n is trial n's probes,
        n + the number of trials those of its devkit negatives."""
        ends = np.cumsum([len(group.rows) for group in self.groups]).tolist()
        return [
            slice(end - len(group.rows), end)
            for end, group in zip(ends, self.groups, strict=True)
            if group.member[column]
        ]

    def cell_keep(self, group: Part, segment: Part) -> int:
        """How many of the highest scores of a cell any trial may need; 0: none has the cell."""
        in_all, in_devkit = np.split(group.member & np.tile(segment.member, 2), 2)
        needed = [k for k, used in zip(self.keep_all, in_all, strict=True) if used]
        needed += [k for k, used in zip(self.keep_devkit, in_devkit, strict=True) if used]
        return min(max(needed, default=0), len(group.rows) * len(segment.rows))
