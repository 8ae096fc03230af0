"""Figures of each group of pairs, such as RFW's races: accuracy, and errors at one threshold.

The accuracy of a group is that of its own pairs in their folds, with thresholds chosen on the
group's other folds, as RFW's tables have it (Wang & Deng, "Mitigating Bias in Face Recognition
Using Skewness-Aware Reinforcement Learning", CVPR 2020): their mean, their standard deviation over
the G groups (divided by G - 1), and the skewed error ratio, (1 - lowest) / (1 - highest).

A threshold for each group hides what a system with one threshold does. FMR (share of a group's
mismatched pairs at or above the threshold) and FNMR (share of its matched pairs below it) are
therefore given at a single one, found at a FAR on all pairs or on those of one group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from Config import Config
from Utils.Datasets_Utils.folds import folds_of_both_kinds
from Utils.Datasets_Utils.pairs.groups import read_groups
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.intervals import show_range
from Utils.Evaluation_Utils.one_kind import OneKind, has_both_kinds
from Utils.Evaluation_Utils.roc import roc_curve, tar_at_far
from Utils.Evaluation_Utils.verification import (
    PROTOCOLS,
    VerificationResult,
    combine_flip,
    evaluate,
)
from Utils.tables import format_table, percent

ACROSS = ""  # the group of a pair across two groups


def with_groups(data: VerificationSet, config: Config) -> VerificationSet:
    """The set with the groups of the setting `groups`, if it names a file; with a note if there are
    matched pairs that are of no group.

    Raises PairsError for that file, and DataError for a `threshold_group` that can't be used, and
    for groups of pairs of one kind.
    """
    if config.groups:
        names = (data.names, data.left, data.right)
        groups = read_groups(Path(config.groups), *names, config.list_encoding)
        data = replace(data, groups=groups)
        if not _names(groups):
            raise DataError(
                f"{config.groups}: no pair is of two images of one group, so no group has figures. "
                f"Does it give each image a group of its own?"
            )
    same = np.asarray(data.same, bool)
    if config.groups or config.threshold_group:
        _chosen(same, data.groups, config.threshold_group)
    lost = np.flatnonzero(same & (data.groups == ACROSS)) if len(data.groups) else ()
    if len(lost):
        first = f"{data.names[data.left[lost[0]]]} and {data.names[data.right[lost[0]]]}"
        note = f"matched pairs of no one group, which count in none: {len(lost):,}, such as {first}"
        data = replace(data, notes=(*data.notes, note))
    return data


def _chosen(same: np.ndarray, groups: np.ndarray, threshold_group: str) -> np.ndarray:
    """The pairs (bools) on which the one threshold is found."""
    chosen = np.ones(len(same), bool)
    if threshold_group:
        chosen = groups == threshold_group if len(groups) else ~chosen
    matched, mismatched = int(same[chosen].sum()), int((~same[chosen]).sum())
    if not matched or not mismatched:
        known = ", ".join(_names(groups)) or "none; `--groups FILE` names a file of them"
        where = f"threshold_group is {threshold_group!r}, which" if threshold_group else "the set"
        raise DataError(
            f"{where} has {matched:,} matched and {mismatched:,} mismatched pairs; figures of "
            f"groups need both. The groups are: {known}."
        )
    return chosen


def _names(groups: np.ndarray) -> list[str]:
    return sorted(set(groups.tolist()) - {ACROSS})


@dataclass(frozen=True)
class Group:
    """The figures of one group; rates and accuracies are 0..1.

    accuracy, std: mean and population standard deviation over the group's folds; None where there
    are fewer than two pairs of a kind. folds_are_new: whether the folds of all pairs could not be
    used, as one held pairs of one kind only. fmr, fnmr: at the one threshold; None without pairs of
    that kind.
    """

    matched: int
    mismatched: int
    folds: int
    folds_are_new: bool
    accuracy: float | None
    std: float | None
    fmr: float | None
    fnmr: float | None


@dataclass(frozen=True)
class GroupsResult:
    """The figures of `evaluate_groups` under one protocol.

    groups: by their names, in the order of the names. mean, std, skewed_error_ratio: of the groups'
        accuracies; std with G - 1, None for fewer than two; the ratio None where the highest is 1.
    threshold: a pair is accepted at a score of it or above, in the protocol's unit of scores
        (cosine; minus squared distance); +inf accepts nothing. It was found at far_target on the
        pairs of threshold_group ("": all pairs); far: reached there.
    across, across_fmr: number of mismatched pairs across two groups, and their FMR (None: none).
    wrong: P bools, the pairs that got the wrong answer in their own group's fold.
    """

    groups: dict[str, Group]
    mean: float | None
    std: float | None
    skewed_error_ratio: float | None
    threshold: float
    threshold_group: str
    far_target: float
    far: float
    across: int
    across_fmr: float | None
    wrong: np.ndarray = field(repr=False)

    def to_dict(self) -> dict:
        """The figures as JSON-ready numbers; a threshold that accepts nothing is None."""
        threshold = self.threshold if math.isfinite(self.threshold) else None
        values = {name: value for name, value in asdict(self).items() if name != "wrong"}
        return {**values, "threshold": threshold}


def evaluate_groups(
    features_left: np.ndarray,
    features_right: np.ndarray,
    result: VerificationResult,
    folds: np.ndarray,
    groups: np.ndarray,
    far: float = 1e-3,
    threshold_group: str = "",
) -> GroupsResult:
    """The figures of the groups of P pairs.

    features_left, features_right, folds: as given to `evaluate`, whose result this is. groups: P
    texts, "" for a pair across two groups. far: where the one threshold is found, on the pairs of
    threshold_group or, if that is "", on all pairs.

    A group's folds are made anew where they do not hold pairs of both kinds.

    Raises DataError for a threshold_group that is none of the groups, or that lacks matched or
    mismatched pairs.
    """
    chosen = _chosen(result.same, groups, threshold_group)
    (point,) = tar_at_far(roc_curve(result.scores[chosen], result.same[chosen]), [far])
    found, wrong = {}, np.zeros(len(groups), bool)
    for name in _names(groups):
        rows = np.flatnonzero(groups == name)
        same, accepted = result.same[rows], result.scores[rows] >= point.threshold
        own_folds, note = folds_of_both_kinds(same, np.unique(folds[rows], return_inverse=True)[1])
        accuracy = std = None
        if min(same.sum(), (~same).sum()) >= 2:
            sides = features_left[rows], features_right[rows]
            own = evaluate(*sides, same, own_folds, result.protocol)
            accuracy, std, wrong[rows] = own.accuracy, own.std, own.wrong
        found[name] = Group(
            matched=int(same.sum()),
            mismatched=int((~same).sum()),
            folds=len(np.unique(own_folds)) if accuracy is not None else 0,
            folds_are_new=bool(note),
            accuracy=accuracy,
            std=std,
            fmr=_share(accepted[~same]),
            fnmr=_share(~accepted[same]),
        )
    across = (groups == ACROSS) & ~result.same
    return GroupsResult(
        groups=found,
        **spread([group.accuracy for group in found.values() if group.accuracy is not None]),
        threshold=point.threshold,
        threshold_group=threshold_group,
        far_target=far,
        far=point.far,
        across=int(across.sum()),
        across_fmr=_share(result.scores[across] >= point.threshold),
        wrong=wrong,
    )


def spread(accuracies: list[float]) -> dict[str, float | None]:
    """Mean, standard deviation (divided by G - 1) and skewed error ratio of G accuracies, 0..1."""
    several = len(accuracies) >= 2
    best = max(accuracies, default=1.0)
    return {
        "mean": float(np.mean(accuracies)) if accuracies else None,
        "std": float(np.std(accuracies, ddof=1)) if several else None,
        "skewed_error_ratio": (1 - min(accuracies)) / (1 - best) if several and best < 1 else None,
    }


def _share(flags: np.ndarray) -> float | None:
    return float(np.mean(flags)) if flags.size else None


def evaluate_groups_of(
    data: VerificationSet,
    embeddings: tuple[np.ndarray, np.ndarray],
    results: dict[str, VerificationResult] | dict[str, OneKind],
    config: Config,
) -> dict[str, GroupsResult]:
    """The figures of the set's groups by protocol; empty without groups, or with one kind of pair.

    Raises DataError for a `threshold_group` that can't be used."""
    if not len(data.groups) or not has_both_kinds(data):
        return {}
    found = {}
    for protocol, result in results.items():
        rows = combine_flip(*embeddings, protocol)
        found[protocol] = evaluate_groups(
            rows[data.left],
            rows[data.right],
            result,
            data.folds,
            data.groups,
            config.group_far,
            config.threshold_group,
        )
    return found


