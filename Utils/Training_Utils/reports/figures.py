"""The figures of a run: metrics.csv while it trains, results.json and a table at its end."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from Utils.errors import DataError, RunError
from Utils.files import atomic_path, not_by_link, not_written, read_json, reading, save_json
from Utils.run_folder import RunFolder
from Utils.tables import format_table
from Utils.Training_Utils.state import Best

MEAN = "mean"  # over the test sets
_AVERAGED = " averaged"

# A row has either the training figures or, in the columns after them, those of the test sets.
TRAINING_COLUMNS = ("iteration", "epoch", "loss", "accuracy", "learning_rate", "images_per_second")
DISTILLATION = "distillation_loss"  # the next column, of a run with a teacher

Row = dict[str, float]


class Metrics:
    """Rows of figures, each written to the file at once.

    path: the CSV file; None keeps the rows in memory only. test_names: the test sets' columns.
    has_teacher: whether there is a column of the distillation loss.
    """

    def __init__(self, path: Path | None, test_names: list[str], has_teacher: bool = False) -> None:
        self.path = path
        self.test_names = test_names
        self.losses = ["loss", *([DISTILLATION] if has_teacher else [])]
        self.columns = [*TRAINING_COLUMNS, *self.losses[1:], *test_names]
        self.rows: list[Row] = []
        self._unwritten: list[Row] = []

    def start(self, iteration: int = 0, repeated: int | None = None) -> None:
        """Begin the file. Rows of a run that is resumed at an iteration are kept up to it.

        A run that was killed may have written rows after its last checkpoint: it will train those
        iterations again. repeated: an iteration whose test will be made again, so that its row is
        not kept. Raises DataError or RunError if the file can't be read or written.
        """
        if self.path is None:
            return
        if iteration and self.path.exists():
            self.rows = [
                row
                for row in read_rows(self.path)
                if row["iteration"] <= iteration and ("loss" in row or row["iteration"] != repeated)
            ]
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: Row) -> None:
        """Add a row, to the file too. Raises RunError if that can't be written; the next call
        tries again."""
        self.rows.append(row)
        self._unwritten.append(row)
        self.write()

    def write(self) -> None:
        """Write the rows that could not be written before. Raises RunError if they still can't."""
        if self.path is None or not self._unwritten:
            return
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.columns).writerows(self._unwritten)
        left = text.getvalue().encode()
        try:
            with open(self.path, "ab", buffering=0, opener=not_by_link) as file:
                end = file.tell()
                try:
                    while left := left[file.write(left) :]:  # a disk that gets full takes some
                        pass
                except OSError:
                    file.truncate(end)
                    raise
        except OSError as error:
            raise RunError(not_written(self.path, error)) from None
        self._unwritten.clear()

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of the rows that have a value in this column."""
        return series(self.rows, column)


def series(rows: list[Row], column: str) -> tuple[list[float], list[float]]:
    """(iterations, values) of the rows that have a value in this column."""
    found = [row for row in rows if column in row]
    return [row["iteration"] for row in found], [row[column] for row in found]


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.csv. A last line without an end is left out: a run that was killed
    while it wrote the line may have cut its number short. Raises DataError if it can't be read.
    """
    text = _read(path)
    lines = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    try:
        rows = [_parsed(row) for row in csv.DictReader(lines)]
    except csv.Error as error:
        raise DataError(f"{path} is no file of figures: {error}.") from None
    return [row for row in rows if "iteration" in row]


def read_test_names(path: Path) -> list[str]:
    """The test sets that a metrics.csv has columns for; none if there is no such file."""
    if not path.exists():
        return []
    columns = next(csv.reader(io.StringIO(_read(path), newline="")), [])
    return [name for name in columns if name not in (*TRAINING_COLUMNS, DISTILLATION)]


def _read(path: Path) -> str:
    with reading(path, "file of figures"):
        return path.read_bytes().decode(errors="replace")  # keeps the ends of lines as they are


def _parsed(row: dict[str, str]) -> Row:
    """The cells that hold a number; cells of columns that a row does not have are empty."""
    values = {}
    for name, text in row.items():
        try:
            value = float(text)
            values[name] = int(value) if name in ("iteration", "epoch") else value
        except (TypeError, ValueError, OverflowError):
            continue
    return values


def averaged_name(test_set: str) -> str:
    """The name of a test set's accuracy with averaged weights."""
    return test_set + _AVERAGED


def mean_accuracy(accuracies: dict[str, float]) -> float:
    """The mean over the test sets, by which the best checkpoint is chosen: of the averaged weights
    if there are any, otherwise of the weights themselves."""
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
    """Write the figures as JSON. Raises RunError if that can't be done."""
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

    Raises DataError if there are none, or where they lack the accuracies of the run's test sets
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


def has_results(run: RunFolder) -> bool:
    """Whether a run was trained and evaluated to its end, and not resumed since."""
    try:
        return bool(read_results(run))
    except DataError:
        return False


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
