"""What the runs of a sweep come to: the figures of each, and mean and spread over the seeds.

The spread is the sample standard deviation, with n - 1: that of the runs there might have been,
estimated from the n that there are.
"""

import csv
import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from Config.sweep import Sweep, Variation
from Utils.errors import DataError
from Utils.files import atomic_path, save_json
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports.results import MEAN, mean_accuracy, read_results

SEED = "seed"
STD = "sample standard deviation (n - 1) over the seeds"
WAITING, DONE, FAILED = "waiting", "done", "failed"


@dataclass
class SweepRun:
    """One run. state: waiting, done or failed. folder: "" before it has one. reason: why it failed.
    loss: mean since its last report. last, best: accuracies 0..1 by test set, and their mean."""

    variation: Variation
    state: str = WAITING
    folder: str = ""
    reason: str = ""
    loss: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)

    def finish(self, folder: Path) -> None:
        """Take in the figures of a run that came to its end. Raises DataError as
        `read_results` does."""
        results = read_results(RunFolder(folder))
        self.loss, self.last = results["loss"], dict(results["last"])
        self.best = {name: best["accuracy"] for name, best in results["best"].items()}
        if self.last:
            self.last[MEAN] = mean_accuracy(self.last)
        self.state, self.folder, self.reason = DONE, str(folder), ""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    variation: Variation
    runs: list[SweepRun]

    @property
    def done(self) -> list[SweepRun]:
        return [run for run in self.runs if run.state == DONE]

    def spread(self, figure: str, name: str = "") -> tuple[float, float] | None:
        """(mean, standard deviation) of `loss`, or of `last` or `best` of a test set, over the runs
        that are done; the second is nan for one run. None where no run has it."""
        values = [getattr(run, figure) for run in self.done]
        values = [value.get(name) if isinstance(value, dict) else value for value in values]
        values = [value for value in values if value is not None]
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if values[1:] else float("nan")


def groups_of(runs: list[SweepRun]) -> list[Group]:
    """The runs, put together where they differ in their seed alone; in their order."""
    groups: dict[str, Group] = {}
    for run in runs:
        rest = {name: value for name, value in run.variation.items() if name != SEED}
        groups.setdefault(describe(rest), Group(rest, [])).runs.append(run)
    return list(groups.values())


def describe(variation: Variation) -> str:
    """A variation for people, as in `margin ArcFace, scale_size 32`."""
    return ", ".join(f"{name} {show(value)}" for name, value in variation.items())


def show(value: Any) -> str:
    """A setting's value as it would be typed."""
    if isinstance(value, tuple):
        return ",".join(map(show, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def sweep_table(runs: list[SweepRun]) -> str:
    """Lines with the figures of each group, and why runs failed, for printing."""
    groups = groups_of(runs)
    tests = test_names(runs)
    rows = [[*groups[0].variation, "runs", "loss", *tests]]
    rows += [_row(group, tests) for group in groups]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(groups[0].variation)
    lines = [
        "  ".join(
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    notes = ["", "Accuracies in percent, at the end of training."]
    if any(len(group.runs) > 1 for group in groups):
        notes[-1] += f" ±: {STD}."
    failures = [
        f"failed: {describe(run.variation)}: {run.reason}" for run in runs if run.state == FAILED
    ]
    return "\n".join([*lines, *notes, *failures])


def test_names(runs: list[SweepRun]) -> list[str]:
    """The test sets of all runs, the mean over them last."""
    names = dict.fromkeys(name for run in runs for name in run.last)
    return [name for name in names if name != MEAN] + ([MEAN] if len(names) > 2 else [])


def write_json(sweep: Sweep, runs: list[SweepRun], path: Path) -> None:
    """Write the runs and the groups; `read_json` gives the runs back."""
    tests = test_names(runs)
    values = {
        "axes": sweep.axes,
        "std": STD,
        "groups": [_figures(group, tests) for group in groups_of(runs)],
        "runs": [asdict(run) for run in runs],
    }
    save_json(path, values)


def read_json(path: Path) -> list[SweepRun]:
    """The runs that `write_json` wrote; none where there is no such file."""
    try:
        runs = [SweepRun(**run) for run in json.loads(path.read_text())["runs"]]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no record of a sweep ({error}); delete it.") from None
    for run in runs:  # JSON has lists alone
        run.variation = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in run.variation.items()
        }
    return runs


def write_csv(runs: list[SweepRun], path: Path) -> None:
    """Write a line for each group: settings, runs, mean and std of each figure."""
    tests = test_names(runs)
    rows = [_figures(group, tests) for group in groups_of(runs)]
    flat = [
        {**{k: show(v) for k, v in row.pop("settings").items()}, **row} for row in map(dict, rows)
    ]
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)


def _row(group: Group, tests: list[str]) -> list[str]:
    count = len(group.runs)
    runs = str(count) if len(group.done) == count else f"{len(group.done)} of {count}"
    loss = _shown(group.spread("loss"), 1, ".4f")
    accuracies = [_shown(group.spread("last", name), 100, ".2f") for name in tests]
    return [*map(show, group.variation.values()), runs, loss, *accuracies]


def _shown(spread: tuple[float, float] | None, factor: float, digits: str) -> str:
    if spread is None:
        return "-"
    mean, std = (factor * value for value in spread)
    return f"{mean:{digits}}" if std != std else f"{mean:{digits}} ± {std:{digits}}"


def _figures(group: Group, tests: list[str]) -> dict[str, Any]:
    """Plain values; None for what there is not."""
    values: dict[str, Any] = {
        "settings": group.variation,
        "runs": len(group.runs),
        "done": len(group.done),
    }
    for figure, name in (
        ("loss", ""),
        *(("last", name) for name in tests),
        *(("best", name) for name in tests),
    ):
        mean, std = group.spread(figure, name) or (None, None)
        label = f"{figure} {name}".strip()
        values[f"{label} mean"] = mean
        values[f"{label} std"] = None if std != std else std
    return values
