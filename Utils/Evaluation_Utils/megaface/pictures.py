"""MegaFace's pictures: CMC, ROC, rank-1 over the number of distractors, the worst confusions.

The curves are drawn from the values of megaface.json files: of this evaluation's, and of those of
other networks that `compare` names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from Utils.errors import DataError
from Utils.Evaluation_Utils.identification import Confusion
from Utils.Evaluation_Utils.megaface.noise import CLEANED, RAW
from Utils.Evaluation_Utils.megaface.report import FILE_NAME, MegaFaceResult
from Utils.Evaluation_Utils.plots import (
    SheetPair,
    contact_sheet,
    new_figure,
    save_with_legend,
    show_rates_from,
)
from Utils.files import read_json

XY = tuple[np.ndarray, np.ndarray]

_WORST_SHOWN = 20
_JSON_NAME = f"{FILE_NAME}.json"
_FOLDER_NAME = "megaface"  # in the folder of a training run


def draw_all(
    folder: Path,
    result: MegaFaceResult,
    values: dict[str, Any],
    others: dict[str, dict[str, Any]],
) -> None:
    """Write all pictures. values: of this result's megaface.json; others: of other files, by their
    labels in the pictures."""
    cmcs: dict[str, XY] = {}
    rocs: dict[str, RocLine] = {}
    sizes: dict[str, XY] = {}
    for run, run_values in {"": values, **others}.items():
        for photos in (RAW, CLEANED):
            results = [r for r in run_values["results"] if r["photos"] == photos]
            if not results:
                continue
            largest = max(results, key=lambda r: r["distractors"])
            label = ", ".join(filter(None, (run, photos)))
            cmcs[label] = np.array(largest["cmc"]["ranks"]), np.array(largest["cmc"]["rates"])
            for name, found in largest["verification"].items():
                curve = found["roc"]
                rocs[f"{label}, {name}"] = RocLine(
                    np.array(curve["fpr"]), np.array(curve["tpr"]), curve["exact_up_to_fpr"]
                )
            if len(results) > 1:
                pairs = sorted((r["distractors"], r["rank1"]) for r in results)
                sizes[label] = tuple(np.array(pairs).T)
    ours = max(values["results"], key=lambda r: r["distractors"])
    title = f"MegaFace, {ours['distractors']:,} distractors"
    plot_cmc(cmcs, folder / f"{FILE_NAME}_cmc.png", title)
    plot_megaface_roc(rocs, folder / f"{FILE_NAME}_roc.png", title)
    if sizes:
        plot_sizes(sizes, folder / f"{FILE_NAME}_rank1.png", "MegaFace, rank-1")
    _draw_confusions(result, folder)


def _draw_confusions(result: MegaFaceResult, folder: Path) -> None:
    """A sheet of probes beside the distractors that beat their mates, where photos are there."""
    probes, distractors = result.data.probes.photos, result.data.distractors.photos
    if probes is None or distractors is None:
        return
    sections = {}
    for photos in (RAW, CLEANED):
        chosen = [found for (_, kind), found in result.results.items() if kind == photos]
        if chosen:
            found = max(chosen, key=lambda each: each.distractors).confusions
            heading = f"{photos}: {len(found)} probes that a distractor beat, the clearest first"
            pairs = (_pair(result, confusion) for confusion in found[:_WORST_SHOWN])
            sections[heading] = [pair for pair in pairs if pair]
    title = "MegaFace: probe beside the distractor that beat its mate"
    contact_sheet(sections, folder / f"{FILE_NAME}_worst.png", title)


def _pair(result: MegaFaceResult, confusion: Confusion) -> SheetPair | None:
    """None if one of the photos is not there."""
    data = result.data
    sides = (
        (data.probes, int(result.trials.origin[confusion.probe])),
        (data.distractors, confusion.distractor),
    )
    left, right = (source.image(row) for source, row in sides)
    if left is None or right is None:
        return None
    names = "\n".join(Path(source.listed.names[row]).name for source, row in sides)
    return (
        left,
        right,
        f"{confusion.distractor_score:.3f}, mate {confusion.mate_score:.3f} "
        f"at rank {confusion.beats + 1}\n{names}",
    )


def plot_cmc(curves: Mapping[str, XY], path: str | os.PathLike[str], title: str) -> None:
    """Write CMC curves: label -> (ranks from 1, rates 0..1), ranks on a logarithmic axis."""
    figure, axes = new_figure((7.0, 5.2), title)
    for label, (ranks, rates) in curves.items():
        axes.step(ranks, rates, where="post", label=f"{label} (rank-1 {100 * rates[0]:.2f} %)")
    axes.set_xscale("log")
    axes.set_xlim(1, max(max(ranks.max() for ranks, _ in curves.values()), 2))
    show_rates_from(axes, min(rates[0] for _, rates in curves.values()))
    axes.set_xlabel("Rank")
    axes.set_ylabel("Share of searches with the mate at that rank or before")
    save_with_legend(figure, path)


@dataclass(frozen=True, eq=False)
class RocLine:
    """fpr, tpr: K points by rising FPR, 0..1. exact_up_to: the FPR from which on the points are
    counts in a histogram, see `figures.Curve`."""

    fpr: np.ndarray
    tpr: np.ndarray
    exact_up_to: float


def plot_megaface_roc(
    curves: Mapping[str, RocLine], path: str | os.PathLike[str], title: str
) -> None:
    """Write ROC curves by label, FPR on a logarithmic axis. As far as its points are exact a curve
    is a line of steps, the TPR that can be had at that FPR; beyond, it is dotted."""
    figure, axes = new_figure((7.0, 5.2), title)
    smallest = min(line.fpr[line.fpr > 0].min(initial=1) for line in curves.values())
    start = min(0.1, 10.0 ** np.floor(np.log10(smallest) + 1e-9))
    lowest, dotted = [], False
    for label, line in curves.items():
        lowest.append(line.tpr[line.fpr == 0].max(initial=0))
        fpr, tpr = line.fpr[line.fpr > 0], line.tpr[line.fpr > 0]
        exact = int(np.searchsorted(fpr, line.exact_up_to, side="right"))
        steps = np.append(start, fpr[:exact]), np.append(lowest[-1], tpr[:exact])
        (drawn,) = axes.step(*steps, where="post", label=label)
        if exact < len(fpr):
            rest = np.append(steps[0][-1], fpr[exact:]), np.append(steps[1][-1], tpr[exact:])
            axes.plot(*rest, linestyle=":", color=drawn.get_color())
            dotted = True
    axes.set_xscale("log")
    axes.set_xlim(start, 1)
    show_rates_from(axes, min(lowest))
    axes.set_xlabel(
        "FPR: share of negatives accepted" + (" (dotted: from a histogram)" if dotted else "")
    )
    axes.set_ylabel("TPR: share of same-person pairs accepted")
    save_with_legend(figure, path)


def plot_sizes(curves: Mapping[str, XY], path: str | os.PathLike[str], title: str) -> None:
    """Write rank-1 over set sizes: label -> (numbers of distractors, rates)."""
    figure, axes = new_figure((7.0, 5.2), title)
    for label, (sizes, rates) in curves.items():
        axes.plot(sizes, rates, marker="o", label=label)
    axes.set_xscale("log")
    show_rates_from(axes, min(rates.min() for _, rates in curves.values()))
    axes.set_xlabel("Distractors")
    axes.set_ylabel("Rank-1 identification")
    save_with_legend(figure, path)


def read_compared(files: str) -> dict[str, dict[str, Any]]:
    """The values of megaface.json files, named with commas between, by a short label.

    Raises DataError, naming the file, for what can't be read or lacks what is drawn.
    """
    named = (part.strip() for part in files.split(","))
    paths = list(dict.fromkeys(Path(name).resolve() for name in named if name))
    labels = short_labels(paths)
    return {label: _read(path) for label, path in zip(labels, paths, strict=True)}


def short_labels(paths: list[Path]) -> list[str]:
    """For each path the shortest end that no other path has. The usual names of the file, and of
    its folder in a training run, are left out."""
    parts = [_telling_parts(path) for path in paths]
    return ["/".join(_shortest(own, parts)) for own in parts]


def _telling_parts(path: Path) -> tuple[str, ...]:
    parts = path.parent.parts if path.name == _JSON_NAME else path.parts
    return parts[:-1] if parts[-1] == _FOLDER_NAME and len(parts) > 1 else parts


def _shortest(own: tuple[str, ...], all_parts: list[tuple[str, ...]]) -> tuple[str, ...]:
    for length in range(1, len(own)):
        end = own[-length:]
        if sum(parts[-length:] == end for parts in all_parts) == 1:
            return end
    return own


def _read(path: Path) -> dict[str, Any]:
    values = read_json(path, "result that compare names,")
    if not (isinstance(values, dict) and values.get("benchmark") == "MegaFace"):
        raise DataError(f"compare names {path}, which is not a {_JSON_NAME}.")
    try:
        _check(values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"compare names {path}, whose results are not those of a {_JSON_NAME} "
            f"({type(error).__name__}: {error}); evaluate that network again."
        ) from None
    return values


def _check(values: dict[str, Any]) -> None:
    """Raises KeyError, TypeError, ValueError or AttributeError if something that is drawn is
    missing, or is not a number."""
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
