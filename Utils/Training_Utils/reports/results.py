"""The figures at the end of a run: results.json, and the table that Train.py prints."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from Utils.errors import DataError
from Utils.files import read_json, save_json
from Utils.run_folder import RunFolder
from Utils.tables import format_table
from Utils.Training_Utils.reports.metrics import read_test_names
from Utils.Training_Utils.state import Best

MEAN = "mean"  # over the test sets
_AVERAGED = " averaged"


def averaged_name(test_set: str) -> str:
    """The name of a test set's accuracy with averaged weights."""
    return test_set + _AVERAGED


def mean_accuracy(accuracies: dict[str, float]) -> float:
    """The mean over the test sets, by which the best checkpoint is chosen: of the averaged weights
    where there are any, otherwise of the weights themselves."""
    averaged = [value for name, value in accuracies.items() if name.endswith(_AVERAGED)]
    values = averaged or list(accuracies.values())
    return sum(values) / len(values)


@dataclass(frozen=True)
class TrainingResult:
    """run: the run's folder, None in para_adj_mode. elapsed: for people. loss: the mean since the
    last report. last: the accuracies at the end, by test set. best: the best accuracy of each, with
    its iteration. stopped: whether the run was asked to stop before its end. data: the training
    set's `fingerprint`."""

    run: Path | None
    iterations: int
    elapsed: str
    loss: float
    last: dict[str, float]
    best: dict[str, Best]
    stopped: bool = False
    data: dict[str, Any] = field(default_factory=dict)


def write_results(result: TrainingResult, path: Path) -> None:
    """Write the figures as JSON. Raises RunError where that can't be done."""
    values = {
        "iterations": result.iterations,
        "data": result.data,
        "loss": result.loss,
        "last": result.last,
        "best": {name: vars(best) for name, best in result.best.items()},
    }
    save_json(path, values)


def read_results(run: RunFolder) -> dict[str, Any]:
    """The values that `write_results` wrote.

    Raises DataError where there are none, or where they lack the accuracies of the run's test sets
    because these could not be evaluated.
    """
    values = read_json(run.results, "results file")
    try:
        float(values["loss"])
        [float(accuracy) for accuracy in values["last"].values()]
        [float(best["accuracy"]) for best in values["best"].values()]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{run.results} does not hold a run's results: {error}.") from None
    if not values["last"] and read_test_names(run.metrics):
        raise DataError(f"the test sets were not evaluated at the end; {run.log} says why.")
    return values


def training_table(result: TrainingResult) -> str:
    """Lines for printing: the accuracies at the end and the best ones, in percent, and what to do
    next."""
    if result.stopped:
        return f"\nStopped after {result.iterations} iterations, {result.elapsed}"
    lines = ["", f"Trained {result.iterations} iterations in {result.elapsed}"]
    if result.last:
        rows = [["test set", "at the end", "best", "at iteration"]]
        for name, accuracy in result.last.items():
            best = result.best[name]
            figures = (f"{100 * value:.2f} %" for value in (accuracy, best.accuracy))
            rows.append([name, *figures, str(best.iteration)])
        lines += ["", format_table(rows, "<>>>")]
    if result.run:
        run = RunFolder(result.run)
        weights = run.best if result.last else run.last
        lines += ["", f"Log, curves and checkpoints: {result.run}"]
        lines += [f"Evaluate it: python LFW_Evaluation.py --checkpoint {weights}"]
    return "\n".join(lines)
