"""What a run comes to: its figures, the file and the table they go to."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from Utils.errors import DataError
from Utils.files import save_json
from Utils.run_folder import RunFolder
from Utils.Training_Utils.reports.metrics import test_columns
from Utils.Training_Utils.state import Best

MEAN = "mean"
_AVERAGED = " averaged"


def averaged_name(test_set: str) -> str:
    """What the accuracy of the averaged weights on a test set is called."""
    return test_set + _AVERAGED


def mean_accuracy(accuracies: dict[str, float]) -> float:
    """The mean over the test sets: of the averaged weights, where there are any, since it is those
    that a checkpoint is judged by."""
    averaged = [value for name, value in accuracies.items() if name.endswith(_AVERAGED)]
    values = averaged or list(accuracies.values())
    return sum(values) / len(values)


@dataclass(frozen=True)
class TrainingResult:
    """run: the run's folder, None in para_adj_mode. last: accuracies at the end, by test set.
    best: the best of each with its iteration. loss: mean since the last report. stopped: before
    the end, because it was asked to. data: the training set's `fingerprint`."""

    run: Path | None
    iterations: int
    elapsed: str
    loss: float
    last: dict[str, float]
    best: dict[str, Best]
    stopped: bool = False
    data: dict[str, Any] = field(default_factory=dict)


def write_results(result: TrainingResult, path: Path) -> None:
    """Write the figures as JSON."""
    values = {
        "iterations": result.iterations,
        "data": result.data,
        "loss": result.loss,
        "last": result.last,
        "best": {name: vars(best) for name, best in result.best.items()},
    }
    save_json(path, values)


def read_results(run: RunFolder) -> dict[str, Any]:
    """The values that `write_results` wrote. Raises DataError where they are not there, or lack
    the accuracies of the run's test sets, because these could not be judged."""
    path = run.results
    try:
        values = json.loads(path.read_text())
        float(values["loss"])
        [float(accuracy) for accuracy in values["last"].values()]
        [float(best["accuracy"]) for best in values["best"].values()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path} does not hold a run's results: {error}.") from None
    if not values["last"] and test_columns(run.metrics):
        raise DataError(f"the test sets were not judged at the end; {run.log} says why.")
    return values


def training_table(result: TrainingResult) -> str:
    """Lines with the accuracies at the end and the best ones, in percent, for printing."""
    if result.stopped:
        return f"\nStopped after {result.iterations} iterations, {result.elapsed}"
    lines = ["", f"Trained {result.iterations} iterations in {result.elapsed}"]
    width = max((len(name) + 2 for name in result.last), default=0)
    width = max(width, len("test set") + 2)
    if result.last:
        lines += ["", f"{'test set':<{width}}{'at the end':>12}{'best':>9}   at iteration"]
    for name, accuracy in result.last.items():
        best = result.best[name]
        lines.append(
            f"{name:<{width}}{100 * accuracy:>10.2f} %{100 * best.accuracy:>7.2f} %"
            f"{best.iteration:>10}"
        )
    if result.run:
        run = RunFolder(result.run)
        weights = run.best if result.last else run.last
        lines += ["", f"Log, curves and checkpoints: {result.run}"]
        lines += [f"Judge it: python LFW_Evaluation.py --checkpoint {weights}"]
    return "\n".join(lines)
