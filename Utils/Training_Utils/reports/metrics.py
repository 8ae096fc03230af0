"""The figures of a run over its iterations: kept in memory and in metrics.csv."""

import csv
import io
from pathlib import Path

from Utils.errors import RunError
from Utils.files import atomic_path, not_written, reading

# A row has either the training figures or, in the columns after them, those of the test sets.
TRAINING_COLUMNS = ("iteration", "epoch", "loss", "accuracy", "learning_rate", "images_per_second")

Row = dict[str, float]


class Metrics:
    """Rows of figures, each written to the file at once.

    path: the CSV file; None keeps the rows in memory only. test_names: the test sets' columns.
    """

    def __init__(self, path: Path | None, test_names: list[str]) -> None:
        self.path = path
        self.test_names = test_names
        self.columns = [*TRAINING_COLUMNS, *test_names]
        self.rows: list[Row] = []

    def start(self, iteration: int = 0) -> None:
        """Begin the file. Rows of a run that is resumed at an iteration are kept up to it.

        A run that was killed may have written rows after its last checkpoint: it will train those
        iterations again. Raises DataError or RunError where the file can't be read or written.
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
        """Add a row, to the file too. Raises RunError where that can't be written."""
        self.rows.append(row)
        if self.path is None:
            return
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
        except OSError as error:
            raise RunError(not_written(self.path, error)) from None

    def series(self, column: str) -> tuple[list[float], list[float]]:
        """(iterations, values) of the rows that have a value in this column."""
        return series(self.rows, column)


def series(rows: list[Row], column: str) -> tuple[list[float], list[float]]:
    """(iterations, values) of the rows that have a value in this column."""
    found = [row for row in rows if column in row]
    return [row["iteration"] for row in found], [row[column] for row in found]


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics.csv. A last line without an end is left out: a run that was killed
    while it wrote the line may have cut its number short. Raises DataError where it can't be read.
    """
    text = _read(path)
    lines = io.StringIO(text[: text.rfind("\n") + 1], newline="")
    rows = [_parsed(row) for row in csv.DictReader(lines)]
    return [row for row in rows if "iteration" in row]


def read_test_names(path: Path) -> list[str]:
    """The test sets that a metrics.csv has columns for; none where there is no such file."""
    if not path.exists():
        return []
    return next(csv.reader(io.StringIO(_read(path), newline="")), [])[len(TRAINING_COLUMNS) :]


def _read(path: Path) -> str:
    with reading(path, "file of figures"):
        return path.read_bytes().decode(errors="replace")  # keeps the ends of lines as they are


def _parsed(row: dict[str, str]) -> Row:
    """The cells that hold a number; cells of columns that a row does not have are empty."""
    values = {}
    for name, text in row.items():
        try:
            value = float(text)
        except (TypeError, ValueError):
            continue
        values[name] = int(value) if name in ("iteration", "epoch") else value
    return values
