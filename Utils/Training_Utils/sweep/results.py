"""The results of a sweep: the figures of each run, and their mean and spread over the seeds.

The spread is the sample standard deviation, with n - 1: it estimates that of all seeds from the n
seeds that were trained.
"""

import csv
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from Config.sweep import Sweep, Variation
from Utils.files import atomic_path, save_json
from Utils.run_folder import RunFolder
from Utils.tables import format_table
from Utils.Training_Utils.reports.metrics import read_rows
from Utils.Training_Utils.reports.results import MEAN, mean_accuracy, read_results

SEED = "seed"
STD = "sample standard deviation (n - 1) over the seeds"
WAITING, DONE, FAILED = "waiting", "done", "failed"
_COLOURS, _DASHES = 10, ("-", "--", ":", "-.")


@dataclass
class SweepRun:
    """One run. state: waiting, done or failed. folder: "" before it has one. reason: why it failed.
    loss: mean since the last line of its log. last, best: accuracies 0..1 by test set, and their
    mean."""

    variation: Variation
    state: str = WAITING
    folder: str = ""
    reason: str = ""
    loss: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def finish(self, folder: Path) -> None:
        """Take the figures of a run that was trained to its end. Raises DataError as
        `read_results` does."""
        results = read_results(RunFolder(folder))
        self.loss, self.last = results["loss"], dict(results["last"])
        self.best = {name: best["accuracy"] for name, best in results["best"].items()}
        if self.last:
            self.last[MEAN] = mean_accuracy(self.last)
        self.state, self.folder, self.reason = DONE, str(folder), ""

    def figure(self, name: str) -> float | None:
        """`loss`, or the accuracy of a test set as in `last LFW` or `best LFW`."""
        kind, _, test = name.partition(" ")
        return getattr(self, kind).get(test) if test else self.loss


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    variation: Variation
    runs: list[SweepRun]

    @property
    def done(self) -> list[SweepRun]:
        return [run for run in self.runs if run.state == DONE]

    def spread(self, figure: str) -> tuple[float | None, float | None]:
        """(mean, standard deviation) over the runs that are done and have the figure; None for
        what too few of them have."""
        values = [run.figure(figure) for run in self.done]
        values = [value for value in values if value is not None]
        mean = statistics.fmean(values) if values else None
        return mean, statistics.stdev(values) if len(values) > 1 else None


def groups_of(runs: list[SweepRun]) -> list[Group]:
    """The runs, grouped where they differ in their seed alone; in their order."""
    groups: dict[str, Group] = {}
    for run in runs:
        rest = {name: value for name, value in run.variation.items() if name != SEED}
        groups.setdefault(describe(rest), Group(rest, [])).runs.append(run)
    return list(groups.values())


def describe(variation: Variation) -> str:
    """A variation in words, as in `margin ArcFace, scale_size 32`."""
    return ", ".join(f"{name} {_typed(value)}" for name, value in variation.items())


def sweep_table(runs: list[SweepRun]) -> str:
    """Lines with the figures of each group, and why runs failed, for printing."""
    groups, tests = groups_of(runs), _test_names(runs)
    settings = list(groups[0].variation)
    rows = [[*settings, "runs", "loss", *tests]]
    for group in groups:
        count, done = len(group.runs), len(group.done)
        rows.append(
            [
                *map(_typed, group.variation.values()),
                str(count) if done == count else f"{done} of {count}",
                _shown(*group.spread("loss"), ".4f"),
                *(_shown(*group.spread(f"last {name}"), ".2%") for name in tests),
            ]
        )
    notes = "Accuracies in percent, at the end of training."
    if any(len(group.runs) > 1 for group in groups):
        notes += f" ±: {STD}."
    failures = [
        f"failed: {describe(run.variation)}: {run.reason}" for run in runs if run.state == FAILED
    ]
    align = "<" * len(settings) + ">" * (len(rows[0]) - len(settings))
    return "\n".join([format_table(rows, align), "", notes, *failures])


