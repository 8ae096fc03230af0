"""What an evaluation adds to its table: intervals, a comparison, thresholds of another set."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.intervals import (
    check_same_pairs,
    common_protocols,
    compare,
    figures_of,
    intervals,
    pairs_comparison_table,
)
from Utils.Evaluation_Utils.analysis.kept_scores import KeptScores, load_scores
from Utils.Evaluation_Utils.analysis.pictures import plot_discard
from Utils.Evaluation_Utils.analysis.quality import (
    NORM,
    curves_at,
    discard_table,
    read_quality,
)
from Utils.Evaluation_Utils.analysis.thresholds import (
    Thresholds,
    at_thresholds,
    read_thresholds,
    thresholds_table,
    warn_of_another_network,
)
from Utils.Evaluation_Utils.roc import auc, roc_curve
from Utils.files import read_json


@dataclass(frozen=True)
class Others:
    """Other evaluations that the settings name.

    compared: of each on the same pairs (results file, its checkpoint, its scores). thresholds: of
    another set. quality: (where from, N of the images or None for their norms). None: not asked
    for.
    """

    compared: list[tuple[str, str, KeptScores]]
    thresholds: Thresholds | None = None
    quality: tuple[str, np.ndarray | None] | None = None


@dataclass(frozen=True)
class Further:
    """values: more keys of the results file. tables: to print below the figures. warnings: to print
    above them. intervals: by protocol, as of `intervals`; empty for pairs of one kind."""

    values: dict[str, Any]
    tables: list[str]
    warnings: list[str]
    intervals: dict[str, dict[str, Any]]


def open_others(
    pairs: VerificationSet | KeptScores,
    protocols: Sequence[str],
    compare_with: str = "",
    threshold_from: str = "",
    quality: str = "",
) -> Others:
    """Read the files that are named, before the work.

    Raises DataError if one can't be used with these pairs and protocols.
    """
    compared = []
    both_kinds = bool(np.any(pairs.same)) and not np.all(pairs.same)
    for path in filter(None, map(str.strip, compare_with.split(","))):
        values, scores = read_kept(path)
        if not both_kinds:
            raise DataError(f"{path}: pairs of one kind have no accuracy to compare.")
        check_same_pairs(pairs, scores)
        common_protocols(protocols, scores)
        compared.append((path, str(values.get("checkpoint")), scores))
    thresholds = read_thresholds(threshold_from, protocols) if threshold_from else None
    if quality and not both_kinds:
        raise DataError(f"quality is {quality!r}, but pairs of one kind have no FNMR at an FMR.")
    of_images = read_quality(quality, pairs.names) if quality and quality != NORM else None
    return Others(compared, thresholds, (quality, of_images) if quality else None)


def read_results(path: str | Path) -> dict[str, Any]:
    """The results file of a verification. Raises DataError if it is none."""
    values = read_json(path, "results file")
    if not isinstance(values, dict) or not isinstance(values.get("results"), dict):
        raise DataError(f"{path} is not the JSON file that an evaluation of pairs writes.")
    return values


def read_kept(path: str | Path) -> tuple[dict[str, Any], KeptScores]:
    """A results file and the scores beside it. Raises DataError if one of them can't be used, and
    if they are of two evaluations, as where one of the files was copied or a run was interrupted.
    """
    values, kept = read_results(path), load_scores(path)
    for protocol in sorted({*kept.protocols, *values["results"]}):
        written = values["results"].get(protocol)
        for name, figure in _figures(kept, protocol).items():
            there = written.get(name) if isinstance(written, dict) else None
            known = figure is not None and isinstance(there, int | float)
            if not known or not np.isclose(there, figure, rtol=0, atol=1e-9):
                raise DataError(
                    f"{path} and {kept.source} are not of one evaluation: under {protocol}, the "
                    f"{name} is {there} in the results file and {figure} by the scores. Evaluate "
                    f"the checkpoint again."
                )
    return values, kept


def _figures(kept: KeptScores, protocol: str) -> dict[str, float | None]:
    """Figures of a protocol that tell one evaluation from another; None without its scores."""
    if protocol not in kept.protocols:
        return {"accuracy": None}
    own = kept.protocols[protocol]
    if own.wrong is None:
        return {"median_score": float(np.median(own.scores))}
    area = auc(roc_curve(own.scores, kept.same))
    return {"accuracy": figures_of(kept, protocol)["accuracy"], "auc": area}


def further_figures(kept: KeptScores, others: Others, checkpoint: str) -> Further:
    """Everything beyond the table. checkpoint: the network of `kept`."""
    values: dict[str, Any] = {}
    tables, warnings = [], []
    both_kinds = all(own.wrong is not None for own in kept.protocols.values())
    for path, other, scores in others.compared:
        found = compare(kept, scores)
        about = {"file": path, "checkpoint": other, "results": found}
        values.setdefault("comparisons", []).append(about)
        tables.append(pairs_comparison_table(found, f"{path} ({other})"))
    if others.thresholds:
        values["at_thresholds"] = at_thresholds(kept, others.thresholds)
        tables.append(thresholds_table(values["at_thresholds"]))
        warnings += warn_of_another_network(others.thresholds, checkpoint)
    if others.quality:
        by, quality = others.quality
        images = kept.norms if quality is None else quality
        pairs = np.minimum(images[kept.left], images[kept.right])
        curves = {p: curves_at(own.scores, kept.same, pairs) for p, own in kept.protocols.items()}
        values["quality"] = {"by": by, "results": curves}
        tables.append(discard_table(values["quality"]))
    norms = np.quantile(kept.norms, (0, 0.05, 0.5, 0.95, 1)).tolist()
    names = ("lowest", "5 %", "median", "95 %", "highest")
    values["feature_norms"] = dict(zip(names, norms, strict=True))
    return Further(values, tables, warnings, intervals(kept) if both_kinds else {})


def draw_quality(values: dict[str, Any], path: Path, title: str) -> None:
    """Write <path>_discard_<protocol>.png for the quality, if any, of `Further.values`."""
    found = values.get("quality", {"results": {}})
    for section, curves in found["results"].items():
        heading = f"{title}, {section}: error versus discard by {Path(found['by']).name}"
        name = re.sub(r"\W+", "_", section)
        plot_discard(curves, f"{path}_discard_{name}.png", heading)
