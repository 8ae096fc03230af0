"""The report of `check_dataset` for printing, and its picture."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from Utils.files import atomic_path
from Utils.tables import format_table

SHOWN = 5
_EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, np.inf)  # of the table of images per identity


def describe(report: dict, per_identity: np.ndarray) -> str:
    """The report for printing, with a table of how many identities have how many images."""
    lines = []
    facts = format_table([(name, _cell(value)) for name, value in report.items()], "<<")
    for line, value in zip(facts.split("\n"), report.values(), strict=True):
        lines.append(line)
        if isinstance(value, list):
            lines += [f"    {text}" for text in value[:SHOWN]]
            lines += ["    ..."] if len(value) > SHOWN else []
    rows = [("images", "identities")]
    for low, high in pairwise(_EDGES):
        count = int(((per_identity >= low) & (per_identity < high)).sum())
        bounds = f"{low}" if high == low + 1 else f"{low} to {high - 1}"
        if count:
            rows.append((f"{low} and more" if high == np.inf else bounds, f"{count:,}"))
    return "\n".join([*lines, "", format_table(rows, "<>")])


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = len(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def draw_histogram(per_identity: np.ndarray, path: Path) -> None:
    """A histogram of images per identity as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    bins = np.unique(np.geomspace(1, per_identity.max() + 1, 40).astype(int))
    axes.hist(per_identity, bins=np.append(bins, bins[-1] + 1))
    axes.set(xscale="log", xlabel="images of an identity", ylabel="identities")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        FigureCanvasAgg(figure).print_png(f)
