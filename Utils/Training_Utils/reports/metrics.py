"""The figures of a run over its iterations: kept in memory and in metrics.csv."""

import csv
import io
from pathlib import Path

from Utils.files import atomic_path

# One row has either the training figures or, in the columns after them, those of the test sets.
TRAINING_COLUMNS = ("iteration", "epoch", "loss", "accuracy", "learning_rate", "images_per_second")

Row = dict[str, float]


class Metrics:
    """Rows of figures, each written to the file at once.

    path: the CSV file; None keeps the rows in memory alone. test_names: columns of the test sets.
    """

    def __init__(self, path: Path | None, test_names: list[str]) -> None:
        self.path = path
        self.columns = [*TRAINING_COLUMNS, *test_names]
        self.rows: list[Row] = []

    def start(self, iteration: int = 0) -> None:
        """Begin the file; with rows of earlier work on the same run, up to an iteration, kept.

        A run that was killed may have written rows after its last checkpoint: it will go through
        those iterations again.
        """
        if self.path is None:
            return
        if iteration and self.path.exists():
            self.rows = [row for row in read_rows(self.path) if row["iteration"] <= iteration]
        with atomic_path(self.path) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(self.rows)

    def add(self, row: Row) -> None:
        """Add a row, to the file too."""
        self.rows.append(row)
        if self.path is not None:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of a column, where it has one."""
        points = [(row["iteration"], row[column]) for row in self.rows if column in row]
        return [x for x, _ in points], [y for _, y in points]


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.csv, without a last line that a kill cut short: its number is wrong."""
    with open(path, newline="") as file:
        text = file.read()
    whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = [_numbers(row) for row in csv.DictReader(whole)]
    return [row for row in rows if "iteration" in row]


def test_columns(path: Path) -> list[str]:
    """The test sets that a metrics.csv has columns for; none where there is no such file."""
    try:
        with open(path, newline="") as file:
            return next(csv.reader(file), [])[len(TRAINING_COLUMNS) :]
    except FileNotFoundError:
        return []


def _numbers(row: dict[str, str]) -> Row:
    """The cells that hold a number; the empty ones are of the columns that a row does not have."""
    numbers = {}
    for name, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue
        numbers[name] = int(value) if name in ("iteration", "epoch") else value
    return numbers
