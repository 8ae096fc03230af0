"""The picture of a sweep: a line for each combination of settings, a band where seeds vary."""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from Utils.files import atomic_path
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports.metrics import read_rows
from Utils.Training_Utils.reports.results import MEAN
from Utils.Training_Utils.sweep.results import Group, SweepRun, describe, groups_of
from Utils.Training_Utils.sweep.results import test_names as names_of_tests

_COLOURS, _DASHES = 10, ("-", "--", ":", "-.")
_COLUMNS = 2


def draw_sweep(runs: list[SweepRun], path: Path) -> None:
    """Draw training loss and each test set's accuracy over the iterations, as PNG.

    Lines are means over the seeds; bands, one standard deviation (n - 1) to each side.
    """
    groups = [group for group in groups_of(runs) if group.done]
    tests = [name for name in names_of_tests(runs) if name != MEAN]
    panels = {"training loss": "loss", **{f"{name} accuracy": name for name in tests}}
    rows = math.ceil(len(panels) / _COLUMNS)
    figure = Figure(figsize=(12, 3.8 * rows + 0.3 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flat
    series = {id(run): _series(run) for group in groups for run in group.done}
    for panel, (heading, column) in zip(axes, panels.items(), strict=False):
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.3)
        for number, group in enumerate(groups):
            _draw_group(panel, number, group, [series[id(run)].get(column) for run in group.done])
    for panel in list(axes)[len(panels) :]:
        panel.set_axis_off()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_group(panel: Axes, number: int, group: Group, runs: list) -> None:
    iterations, mean, std = _mean_curve([run for run in runs if run])
    if not len(iterations):
        return
    name = describe(group.variation) or "all seeds"
    label = f"{name} ({len(group.done)} runs)" if len(group.done) > 1 else name
    colour, dashes = f"C{number % _COLOURS}", _DASHES[number // _COLOURS % len(_DASHES)]
    marker = "o" if len(iterations) < 2 else None  # a line of one point can't be seen
    panel.plot(iterations, mean, color=colour, linestyle=dashes, marker=marker, label=label)
    if marker and len(group.done) > 1:
        panel.errorbar(iterations, mean, std, color=colour, capsize=4)
    elif len(group.done) > 1:
        panel.fill_between(iterations, mean - std, mean + std, color=colour, alpha=0.15, lw=0)


def _series(run: SweepRun) -> dict[str, dict[int, float]]:
    """column -> iteration -> value, of a run's metrics.csv; nothing where it is gone."""
    columns: dict[str, dict[int, float]] = {}
    try:
        rows = read_rows(RunFolder(Path(run.folder)).metrics)
    except OSError:
        return columns
    for row in rows:
        for name, value in row.items():
            columns.setdefault(name, {})[row["iteration"]] = value
    return columns


def _mean_curve(runs: list[dict[int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(iterations that all runs have, mean, standard deviation); the last 0 for one run."""
    shared = sorted(set.intersection(*map(set, runs))) if runs else []
    values = np.array([[run[at] for at in shared] for run in runs]).reshape(len(runs), len(shared))
    std = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(shared))
    return np.array(shared), values.mean(0) if runs else np.empty(0), std
