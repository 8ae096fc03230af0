"""Putting together what the blocks, segments and processes found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from Utils.Evaluation_Utils.mates import Mates
from Utils.Evaluation_Utils.negatives import Negatives, merge_negatives
from Utils.Evaluation_Utils.trials import Plan


@dataclass(eq=False)
class Outcome:
    """What one trial came to. Rows are those of the probe table; others
    than the trial's mean nothing.

    beats: int64 P×M, distractors above each mate (see `Mates`). best: float64 P, each probe's
    highest score with a distractor; best_distractor: int64 P, the distractor's row.
    all, devkit: the scores of all probes with the distractors, and of the first hundred.
    """

    beats: np.ndarray
    best: np.ndarray
    best_distractor: np.ndarray
    all: Negatives
    devkit: Negatives


@dataclass(eq=False)
class SegmentResult:
    """What one segment, or a process's share of it, came to: beats and best for all probes in the
    plan's order, and for each group its negatives; None where no trial asks for them."""

    beats: np.ndarray
    best: np.ndarray
    best_distractor: np.ndarray
    cells: list[Negatives | None]


def merge_processes(parts: list[list[SegmentResult]], plan: Plan) -> list[SegmentResult]:
    """Join what the processes found of each segment."""
    merged = []
    for segment, shares in zip(plan.segments, zip(*parts, strict=True), strict=True):
        best, distractor = _best_of([(s.best, s.best_distractor) for s in shares])
        cells = []
        for group, cell in zip(
            plan.groups, zip(*(s.cells for s in shares), strict=True), strict=True
        ):
            keep = plan.cell_keep(group, segment)
            cells.append(merge_negatives(list(cell), keep) if keep else None)
        merged.append(SegmentResult(sum(s.beats for s in shares), best, distractor, cells))
    return merged


def _best_of(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The highest of several scores of each probe; of equal ones the first distractor's."""
    scores = np.stack([score for score, _ in parts])
    rows = np.stack([row for _, row in parts])
    best = scores.max(axis=0)
    first = np.where((scores == best) & (rows >= 0), rows, np.iinfo(np.int64).max).min(axis=0)
    return best, np.where(first == np.iinfo(np.int64).max, -1, first)


def in_table_order(mates: Mates, order: np.ndarray, count: int) -> Mates:
    """Mates by rows of the probe table of `count` rows: order[k] is the row of probe k."""
    width = mates.score.shape[1]
    score = np.full((count, width), np.inf)
    mate = np.full((count, width), -1, np.int64)
    score[order] = mates.score
    mate[order] = np.where(mates.real, order[mates.mate], -1)
    return Mates(score, mate)


def outcome_of(
    number: int, results: list[SegmentResult], plan: Plan, order: np.ndarray, count: int
) -> Outcome:
    """Join the segments of trial `number`; order, count: see `in_table_order`."""
    trial = plan.trials[number]
    inside = [
        result
        for result, segment in zip(results, plan.segments, strict=True)
        if segment.member[number]
    ]
    found = _best_of([(r.best, r.best_distractor) for r in inside])
    best, distractor = np.full(count, -np.inf), np.full(count, -1, np.int64)
    best[order], distractor[order] = found
    beats = np.zeros((count, inside[0].beats.shape[1]), np.int64)
    beats[order] = sum(r.beats for r in inside)
    devkit = number + len(plan.trials)
    return Outcome(
        beats,
        best,
        distractor,
        _union(inside, plan, number, plan.keep_all[number], trial.far),
        _union(inside, plan, devkit, plan.keep_devkit[number], trial.far),
    )


def _union(inside: list[SegmentResult], plan: Plan, column: int, keep: int, far: int) -> Negatives:
    """The negatives of the groups in a kind of list, with those that are far off."""
    cells = [
        cell
        for result in inside
        for cell, group in zip(result.cells, plan.groups, strict=True)
        if group.member[column]
    ]
    probes = sum(len(group.rows) for group in plan.groups if group.member[column])
    merged = merge_negatives(cells, keep)
    merged.far = probes * far
    merged.count += merged.far
    return merged
