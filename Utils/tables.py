"""Tables in plain text, and the warnings above them; tables on disk."""

import csv
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from Utils.files import atomic_path

GAP = "  "  # between two columns


def format_table(rows: Sequence[Sequence[str]], align: str, indent: int = 0) -> str:
    """Lines of cells in columns, each column as wide as its widest cell.

    rows: of cells, the header among them if there is one; a row may be shorter than others.
    align: a character for each column, "<" left or ">" right. indent: spaces before each line.
    Lines have no spaces at their end.
    """
    widths = [
        max((len(row[column]) for row in rows if column < len(row)), default=0)
        for column in range(len(align))
    ]
    lines = []
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=False)
        ]
        lines.append((" " * indent + GAP.join(cells)).rstrip())
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """A share of 0..1; `-` for None."""
    return "-" if share is None else f"{100 * share:.2f} %"


def format_warnings(warnings: Iterable[str]) -> str:
    """Warnings to print above a table, a paragraph each with an empty line after it."""
    fill = partial(textwrap.fill, width=100, break_long_words=False, break_on_hyphens=False)
    return "".join(fill(f"warning: {text}.") + "\n\n" for text in warnings)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table under a header line; names that are not UTF-8 keep their bytes."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
