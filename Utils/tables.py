"""Tables in plain text: one function for everything that is printed in columns."""

from collections.abc import Sequence

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
