"""How the text of a value, on the command line, becomes the value of a setting of each type."""

import argparse
from collections.abc import Callable
from typing import Any


def _read_integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not whole numbers like 22,31") from None


def _read_floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers like 1e-4,1e-6") from None


def _read_optional_float(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


# By a setting's type. Each raises ArgumentTypeError or ValueError for a text it can't read.
READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    tuple[int, ...]: _read_integers,
    tuple[float, ...]: _read_floats,
    float | None: _read_optional_float,
}
METAVARS = {
    int: "N",
    float: "X",
    str: "TEXT",
    tuple[int, ...]: "N,N",
    tuple[float, ...]: "X,X",
    float | None: "X",
}
