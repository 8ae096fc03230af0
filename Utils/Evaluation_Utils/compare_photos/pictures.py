"""Pictures of compared photographs: the crops that the network saw, beside their scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from Utils.Evaluation_Utils.compare_photos.photos import Photo
from Utils.Evaluation_Utils.compare_photos.scoring import Judge
from Utils.Evaluation_Utils.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Match = tuple[Photo, str, bool]  # a photograph of the gallery, its caption, is it accepted

_DOTS_PER_INCH = 120
_SAME, _INK = "#1b9e4b", "#222222"
_FEW, _SOME = 20, 60  # photographs whose scores, and whose crops, are drawn
_CELL, _SMALL, _SIDE = 0.7, 0.35, 9.0  # inches: of a cell, of one of some, of all cells of more
_LETTERS = 26


def draw_two(photos: Sequence[Photo], answer: str, path: Path) -> None:
    """Write two crops side by side, under their names, and the answer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.3), dpi=_DOTS_PER_INCH, layout="constrained")
    figure.suptitle(answer, weight="bold", color=_INK, parse_math=False)
    for photo, axes in zip(photos, figure.subplots(1, 2), strict=True):
        _draw_crop(axes, photo, short(photo.name))
        how = f"aligned by {photo.detector}" if photo.detector else "taken as it is"
        axes.set_xlabel(how, size=8)
    save_figure(figure, path)


def draw_matrix(photos: Sequence[Photo], judge: Judge, scores: np.ndarray, path: Path) -> None:
    """Write the N×N scores as colours, with the crops on both sides and, of few photographs, the
    numbers; accepted ones have a frame."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(photos)
    cell = _CELL if count <= _FEW else _SMALL if count <= _SOME else _SIDE / count
    margin = 2.2 if count <= _SOME else 0.6
    side = cell * count
    width, height = margin + side + 1.4, margin + side + 0.1
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    box = (margin / width, 0.1 / height, side / width, side / height)
    axes = figure.add_axes(box)
    apart = scores[~np.eye(count, dtype=bool)]
    limits = {"vmin": apart.min(), "vmax": max(apart.max(), apart.min() + 1e-6)}
    image = axes.imshow(np.ma.masked_array(scores, np.eye(count)), cmap="Blues", **limits)
    axes.set_xticks([]), axes.set_yticks([])
    same = judge.accepts(scores) & ~np.eye(count, dtype=bool) if judge.threshold else None
    middle = (limits["vmin"] + limits["vmax"]) / 2
    for row in range(count) if count <= _SOME else ():
        x, y = (margin - cell) / width, (0.1 + side - (row + 1) * cell) / height
        shape = (cell / width, cell / height)
        _draw_crop(figure.add_axes((x, y, *shape)), photos[row])
        text = {"size": 7, "color": _INK, "parse_math": False}
        place = ((margin - cell - 0.05) / width, y + shape[1] / 2)
        figure.text(*place, short(photos[row].name, 22), ha="right", va="center", **text)
        x, y = (margin + row * cell) / width, (0.1 + side) / height
        _draw_crop(figure.add_axes((x, y, *shape)), photos[row])
        place = (x + shape[0] / 2, y + shape[1] + 0.05 / height)
        turned = {"rotation": 90, "ha": "center", "va": "bottom"}
        figure.text(*place, short(photos[row].name, 22), **turned, **text)
    for row, column in np.ndindex(scores.shape) if count <= _FEW else ():
        if row != column:
            colour = "white" if scores[row, column] > middle else _INK
            shown = f"{judge.in_unit(scores[row, column]):.3f}"
            axes.text(column, row, shown, ha="center", va="center", size=8, color=colour)
    for row, column in np.argwhere(same).tolist() if same is not None else ():
        frame = {"fill": False, "edgecolor": _SAME, "linewidth": 2 if count <= _SOME else 0.5}
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, **frame))
    bar = figure.add_axes(((margin + side + 0.15) / width, box[1], 0.15 / width, box[3]))
    bar = figure.colorbar(image, cax=bar, label=judge.unit)
    bar.ax.tick_params(labelsize=8)
    bar.formatter = lambda score, _: f"{judge.in_unit(score):.3f}"
    bar.update_ticks()
    corner = {"ha": "left", "va": "top", "size": 8, "color": _INK}
    figure.text(0.1 / width, 1 - 0.1 / height, judge.legend.replace("; ", "\n"), **corner)
    save_figure(figure, path)


def draw_matches(
    rows: Sequence[tuple[Photo, str, Sequence[Match]]], legend: str, path: Path
) -> None:
    """Write probes, each with its answer and the most alike photographs of the gallery."""
    from matplotlib.figure import Figure

    across = 1 + max(len(matches) for _, _, matches in rows)
    size = (1.45 * across, 1.75 * len(rows))
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    table = figure.subplots(len(rows), across, squeeze=False)
    for line, (probe, answer, matches) in zip(table, rows, strict=True):
        for axes in line:
            axes.set_axis_off()
        _draw_crop(line[0], probe, f"{short(probe.name, 20)}\n{answer}")
        for axes, (photo, caption, accepted) in zip(line[1:], matches, strict=False):
            _draw_crop(axes, photo, caption, _SAME if accepted else None)
    figure.supxlabel(legend, size=8, color=_INK)
    save_figure(figure, path)


def _draw_crop(axes: Axes, photo: Photo, caption: str = "", frame: str | None = None) -> None:
    axes.imshow(photo.crop)
    axes.set_axis_on()
    axes.set_xticks([]), axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(frame is not None)
        spine.set(color=frame or _INK, linewidth=3)
    axes.set_title(caption, size=8, color=_INK, parse_math=False)


def short(name: str, letters: int = _LETTERS) -> str:
    """The end of a name that is too long for a picture."""
    return name if len(name) <= letters else f"…{name[1 - letters :]}"
