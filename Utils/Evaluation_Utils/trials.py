"""What is to be scored: trials, and how they share one pass over the distractors.

A trial is a list of probes and a set of distractors. Several are asked for at once (10, 100, ...
1,000,000 distractors; with and without mislabelled photos), and they overlap. Distractors that are
in the same sets make a segment, probes that are in the same lists a group; every trial is a union
of whole cells (group × segment), and each cell is scored once.
"""

from dataclasses import dataclass

import numpy as np

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
    """The rows 0..count-1 that are in any of up to 62 lists, by the lists they are in."""
    if len(lists) > 62:
        raise ValueError(f"{len(lists)} lists of rows at once; at most 62 can be scored in a pass")
    code = np.zeros(count, np.int64)
    for number, rows in enumerate(lists):
        code[rows] |= 1 << number
    return [
        Part(np.flatnonzero(code == value), value >> np.arange(len(lists)) & 1 > 0)
        for value in np.unique(code)
        if value
    ]


class Plan:
    """Groups, segments and how many of each cell's highest scores are kept.

    trials: what is asked for. probes, distractors: the sizes of the tables.
    keep_all, keep_devkit: for each trial, how many of its highest scores are needed.
    """

    def __init__(
        self,
        trials: list[Trial],
        probes: int,
        distractors: int,
        keep_all: list[int],
        keep_devkit: list[int],
    ) -> None:
        self.trials = trials
        self.keep_all, self.keep_devkit = keep_all, keep_devkit
        lists = [trial.probes for trial in trials] + [trial.devkit_probes for trial in trials]
        self.groups = split(probes, lists)
        self.segments = split(distractors, [trial.distractors for trial in trials])

    def cell_keep(self, group: Part, segment: Part) -> int:
        """How many of the highest scores of a cell any trial may need; 0: none has the cell."""
        in_all, in_devkit = np.split(group.member & np.tile(segment.member, 2), 2)
        needed = [k for k, used in zip(self.keep_all, in_all, strict=True) if used]
        needed += [k for k, used in zip(self.keep_devkit, in_devkit, strict=True) if used]
        return min(max(needed, default=0), len(group.rows) * len(segment.rows))