def write_files(sweep: Sweep, runs: list[SweepRun], folder: Path) -> None:
    """Write sweep.json, sweep.csv (a line for each group) and, if a run is done, curves.png."""
    groups, tests = groups_of(runs), _test_names(runs)
    figures = [_figures(group, tests) for group in groups]
    record = {
        "axes": sweep.axes,
        "std": STD,
        "groups": [
            {"settings": g.variation, **row} for g, row in zip(groups, figures, strict=True)
        ],
        "runs": [asdict(run) for run in runs],
    }
    save_json(folder / "sweep.json", record)
    with atomic_path(folder / "sweep.csv") as path, open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*groups[0].variation, *figures[0]])
        for group, row in zip(groups, figures, strict=True):
            writer.writerow([*map(_typed, group.variation.values()), *row.values()])
    if any(run.state == DONE for run in runs):
        _draw(runs, folder / "curves.png")


def _test_names(runs: list[SweepRun]) -> list[str]:
    """The test sets of all runs, the mean over them last."""
    names = dict.fromkeys(name for run in runs for name in run.last)
    return [name for name in names if name != MEAN] + ([MEAN] if len(names) > 2 else [])


def _figures(group: Group, tests: list[str]) -> dict[str, Any]:
    """The columns of a group in the files; None where there is no value."""
    values: dict[str, Any] = {"runs": len(group.runs), "done": len(group.done)}
    for name in ("loss", *(f"{kind} {test}" for kind in ("last", "best") for test in tests)):
        values[f"{name} mean"], values[f"{name} std"] = group.spread(name)
    return values


def _typed(value: Any) -> str:
    """A setting's value as a user types it."""
    if isinstance(value, tuple):
        return ",".join(map(_typed, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shown(mean: float | None, std: float | None, digits: str) -> str:
    known = [f"{value:{digits}}".removesuffix("%") for value in (mean, std) if value is not None]
    return " ± ".join(known) or "-"


def _draw(runs: list[SweepRun], path: Path) -> None:
    """Draw training loss and each test set's accuracy over the iterations, as PNG.

    Lines are means over the seeds; bands, one standard deviation (n - 1) to each side.
    """
    groups = [group for group in groups_of(runs) if group.done]
    tests = [name for name in _test_names(runs) if name != MEAN]
    panels = {"training loss": "loss", **{f"{name} accuracy": name for name in tests}}
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(12, 3.8 * rows + 0.3 * len(groups)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    metrics = [[_rows(run) for run in group.done] for group in groups]
    for panel, (heading, column) in zip(axes, panels.items(), strict=False):
        panel.set_title(heading, fontsize=10)
        panel.set_xlabel("iteration")
        panel.grid(alpha=0.3)
        for index, (group, tables) in enumerate(zip(groups, metrics, strict=True)):
            name = describe(group.variation) or "all seeds"
            label = f"{name} ({len(group.done)} runs)" if len(group.done) > 1 else name
            style = {"color": f"C{index % _COLOURS}", "label": label}
            style["linestyle"] = _DASHES[index // _COLOURS % len(_DASHES)]
            _draw_group(panel, column, tables, style)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _rows(run: SweepRun) -> list[dict[str, float]]:
    path = RunFolder(Path(run.folder)).metrics
    return read_rows(path) if path.exists() else []


def _draw_group(panel: Axes, column: str, tables: list[list], style: dict[str, str]) -> None:
    """Draw the curve of a group, at the iterations that all its runs have.

    tables: the rows of each run's metrics.csv.
    """
    curves = [{row["iteration"]: row[column] for row in rows if column in row} for rows in tables]
    curves = [curve for curve in curves if curve]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    if not shared:
        return
    values = np.array([[curve[iteration] for iteration in shared] for curve in curves])
    mean, std = values.mean(0), values.std(0, ddof=1) if len(curves) > 1 else None
    if len(shared) == 1:  # a line of one point can't be seen
        panel.errorbar(shared, mean, std, marker="o", capsize=4, **style)
        return
    panel.plot(shared, mean, **style)
    if std is not None:
        panel.fill_between(shared, mean - std, mean + std, color=style["color"], alpha=0.15, lw=0)
