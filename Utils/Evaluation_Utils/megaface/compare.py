"""Other results' megaface.json files, drawn beside ours, and what each is called there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from Utils.errors import DataError

_FILE_NAME = "megaface.json"
_FOLDER_NAME = "megaface"  # in the folder of a training run


def read_compared(files: str) -> dict[str, dict[str, Any]]:
    """The values of megaface.json files, named with commas between, by a short label.

    Raises DataError, naming the file, for what can't be read or lacks what is drawn.
    """
    named = (part.strip() for part in files.split(","))
    paths = list(dict.fromkeys(Path(name).resolve() for name in named if name))
    labels = short_labels(paths)
    return {label: _read(path) for label, path in zip(labels, paths, strict=True)}


def short_labels(paths: list[Path]) -> list[str]:
    """For each of different paths as much of its end as tells it from the others; the usual names
    of the file, and of its folder in a training run, are left out."""
    parts = [_telling_parts(path) for path in paths]
    return ["/".join(_shortest(own, parts)) for own in parts]


def _telling_parts(path: Path) -> tuple[str, ...]:
    parts = path.parent.parts if path.name == _FILE_NAME else path.parts
    return parts[:-1] if parts[-1] == _FOLDER_NAME and len(parts) > 1 else parts


def _shortest(own: tuple[str, ...], all_parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    for length in range(1, len(own)):
        end = own[-length:]
        if sum(parts[-length:] == end for parts in all_parts) == 1:
            return end
    return own


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"compare names {path}, which can't be read: {error}.") from None
    if not (isinstance(values, dict) and values.get("benchmark") == "MegaFace"):
        raise DataError(f"compare names {path}, which is no {_FILE_NAME}.")
    try:
        _check(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"compare names {path}, whose results are not those of a {_FILE_NAME} "
            f"({type(error).__name__}: {error}); judge that network again."
        ) from None
    return values


def _check(values: dict[str, Any]) -> None:
    """Raises an error of some kind where a thing that is drawn is not there, or no number."""
    if not values["results"]:
        raise ValueError("there are none")
    for result in values["results"]:
        str.upper(result["photos"])
        numbers = [[result["rank1"]], [result["distractors"]]]
        curves = [(result["cmc"]["ranks"], result["cmc"]["rates"])]
        for found in result["verification"].values():
            curves.append((found["roc"]["fpr"], found["roc"]["tpr"]))
            numbers.append([found["roc"]["exact_up_to_fpr"]])
        for x, y in curves:
            if len(x) != len(y) or not len(x):
                raise ValueError(f"a curve with {len(x)} and {len(y)} values")
            numbers += [x, y]
        for row in numbers:
            if not np.isfinite(np.array(row, float)).all():
                raise ValueError("a value is not finite")
