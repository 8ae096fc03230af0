"""Pictures: DET curves, error-versus-discard curves."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from Utils.Evaluation_Utils.plots import new_figure, save_with_legend
from Utils.Evaluation_Utils.roc import Roc


def plot_det(curves: Mapping[str, Roc], path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of DET curves, FNMR over FMR, both on logarithmic axes.

    curves: label -> curve. Both axes begin at the decade at or below one pair of the largest set:
    smaller rates were not measured, and at a rate of 0 a curve leaves the picture. Between its
    points a curve is a step: the FNMR that is reached at that FMR.
    """
    figure, axes = new_figure((6.2, 6.2), title)
    axes.set_xscale("log")
    axes.set_yscale("log")
    left = _decade(max(curve.negatives for curve in curves.values()))
    bottom = _decade(max(curve.positives for curve in curves.values()))
    for label, curve in curves.items():
        far, missed = curve.far, np.maximum(1 - curve.tar, bottom / 10)
        start = int(np.flatnonzero(far == 0)[-1])  # the lowest FNMR at no false match
        far = np.concatenate(([1 / curve.negatives], far[start + 1 :]))
        axes.step(far, np.concatenate((missed[[start]], missed[start + 1 :])), where="post")
        # Without an error at no false match, there is nothing of the curve to see.
        none = "" if curve.tar[start] < 1 else ", no error"
        axes.lines[-1].set_label(f"{label} ({curve.positives:,} + {curve.negatives:,} pairs{none})")
    axes.set_xlim(left, 1)
    axes.set_ylim(bottom, 1)
    axes.set_xlabel("FMR: share of mismatched pairs accepted")
    axes.set_ylabel("FNMR: share of matched pairs rejected")
    save_with_legend(figure, path)


def plot_discard(
    curves: Mapping[str, dict[str, Any]], path: str | os.PathLike[str], title: str
) -> None:
    """Write a picture of one protocol's curves, FNMR over the share of the pairs that is dropped.

    curves: of `discard_curves`, by FMR. Full lines: threshold found again; dashed: fixed; dotted:
    the ideal.
    """
    figure, axes = new_figure((7.0, 5.2), title)
    styles = {"found_again": "-", "fixed": "--", "ideal": ":"}
    for number, (fmr, curve) in enumerate(curves.items()):
        for rule, style in styles.items():
            label = f"FMR {float(fmr):g}, {rule.replace('_', ' ')}: area {curve['areas'][rule]:.4f}"
            shares = 100 * np.array(curve["shares"])
            values = 100 * np.array(curve[rule])
            axes.plot(shares, values, style, color=f"C{number}", label=label)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Pairs dropped, the lowest quality first (%)")
    axes.set_ylabel("FNMR: share of matched pairs rejected (%)")
    save_with_legend(figure, path)


def _decade(count: int) -> float:
    """The decade at or below 1/count; a tenth at most, so that the axis has an extent."""
    return min(0.1, 10.0 ** np.floor(np.log10(1 / count) + 1e-9))
