"""95 % intervals of a verification's figures, and two results on the same pairs compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

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


def intervals(kept: KeptScores) -> dict[str, dict[str, Any]]:
    """For each protocol, JSON-ready: {"level", "over": "subjects" | "pairs", "draws", "accuracy":
    [low, high], "tar_at_far": {far: [low, high]}}.

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
    and "difference" (this - other) of accuracy and of tar_at_far, the interval of the difference,
    and the chance that the order is the other way round.

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
        entries = {}
        for name in figures[0]:
            this, that = (values[name] for values in figures)
            apart = draws[0][name] - draws[1][name] if draws[0][name] is not None else None
            entries[name] = {
                "this": this,
                "other": that,
                "difference": this - that,
                "interval": _range(apart, this - that),
                "chance_of_other_order": None
                if apart is None
                else chance_of_other_order(apart, this - that),
            }
        found[protocol] = {**_about(kept, subjects), **_nested(entries)}
    return found


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


def common_protocols(protocols: Iterable[str], other: KeptScores) -> list[str]:
    """The protocols that the other has too. Raises DataError for none."""
    common = [protocol for protocol in protocols if protocol in other.protocols]
    if not common:
        raise DataError(
            f"{other.source} holds no scores under {', '.join(protocols)}, to compare with; "
            f"evaluate both with one --protocol."
        )
    return common


def comparison_table(compared: dict[str, dict[str, Any]], other: str) -> str:
    """The result of `compare`. other: the words for what it is compared with."""
    over = next(iter(compared.values()))["over"]
    lines = [f"Compared with {other}; 95 % interval of the difference over {over}:"]
    rows = [["", "figure", "this", "other", "difference", "interval", "other order"]]
    for protocol, values in compared.items():
        entries = {"accuracy": values["accuracy"]}
        entries |= {f"TAR@FAR={far}": entry for far, entry in values["tar_at_far"].items()}
        for name, entry in entries.items():
            chance = entry["chance_of_other_order"]
            rows.append(
                [
                    protocol,
                    name,
                    *(f"{100 * entry[key]:.2f} %" for key in ("this", "other")),
                    f"{100 * entry['difference']:+.2f}",
                    show_range(entry["interval"], "+.2f"),
                    "" if chance is None else f"{100 * chance:.1f} %",
                ]
            )
    return "\n".join([*lines, format_table(rows, "<<>>>>>", indent=2)])


def show_range(ends: Sequence[float] | None, form: str = ".2f") -> str:
    """An interval of shares, in percent."""
    return "" if ends is None else " to ".join(f"{100 * end:{form}}" for end in ends)


def _pair(kept: KeptScores | VerificationSet, row: int) -> str:
    return f"{kept.names[kept.left[row]]} and {kept.names[kept.right[row]]}"


def figures_of(kept: KeptScores, protocol: str) -> dict[str, float]:
    """{"accuracy": ...} and the TAR at each of REPORTED_FARS, {"0.01": ...}."""
    own = kept.protocols[protocol]
    points = tar_at_far(roc_curve(own.scores, kept.same), REPORTED_FARS)
    right = [np.mean(~own.wrong[kept.folds == fold]) for fold in np.unique(kept.folds)]
    return {"accuracy": float(np.mean(right)), **{str(p.target): p.tar for p in points}}


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
    measured = {str(far): draws if mismatched * far >= 1 else None for far, draws in tars}
    return {"accuracy": drawn.accuracy, **measured}


def _range(draws: np.ndarray | None, figure: float) -> list[float] | None:
    return None if draws is None else list(interval(draws, figure))


def _about(kept: KeptScores, subjects: tuple[np.ndarray, np.ndarray] | None) -> dict[str, Any]:
    over = "pairs" if subjects is None else "subjects"
    about = {"level": LEVEL, "over": over, "draws": draws_for(len(kept.same))}
    return about if subjects is None else {**about, "subjects": len(np.unique(subjects))}


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    tars = {name: value for name, value in values.items() if name != "accuracy"}
    return {"accuracy": values["accuracy"], "tar_at_far": tars}
