"""Error versus discard: how much better pairs get when those of the lowest quality are dropped.

After Grother and Tabassi, "Performance of biometric quality measures" (2007), and the evaluation of
CR-FIQA (Boutros et al. 2023). A pair's quality is the lower one of its two images'. For each share
u = 0, 5 %, ... 95 % the lowest int(u·P) of the P pairs are dropped, matched and mismatched alike
(of equal quality, the first in the list), and the FNMR of the rest is computed at an FMR, under two
rules: at the threshold of all pairs (Grother and Tabassi), and with the threshold found again on
the rest (CR-FIQA). Thresholds are the lowest with an FMR of at most the target. The area under the
curve is that of the trapezoidal rule: the lower, the better the quality tells what goes wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.pairs.groups import plain_name
from Utils.Datasets_Utils.text import (
    IMAGE_WORDS,
    as_number,
    first_few,
    is_comment,
    numbered_lines,
)
from Utils.errors import DataError
from Utils.files import reading
from Utils.tables import format_table

NORM = "norm"
DETECTOR = "detector"  # of IJB
FMRS = (1e-2, 1e-3)
STEPS = 20  # shares are k / STEPS

_SHOWN = (0, 2, 4, 10)  # steps in the table
_RULES = ("fixed", "found_again", "ideal")


@dataclass(frozen=True)
class DiscardCurve:
    """FNMR (0..1) over the share of the pairs that is dropped.

    threshold: of all pairs, on the scale of the scores; inf if it accepts nothing.
    shares: of the steps, as far as pairs of both kinds remain. fixed, found_again: FNMR under each
    rule. ideal: FNMR if exactly the false non-matches at the fixed threshold came first.
    """

    threshold: float
    shares: list[float]
    fixed: list[float]
    found_again: list[float]
    ideal: list[float]

    def area(self, rule: str) -> float:
        """Under one of the three curves, from the first share to the last."""
        values, shares = np.array(getattr(self, rule)), np.array(self.shares)
        return float(np.sum(np.diff(shares) * (values[1:] + values[:-1])) / 2)


def discard_curve(
    scores: np.ndarray, same: np.ndarray, quality: np.ndarray, fmr: float
) -> DiscardCurve:
    """The curve of P pairs at an FMR. scores, quality: higher = more alike, better."""
    scores, same = np.asarray(scores, np.float64), np.asarray(same, bool)
    place = np.empty(len(scores), np.int64)  # of a pair in the order of qualities
    place[np.argsort(quality, kind="stable")] = np.arange(len(scores))
    # Pairs of each kind from the highest score, so that each step takes one look at them.
    ranked = [own[np.argsort(-scores[own])] for own in map(np.flatnonzero, (~same, same))]
    (false, false_place), (true, true_place) = ((scores[own], place[own]) for own in ranked)
    barrier = _barrier(false, fmr)
    threshold = float(true[true > barrier].min(initial=np.inf))
    missed = int(np.sum(true < threshold))
    curve = DiscardCurve(threshold, [], [], [], [])
    for step in range(STEPS):
        dropped = step * len(scores) // STEPS
        rest, others = true[true_place >= dropped], false[false_place >= dropped]
        if not (len(rest) and len(others)):
            break
        curve.shares.append(step / STEPS)
        curve.fixed.append(float(np.mean(rest < threshold)))
        curve.found_again.append(float(np.mean(rest <= _barrier(others, fmr))))
        left = max(missed - dropped, 0)
        curve.ideal.append(left / (len(true) - missed + left) if left else 0.0)
    return curve


def _barrier(scores: np.ndarray, fmr: float) -> float:
    """The highest score of a mismatched pair that may not be accepted. scores: falling."""
    allowed = int(fmr * len(scores))
    allowed += (allowed + 1) / len(scores) <= fmr  # a rounding below
    return float(scores[allowed]) if allowed < len(scores) else -np.inf


def curves_at(scores: np.ndarray, same: np.ndarray, quality: np.ndarray) -> dict[str, Any]:
    """The curves of P pairs at FMRS, JSON-ready: {fmr: {"threshold", "shares", "fixed",
    "found_again", "ideal", "areas": {rule: area}}}. quality: P, of the pairs."""
    found = {}
    for fmr in FMRS:
        curve = discard_curve(scores, same, quality, fmr)
        values = dict(vars(curve), areas={rule: curve.area(rule) for rule in _RULES})
        if not np.isfinite(curve.threshold):
            values["threshold"] = None  # JSON has no infinity
        found[str(fmr)] = values
    return found


def discard_table(found: dict[str, Any]) -> str:
    """{"by", "results": {protocol or convention: curves of `curves_at`}}, for printing."""
    shares = [f"{100 * step // STEPS} %" for step in _SHOWN]
    rows = [["", "FMR", "threshold", *shares, "area"]]
    for protocol, curves in found["results"].items():
        for fmr, curve in curves.items():
            for rule in _RULES:
                values = curve[rule]
                shown = (f"{100 * values[s]:.2f} %" if s < len(values) else "" for s in _SHOWN)
                words = rule.replace("_", " ")
                area = f"{curve['areas'][rule]:.4f}"
                rows.append([protocol, f"{float(fmr):g}", words, *shown, area])
    words = {NORM: "feature norms", DETECTOR: "detector's scores"}
    by = words.get(found["by"], f"qualities of {found['by']}")
    heading = f"FNMR with these shares of the pairs dropped, the lowest {by} first:"
    return f"{heading}\n{format_table(rows, '<<<' + '>' * 5, indent=2)}"


def read_quality(path: str | Path, names: list[str] | np.ndarray) -> np.ndarray:
    """N qualities of the images with these names, from a file of lines `image score`.

    Names are those of the pairs, with or without the suffix of an image. A header line `image
    score` may be there, and other images. Raises DataError naming the file and the line, or the
    first missing image.
    """
    path, found = Path(path), {}
    with reading(path, "file of qualities"), open(path, "rb") as file:
        for number, line in numbered_lines(file, path):
            if is_comment(line):
                continue
            last = re.split(r"[\s,;]", line)[-1]
            name = line.removesuffix(last).rstrip(" \t,;")
            try:
                score = as_number(last) if name else np.nan
            except ValueError:
                if not found and name.lower() in IMAGE_WORDS:
                    continue  # a header, such as `image quality`
                score = np.nan
            if not np.isfinite(score):
                raise DataError(
                    f"{path}, line {number}: {line[:80]!r} is not an image's name and a finite "
                    f"number, such as `Ann/Ann_0001 0.73`."
                )
            if plain_name(name) in found:
                raise DataError(f"{path}, line {number}: {name} is there twice.")
            found[plain_name(name)] = score
    missing = [str(name) for name in names if plain_name(str(name)) not in found]
    if missing:
        raise DataError(
            f"{path} has no quality of {len(missing):,} of the {len(names):,} images: "
            f"{first_few(missing)}."
        )
    return np.array([found[plain_name(str(name))] for name in names])