# --- table -------------------------------------------------------------------------------------


def groups_table(
    results: Mapping[str, GroupsResult], intervals: Mapping[str, dict[str, Any]]
) -> str:
    """The figures of each group by protocol, with the thresholds below them. intervals: of the
    module of that name."""
    first = next(iter(results.values()))
    columns = ("", "95 % interval", "FMR", "FNMR")
    rows = [["group", "pairs", *(cell for protocol in results for cell in (protocol, *columns))]]
    for name, group in first.groups.items():
        rows.append([name, f"{group.matched + group.mismatched:,}"])
        for protocol, result in results.items():
            own, ends = result.groups[name], intervals[protocol].get("groups", {}).get(name)
            deviation = "" if own.std is None else f"± {100 * own.std:.2f}"
            rows[-1] += [percent(own.accuracy), deviation, show_range(ends)]
            rows[-1] += [percent(own.fmr), percent(own.fnmr)]
    if first.across:
        rows.append(["across groups", f"{first.across:,}"])
        for result in results.values():
            rows[-1] += ["", "", "", percent(result.across_fmr), ""]
    rows.append([])
    of_all = (
        ("mean", lambda result: percent(result.mean)),
        ("std (n - 1)", lambda result: _number(result.std, 100)),
        ("skewed error ratio", lambda result: _number(result.skewed_error_ratio)),
    )
    for label, show in of_all:
        cells = ([show(result), "", "", "", ""] for result in results.values())
        rows.append([label, "", *(cell for row in cells for cell in row)])
    where = f"group {first.threshold_group}" if first.threshold_group else "all pairs"
    thresholds = (
        f"{_accepts(protocol, result.threshold)} (FAR {result.far:.3g} there)"
        if math.isfinite(result.threshold)
        else f"{protocol}: nothing is accepted, as mismatched pairs are the most alike"
        for protocol, result in results.items()
    )
    renewed = [name for name, group in first.groups.items() if group.folds_are_new]
    note = ", ".join(renewed) + ": folds made anew, with pairs of both kinds in each"
    return (
        format_table(rows, "<>" + ">>>>>" * len(results))
        + f"\n\nFMR and FNMR at one threshold for all groups, FAR {first.far_target:g} on {where}:"
        + "".join(f"\n  {line}" for line in thresholds)
        + (f"\n  {note}" if renewed else "")
    )


def _accepts(protocol: str, threshold: float) -> str:
    if PROTOCOLS[protocol].score_sign > 0:
        return f"{protocol}: cosine >= {threshold:.4f}"
    return f"{protocol}: squared distance <= {-threshold:.4f}"


def _number(value: float | None, scale: float = 1) -> str:
    return "-" if value is None else f"{scale * value:.2f}"
