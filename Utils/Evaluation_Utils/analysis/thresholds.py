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

    def about(self) -> dict[str, str]:
        """Where they are from, for a results file."""
        return {"file": self.path, "benchmark": self.benchmark, "checkpoint": self.checkpoint}


def read_thresholds(path: str | Path, protocols: Iterable[str]) -> Thresholds:
    """The thresholds of a verification's or IJB's results file; IJB's are of the protocol cosine.

    Raises DataError if it has none, or those of several conventions."""
    values = read_json(path, "results file")
    found = {protocol: _points(values, protocol, path) for protocol in protocols}
    if not any(found.values()):
        raise DataError(
            f"{path} holds no thresholds under {', '.join(found)}: expected the JSON file that an "
            f"evaluation of matched and mismatched pairs (under that --protocol) or of IJB writes."
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
    results = {
        protocol: rates_at(kept.protocols[protocol].scores, kept.same, thresholds.points[protocol])
        for protocol in kept.protocols.keys() & thresholds.points.keys()
    }
    return {**thresholds.about(), "results": dict(sorted(results.items()))}


def warn_of_another_network(thresholds: Thresholds, checkpoint: str) -> list[str]:
    """A warning if the thresholds are not of the checkpoint."""
    if Path(thresholds.checkpoint).resolve() == Path(checkpoint).resolve():
        return []
    return [
        f"the thresholds of {thresholds.path} were found with the checkpoint "
        f"{thresholds.checkpoint}, and this is {checkpoint}: thresholds of one network do not suit "
        f"another"
    ]


def rates_at(
    scores: np.ndarray, same: np.ndarray, points: Iterable[tuple[float, float | None]]
) -> list[dict[str, Any]]:
    """The rates of P pairs at (FAR target, threshold) points, as in `at_thresholds`."""
    same = np.asarray(same, bool)
    both, found = bool(same.any() and not same.all()), []
    for target, threshold in points:
        accepted = scores >= (np.inf if threshold is None else threshold)
        found.append(
            {
                "far_target": target,
                "threshold": threshold,
                "far": None if same.all() else float(np.mean(accepted[~same])),
                "tar": float(np.mean(accepted[same])) if same.any() else None,
                "accuracy": float(np.mean(accepted == same)) if both else None,
            }
        )
    return found


def thresholds_table(found: dict[str, Any], unit: str = "") -> str:
    """The result of `at_thresholds`. unit: the protocol whose unit all thresholds have, where the
    results are not by protocol."""
    rows = [["", "FAR there", "threshold", "FAR", "TAR", "accuracy"]]
    for protocol, points in found["results"].items():
        for point in points:
            shares = ("far", "tar", "accuracy")
            rows.append(
                [
                    protocol,
                    f"{point['far_target']:g}",
                    show_threshold(point["threshold"], unit or protocol),
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
    if protocol == "cosine" and isinstance(results, list):
        pairs = _ijb_points(results, path)
    else:
        own = results.get(protocol) if isinstance(results, dict) else None
        points = own.get("operating_points") if isinstance(own, dict) else None
        pairs = [
            (p.get("far_target"), p.get("threshold")) if isinstance(p, dict) else (p, None)
            for p in (points if isinstance(points, list) else [])
        ]
    for far, threshold in pairs:
        numbers = [far] if threshold is None else [far, threshold]
        if not all(isinstance(n, int | float) and abs(n) < np.inf for n in numbers):
            raise DataError(f"{path}: {protocol} has the threshold {threshold!r} at FAR {far!r}.")
    return pairs or None


def _ijb_points(results: list[Any], path: str | Path) -> list[tuple[float, float | None]]:
    """(FAR target, threshold) by the exact rule; none if these are not IJB's results."""
    try:
        points = [result["verification"]["exact"] for result in results]
        found = [[(float(far), p["threshold"]) for far, p in own.items()] for own in points]
    except (TypeError, KeyError, ValueError, AttributeError):
        return []
    if len(found) > 1:
        raise DataError(
            f"{path} holds thresholds under {len(found)} conventions; give one that was evaluated "
            f"under a single one of ijb_conventions."
        )
    return found[0] if found else []
