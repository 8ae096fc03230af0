"""Pictures of a MegaFace evaluation: CMC, ROC, and rank-1 over the number of distractors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from Utils.Evaluation_Utils.plots import new_figure, save_figure

XY = tuple[np.ndarray, np.ndarray]


def plot_cmc(curves: Mapping[str, XY], path: str | os.PathLike[str], title: str) -> None:
    """Write CMC curves: label -> (ranks from 1, rates 0..1), ranks on a logarithmic axis."""
    figure, axes = new_figure((7.0, 5.2), title)
    for label, (ranks, rates) in curves.items():
        axes.step(ranks, rates, where="post", label=f"{label} (rank-1 {100 * rates[0]:.2f} %)")
    axes.set_xscale("log")
    axes.set_xlim(1, max(max(ranks.max() for ranks, _ in curves.values()), 2))
    _set_rates(axes, min(rates[0] for _, rates in curves.values()))
    axes.set_xlabel("Rank")
    axes.set_ylabel("Share of searches with the mate at that rank or before")
    _finish(figure, path)


@dataclass(frozen=True, eq=False)
class RocLine:
    """fpr, tpr: K points by rising FPR, 0..1. exact_up_to: the FPR from which on the points are
    counts in a histogram, see `figures.Curve`."""

    fpr: np.ndarray
    tpr: np.ndarray
    exact_up_to: float


def plot_megaface_roc(
    curves: Mapping[str, RocLine], path: str | os.PathLike[str], title: str
) -> None:
    """Write ROC curves by label, FPR on a logarithmic axis. As far as its points are exact a curve
    is a line of steps, the TPR that can be had at that FPR; beyond, it is dotted."""
    figure, axes = new_figure((7.0, 5.2), title)
    smallest = min(line.fpr[line.fpr > 0].min(initial=1) for line in curves.values())
    start = min(0.1, 10.0 ** np.floor(np.log10(smallest) + 1e-9))
    lowest, dotted = [], False
    for label, line in curves.items():
        lowest.append(line.tpr[line.fpr == 0].max(initial=0))
        fpr, tpr = line.fpr[line.fpr > 0], line.tpr[line.fpr > 0]
        exact = int(np.searchsorted(fpr, line.exact_up_to, side="right"))
        steps = np.append(start, fpr[:exact]), np.append(lowest[-1], tpr[:exact])
        (drawn,) = axes.step(*steps, where="post", label=label)
        if exact < len(fpr):
            rest = np.append(steps[0][-1], fpr[exact:]), np.append(steps[1][-1], tpr[exact:])
            axes.plot(*rest, linestyle=":", color=drawn.get_color())
            dotted = True
    axes.set_xscale("log")
    axes.set_xlim(start, 1)
    _set_rates(axes, min(lowest))
    axes.set_xlabel(
        "FPR: share of negatives accepted" + (" (dotted: from a histogram)" if dotted else "")
    )
    axes.set_ylabel("TPR: share of same-person pairs accepted")
    _finish(figure, path)


def plot_sizes(curves: Mapping[str, XY], path: str | os.PathLike[str], title: str) -> None:
    """Write rank-1 over set sizes: label -> (numbers of distractors, rates)."""
    figure, axes = new_figure((7.0, 5.2), title)
    for label, (sizes, rates) in curves.items():
        axes.plot(sizes, rates, marker="o", label=label)
    axes.set_xscale("log")
    _set_rates(axes, min(rates.min() for _, rates in curves.values()))
    axes.set_xlabel("Distractors")
    axes.set_ylabel("Rank-1 identification")
    _finish(figure, path)


def _set_rates(axes: Axes, lowest: float) -> None:
    bottom = min(np.floor(lowest * 10) / 10, 0.9)
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))


def _finish(figure: Figure, path: str | os.PathLike[str]) -> None:
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)
