"""Thresholds for use: a set evaluated at the thresholds that were found on another set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.errors import DataError
from Utils.Evaluation_Utils.analysis.kept_scores import KeptScores
from Utils.Evaluation_Utils.verification import PROTOCOLS
from Utils.files import read_json
from Utils.tables import format_table


@dataclass(frozen=True)
class Thresholds:
    """Thresholds in a results file. benchmark, checkpoint: what they were found on and with.
    points: by protocol, (FAR target, threshold on the scale of the scores or None) of each."""

    path: str
    benchmark: str
    checkpoint: str
    points: dict[str, list[tuple[float, float | None]]]


def read_thresholds(path: str | Path, protocols: Iterable[str]) -> Thresholds:
    """The thresholds of a verification's results file. Raises DataError if it has none."""
    values = read_json(path, "results file")
    found = {protocol: _points(values, protocol, path) for protocol in protocols}
    if not any(found.values()):
        raise DataError(
            f"{path} holds no thresholds under {', '.join(found)}: expected the JSON file that an "
            f"evaluation of matched and mismatched pairs writes, under that --protocol."
        )
    return Thresholds(
        path=str(path),
        benchmark=str(values.get("benchmark")),
        checkpoint=str(values.get("checkpoint")),
        points={protocol: points for protocol, points in found.items() if points},
    )


def at_thresholds(kept: KeptScores, thresholds: Thresholds) -> dict[str, Any]:
    """The pairs at these thresholds, JSON-ready: {"file", "benchmark", "checkpoint", "results":
    {protocol: [{"far_target", "threshold", "far", "tar", "accuracy"}]}}.

    A pair is accepted when its score is at or above the threshold; None accepts nothing. accuracy
    is the share of right answers on all pairs; it is None, as is a rate, for a set without pairs
    of that kind.
    """
    same = np.asarray(kept.same, bool)
    both = bool(same.any() and not same.all())
    results: dict[str, list[dict[str, Any]]] = {}
    for protocol in kept.protocols.keys() & thresholds.points.keys():
        results[protocol] = []
        for target, threshold in thresholds.points[protocol]:
            scores = kept.protocols[protocol].scores
            accepted = scores >= (np.inf if threshold is None else threshold)
            results[protocol].append(
                {
                    "far_target": target,
                    "threshold": threshold,
                    "far": None if same.all() else float(np.mean(accepted[~same])),
                    "tar": float(np.mean(accepted[same])) if same.any() else None,
                    "accuracy": float(np.mean(accepted == same)) if both else None,
                }
            )
    about = {name: getattr(thresholds, name) for name in ("benchmark", "checkpoint")}
    return {"file": thresholds.path, **about, "results": dict(sorted(results.items()))}


def warn_of_another_network(thresholds: Thresholds, checkpoint: str) -> list[str]:
    """A warning if the thresholds are not of the checkpoint."""
    if thresholds.checkpoint == checkpoint:
        return []
    return [
        f"the thresholds of {thresholds.path} were found with the checkpoint "
        f"{thresholds.checkpoint}, and this is {checkpoint}: thresholds of one network do not suit "
        f"another"
    ]


def thresholds_table(found: dict[str, Any]) -> str:
    """The result of `at_thresholds`."""
    rows = [["", "FAR there", "threshold", "FAR", "TAR", "accuracy"]]
    for protocol, points in found["results"].items():
        for point in points:
            shares = ("far", "tar", "accuracy")
            rows.append(
                [
                    protocol,
                    f"{point['far_target']:g}",
                    show_threshold(point["threshold"], protocol),
                    *("" if point[s] is None else f"{100 * point[s]:.2f} %" for s in shares),
                ]
            )
    heading = f"At the thresholds found on {found['benchmark']} ({found['file']}):"
    return f"{heading}\n{format_table(rows, '<>>>>>', indent=2)}"


def show_threshold(threshold: float | None, protocol: str) -> str:
    """A threshold on the scale of the scores, in the protocol's unit."""
    if threshold is None or not np.isfinite(threshold):
        return "none"
    return f"{threshold * PROTOCOLS[protocol].score_sign:.4f}"


def _points(
    values: Any, protocol: str, path: str | Path
) -> list[tuple[float, float | None]] | None:
    """(FAR target, threshold) of a protocol's results; None if the file has none of it."""
    results = values.get("results") if isinstance(values, dict) else None
    own = results.get(protocol) if isinstance(results, dict) else None
    points = own.get("operating_points") if isinstance(own, dict) else None
    if not isinstance(points, list) or not points:
        return None
    pairs = [
        (p.get("far_target"), p.get("threshold")) if isinstance(p, dict) else (p, None)
        for p in points
    ]
    for far, threshold in pairs:
        numbers = [far] if threshold is None else [far, threshold]
        if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
            raise DataError(f"{path}: {protocol} has the threshold {threshold!r} at FAR {far!r}.")
    return pairs
