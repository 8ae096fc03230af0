"""95 % intervals of a verification's figures, and two results on the same pairs compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from Utils.Datasets_Utils.folds import folds_of_both_kinds
from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.bootstrap import (
    LEVEL,
    Resampled,
    chance_of_other_order,
    draws_for,
    interval,
    resample,
)
from Utils.Evaluation_Utils.analysis.kept_scores import KeptScores, subjects_of
from Utils.Evaluation_Utils.roc import roc_curve, tar_at_far
from Utils.Evaluation_Utils.verification import REPORTED_FARS
from Utils.tables import format_table

_OF = "accuracy of "  # a group


def intervals(kept: KeptScores) -> dict[str, dict[str, Any]]:
    """For each protocol, JSON-ready: {"level", "over": "subjects" | "pairs", "draws", "accuracy":
    [low, high], "tar_at_far": {far: [low, high]}}, with groups "groups": {name: [low, high]}, of
    their accuracies.

    An interval of TAR is None where there are fewer mismatched pairs than 1/FAR: that FAR was not
    measured, the figure is the TAR at no false accept.
    """
    subjects = subjects_of(kept)
    found = {}
    for protocol in kept.protocols:
        figures, draws = figures_of(kept, protocol), _draws(kept, protocol, subjects)
        ranges = {name: _range(draws[name], figures[name]) for name in figures}
        found[protocol] = {**_about(kept, subjects), **_nested(ranges)}
    return found


def compare(kept: KeptScores, other: KeptScores) -> dict[str, dict[str, Any]]:
    """Two results on the same pairs; for each protocol that both have, JSON-ready: "this", "other"
    and "difference" (this - other) of accuracy, of tar_at_far and of the groups' accuracies, the
    interval of the difference, and the chance that the order is the other way round.

    Raises DataError, naming a pair, if the pairs are not the same.
    """
    check_same_pairs(kept, other)
    common = common_protocols(kept.protocols, other)
    if any(side.protocols[common[0]].wrong is None for side in (kept, other)):
        raise DataError(f"{kept.source}: pairs of one kind have no accuracy to compare.")
    subjects = subjects_of(kept)
    found = {}
    for protocol in common:
        figures = [figures_of(side, protocol) for side in (kept, other)]
        draws = [_draws(kept, protocol, subjects), _draws(other, protocol, subjects, mirrored=True)]
        entries = {
            name: compared_figure(*(side[name] for side in (*figures, *draws)))
            for name in figures[0]
            if name in figures[1]
        }
        found[protocol] = {**_about(kept, subjects), **_nested(entries)}
    return found


def compared_figure(
    this: float, other: float, this_draws: np.ndarray | None, other_draws: np.ndarray | None
) -> dict[str, Any]:
    """The entry of one figure of two results, JSON-ready. The draws, B each, are of the same
    weights with the half-pairs exchanged; None: not measured."""
    difference = this - other
    entry = {"this": this, "other": other, "difference": difference}
    if this_draws is None or other_draws is None:
        return {**entry, "interval": None, "chance_of_other_order": None}
    apart = this_draws - other_draws
    return {
        **entry,
        "interval": _range(apart, difference),
        "chance_of_other_order": chance_of_other_order(apart, difference),
    }


def check_same_pairs(kept: KeptScores | VerificationSet, other: KeptScores) -> None:
    """Raises DataError, which names the first pair that differs."""
    count = min(len(kept.same), len(other.same))
    differ = np.asarray(kept.same[:count], bool) != np.asarray(other.same[:count], bool)
    for side in ("left", "right"):
        ours, theirs = (np.asarray(k.names)[getattr(k, side)[:count]] for k in (kept, other))
        differ |= ours != theirs
    if differ.any():
        row = int(np.flatnonzero(differ)[0])
        here, there = ("matched" if k.same[row] else "mismatched" for k in (kept, other))
        raise DataError(
            f"{other.source} is of other pairs: pair {row + 1} is {_pair(other, row)} ({there}) "
            f"there and {_pair(kept, row)} ({here}) here; {int(differ.sum()):,} of {count:,} "
            f"differ. Compare results on one list of pairs."
        )
    if len(kept.same) != len(other.same):
        longer, where = (kept, "here") if len(kept.same) > count else (other, "there")
        raise DataError(
            f"{other.source} has {len(other.same):,} pairs, this evaluation {len(kept.same):,}: "
            f"{_pair(longer, count)} is only {where}. Compare results on one list of pairs."
        )
    if not np.array_equal(kept.folds, other.folds):
        row = int(np.flatnonzero(kept.folds != other.folds)[0])
        raise DataError(
            f"{other.source} has these pairs in other folds: pair {row + 1} is in fold "
            f"{other.folds[row] + 1} there and {kept.folds[row] + 1} here, so the thresholds are "
            f"chosen on other pairs. Evaluate both with one pairs file."
        )
    if len(kept.groups) and len(other.groups) and not np.array_equal(kept.groups, other.groups):
        row = int(np.flatnonzero(kept.groups != other.groups)[0])
        here, there = (str(side.groups[row]) for side in (kept, other))
        raise DataError(
            f"{other.source} has other groups: that of pair {row + 1} is {there!r} there and "
            f"{here!r} here. Give both evaluations the same --groups."
        )


def common_protocols(protocols: Iterable[str], other: KeptScores) -> list[str]:
    """The protocols that the other has too. Raises DataError for none."""
    common = [protocol for protocol in protocols if protocol in other.protocols]
    if not common:
        raise DataError(
            f"{other.source} holds no scores under {', '.join(protocols)}, to compare with; "
            f"evaluate both with one --protocol."
        )
    return common


def pairs_comparison_table(compared: dict[str, dict[str, Any]], other: str) -> str:
    """The result of `compare`. other: the words for what it is compared with."""
    sections = {}
    for protocol, values in compared.items():
        sections[protocol] = {"accuracy": values["accuracy"]}
        tars = values["tar_at_far"].items()
        sections[protocol] |= {f"TAR@FAR={far}": entry for far, entry in tars}
        groups = values.get("groups", {}).items()
        sections[protocol] |= {f"{_OF}{name}": entry for name, entry in groups}
    return comparison_table(sections, next(iter(compared.values()))["over"], other)


def comparison_table(sections: dict[str, dict[str, Any]], over: str, other: str) -> str:
    """Entries of `compared_figure` by section and figure. other: what it is compared with."""
    lines = [f"Compared with {other}; 95 % interval of the difference over {over}:"]
    rows = [["", "figure", "this", "other", "difference", "interval", "other order"]]
    for section, entries in sections.items():
        for name, entry in entries.items():
            chance = entry["chance_of_other_order"]
            rows.append(
                [
                    section,
                    name,
                    *(f"{100 * entry[key]:.2f} %" for key in ("this", "other")),
                    f"{100 * entry['difference']:+.2f}",
                    show_range(entry["interval"], "+.2f"),
                    "" if chance is None else f"{100 * chance:.1f} %",
                ]
            )
    lines.append(format_table(rows, "<<>>>>>", indent=2))
    if not any(entry["difference"] for entries in sections.values() for entry in entries.values()):
        lines.append("The two are the same in all of these figures.")
    return "\n".join(lines)


def show_range(ends: Sequence[float] | None, form: str = ".2f") -> str:
    """An interval of shares, in percent."""
    return "" if ends is None else " to ".join(f"{100 * end:{form}}" for end in ends)


def _pair(kept: KeptScores | VerificationSet, row: int) -> str:
    return f"{kept.names[kept.left[row]]} and {kept.names[kept.right[row]]}"


def figures_of(kept: KeptScores, protocol: str) -> dict[str, float]:
    """{"accuracy": ...} and the TAR at each of REPORTED_FARS, {"0.01": ...}."""
    own = kept.protocols[protocol]
    points = tar_at_far(roc_curve(own.scores, kept.same), REPORTED_FARS)
    figures = {"accuracy": _accuracy(own.wrong, kept.folds)}
    figures |= {str(point.target): point.tar for point in points}
    for name, rows in _groups(kept, protocol):
        figures[name] = _accuracy(own.group_wrong[rows], _folds(kept, rows))
    return figures


def _accuracy(wrong: np.ndarray, folds: np.ndarray) -> float:
    return float(np.mean([np.mean(~wrong[folds == fold]) for fold in np.unique(folds)]))


def _groups(kept: KeptScores, protocol: str) -> list[tuple[str, np.ndarray]]:
    """(name of the figure, the group's pairs) of the groups that have an accuracy."""
    found = []
    if kept.protocols[protocol].group_wrong is not None:
        for name in np.unique(kept.groups).tolist():
            rows = np.flatnonzero(kept.groups == name)
            matched = int(np.sum(kept.same[rows]))
            if name and min(matched, len(rows) - matched) >= 2:
                found.append((f"{_OF}{name}", rows))
    return found


def _folds(kept: KeptScores, rows: np.ndarray) -> np.ndarray:
    """The folds of a group's pairs, as `evaluate_groups` has them."""
    return folds_of_both_kinds(kept.same[rows], kept.folds[rows])[0]


def _draws(
    kept: KeptScores,
    protocol: str,
    subjects: tuple[np.ndarray, np.ndarray] | None,
    mirrored: bool = False,
) -> dict[str, np.ndarray | None]:
    own = kept.protocols[protocol]
    drawn: Resampled = resample(
        own.scores, kept.same, own.wrong, kept.folds, REPORTED_FARS, subjects, mirrored
    )
    mismatched = int(np.sum(~np.asarray(kept.same, bool)))
    tars = zip(REPORTED_FARS, drawn.tar, strict=True)
    found = {str(far): draws if mismatched * far >= 1 else None for far, draws in tars}
    for name, rows in _groups(kept, protocol):
        of_group = resample(
            own.scores[rows],
            kept.same[rows],
            own.group_wrong[rows],
            _folds(kept, rows),
            (),
            None if subjects is None else tuple(side[rows] for side in subjects),
            mirrored,
        )
        found[name] = of_group.accuracy
    return {"accuracy": drawn.accuracy, **found}


def _range(draws: np.ndarray | None, figure: float) -> list[float] | None:
    return None if draws is None else list(interval(draws, figure))


def _about(kept: KeptScores, subjects: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    over = "pairs" if subjects is None else "subjects"
    about = {"level": LEVEL, "over": over, "draws": draws_for(len(kept.same))}
    return about if subjects is None else {**about, "subjects": len(np.unique(subjects))}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tars = {str(far): values[str(far)] for far in REPORTED_FARS}
    groups = {name[len(_OF) :]: own for name, own in values.items() if name.startswith(_OF)}
    found = {"accuracy": values["accuracy"], "tar_at_far": tars}
    return {**found, "groups": groups} if groups else found
