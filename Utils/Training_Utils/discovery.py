"""The tables that `Train.py --list` prints: what there is, in one line each, and where it is from.

Each text is beside its row: of backbones and heads it is the first sentence of the class's
docstring, and the first link there or in the docstring of its file.
"""

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import partial
from sys import modules

from Backbone import BACKBONES, PREFIX
from Backbone.timm_network import TimmNetwork
from Config import RECIPES
from Head import HEADS
from Utils.Datasets_Utils.formats import FORMATS, Format
from Utils.Pretrained_Utils.lineages import LINEAGES
from Utils.tables import format_table

Row = tuple[str, str, str]  # name, what it is, source

_WIDTH, _LONGEST_NAME, _GAPS = 118, 40, 4  # columns of a terminal
_LINK = re.compile(r"https?://[^\s,;)]*[^\s,;).:]")


def described(kind: type) -> tuple[str, str]:
    """What a class is, and its source, by its docstring; empty where that does not say it."""
    paragraph = " ".join((kind.__doc__ or "").strip().partition("\n\n")[0].split())
    about = re.split(r"\.(?:\s|$)", paragraph, maxsplit=1)[0]
    link = _LINK.search(f"{paragraph} {modules[kind.__module__].__doc__ or ''}")
    return about, link[0] if link else ""


def backbone_rows() -> list[Row]:
    """The networks, with the settings that tell those of one class apart."""
    rows = []
    for name, make in BACKBONES.items():
        make = make if isinstance(make, partial) else partial(make)
        about, source = described(make.func)
        settings = inspect.signature(make.func).bind_partial(*make.args, **make.keywords).arguments
        values = [f"{setting} {value}" for setting, value in settings.items()]
        rows.append((name, "; ".join(filter(None, (about, ", ".join(values)))), source))
    return [*rows, (f"{PREFIX}NAME", *described(TimmNetwork))]


def head_rows() -> list[Row]:
    """The heads, with their published m and s."""
    rows = []
    for name, kind in HEADS.items():
        about, source = described(kind.method)
        values = [f"m {kind.margin:g}"] if kind.margin else []
        values += [f"s {kind.scale:g}"] if kind.scale and kind.scalable else []
        rows.append((name, "; ".join(filter(None, (about, ", ".join(values)))), source))
    return rows


def recipe_rows() -> list[Row]:
    """The recipes."""
    return [(name, recipe.about, recipe.source) for name, recipe in RECIPES.items()]


def format_rows() -> list[Row]:
    """The formats of data sets, with the kinds of sets that each may hold."""
    return [(known.name, _sets(known), known.source) for known in FORMATS]


def _sets(known: Format) -> str:
    if known.verification:
        return "verification sets"
    return "training sets; with a pairs file, verification sets"


def lineage_rows() -> list[Row]:
    """The lineages whose weights are read; this project's own has no other source."""
    return [(known.key, known.about, known.source or known.title) for known in LINEAGES]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "backbones": backbone_rows,
    "heads": head_rows,
    "recipes": recipe_rows,
    "formats": format_rows,
    "lineages": lineage_rows,
}


def table(name: str) -> str:
    """The table of that name, a key of `ROWS`, in at most 118 columns."""
    rows = [(name, "what it is", "source"), *ROWS[name]()]
    rows = [(name, about, source.removeprefix("https://")) for name, about, source in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    widths[0] = min(widths[0], _LONGEST_NAME)
    widths[1] = _WIDTH - _GAPS - widths[0] - widths[2]
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(cell, width, break_on_hyphens=False)
            for cell, width in zip(row, widths, strict=True)
        ]
        for i in range(max(map(len, cells))):
            lines.append([cell[i] if i < len(cell) else "" for cell in cells])
    return format_table(lines, "<<<")


TABLES = {name: partial(table, name) for name in ROWS}
