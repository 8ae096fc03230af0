"""Pictures of an evaluation: ROC curves, score histograms, sheets of the worst pairs.

Drawn with matplotlib's Figure directly, never pyplot: it needs no window system, keeps no global
list of figures, and works in any thread. It is imported in the functions that draw, so that a
script starts sooner. Each file is written beside its final name and renamed.
"""

from __future__ import annotations

import os
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from Utils.Datasets_Utils.verification_set import VerificationSet
from Utils.Evaluation_Utils.roc import Roc, auc
from Utils.Evaluation_Utils.verification import VerificationResult
from Utils.files import atomic_path, make_folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SheetPair = tuple[np.ndarray, np.ndarray, str]

WORST_SHOWN = 10

_DOTS_PER_INCH = 120
_GENUINE, _IMPOSTOR, _INK, _GRID = "#1b6ca8", "#d1495b", "#222222", "#dddddd"
_BINS = 60

_PAIRS_PER_ROW = 5
_PAIR_INCHES, _CAPTION_LINE_INCHES, _BAND_INCHES = 2.5, 0.16, 0.42
_CAPTION_LETTERS = 34
_TITLE_LETTERS = 8  # in an inch
_GAP = 4  # white pixels between the two images of a pair


def draw_verification(
    data: VerificationSet, results: Mapping[str, VerificationResult], path: Path, title: str
) -> None:
    """Write the pictures of a verification set's results by protocol.

    path: without suffix, for <path>_roc.png, <path>_scores_<protocol>.png and, under the first
    protocol, <path>_worst.png.
    """
    plot_roc({p: r.roc for p, r in results.items()}, f"{path}_roc.png", title)
    for protocol, result in results.items():
        plot_scores_of(result, f"{path}_scores_{protocol}.png", title)
    protocol, result = next(iter(results.items()))
    contact_sheet(worst_pairs(data, result), f"{path}_worst.png", f"{title}, {protocol}")


def plot_scores_of(result: VerificationResult, path: str | os.PathLike[str], title: str) -> None:
    """Write a histogram of the scores that decided, with the protocol and accuracy above it."""
    heading = f"{title}, {result.protocol}: {100 * result.accuracy:.2f} %"
    plot_scores(result.fold_scores, result.same, result.score_threshold, path, heading)


def worst_pairs(data: VerificationSet, result: VerificationResult) -> dict[str, list[SheetPair]]:
    """The sections of a sheet of the errors furthest from the threshold."""
    return {
        "Worst false matches: different people, taken for one": _worst(data, result, False),
        "Worst false non-matches: one person, taken for two": _worst(data, result, True),
    }


def _worst(data: VerificationSet, result: VerificationResult, same: bool) -> list[SheetPair]:
    """The errors on pairs of one kind, those furthest from the threshold first."""
    pairs = np.flatnonzero(result.wrong & (result.same == same))
    order = np.argsort(result.fold_scores[pairs] * (1 if same else -1), kind="stable")
    shown = []
    for pair in pairs[order[:WORST_SHOWN]]:
        left, right = data.left[pair], data.right[pair]
        names = f"{Path(data.names[left]).name}\n{Path(data.names[right]).name}"
        caption = f"score {result.fold_scores[pair]:.3f}\n{names}"
        shown.append((data.images[left], data.images[right], caption))
    return shown


def plot_roc(curves: Mapping[str, Roc], path: str | os.PathLike[str], title: str) -> None:
    """Write a picture of ROC curves, FAR on a logarithmic axis, the AUC in the legend.

    curves: label -> curve. The axis starts at the decade at or below 1/negatives of the largest
    set, 1e-4 for the usual 3,000. Below its own 1/negatives a curve is dotted: no smaller FAR but
    zero was measured. Between its points it is a step: the TAR that is reached at that FAR.

    Raises ValueError when there is no curve.
    """
    if not curves:
        raise ValueError("curves is empty, expected at least one label -> Roc to draw")
    figure, axes = new_figure((7.0, 5.2), title)
    start = _first_decade(curves.values())
    lowest = [_draw_roc(axes, label, curve, start) for label, curve in curves.items()]
    axes.set_xscale("log")
    axes.set_xlim(start, 1)
    show_rates_from(axes, min(lowest))
    axes.set_xlabel("FAR: share of mismatched pairs accepted")
    axes.set_ylabel("TAR: share of matched pairs accepted")
    save_with_legend(figure, path)


def plot_scores(
    scores: np.ndarray,
    same: np.ndarray,
    threshold: float,
    path: str | os.PathLike[str],
    title: str,
    kinds: tuple[str, str] = ("mismatched pairs", "matched pairs"),
) -> None:
    """Write a histogram of P scores (higher = more alike), matched and mismatched pairs apart.

    same: P bools. threshold: on the scale of the scores, drawn as a line. kinds: what the others
    and the same are called. Each histogram adds up to 100 % of its own kind.
    """
    from matplotlib.ticker import PercentFormatter

    scores, same = np.asarray(scores, dtype=np.float64), np.asarray(same, dtype=bool)
    figure, axes = new_figure((7.6, 4.8), title)
    edges = np.histogram_bin_edges(np.append(scores, threshold), bins=_BINS)
    for kind, chosen, colour in (
        (kinds[0], scores[~same], _IMPOSTOR),
        (kinds[1], scores[same], _GENUINE),
    ):
        axes.hist(
            chosen,
            edges,
            weights=np.full(len(chosen), 100 / max(len(chosen), 1)),
            histtype="stepfilled",
            facecolor=(colour, 0.35),
            edgecolor=colour,
            label=f"{kind}: {len(chosen):,}",
        )
    axes.axvline(threshold, color=_INK, linestyle="--", label=f"threshold: {threshold:.4g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_xlabel("Score (higher = more alike)")
    axes.set_ylabel("Share of its kind, per bin")
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=None))
    save_with_legend(figure, path, columns=3)


def contact_sheet(
    sections: Mapping[str, Sequence[SheetPair]], path: str | os.PathLike[str], title: str
) -> None:
    """Write pairs of images on one sheet, in titled sections one below the other.

    sections: heading -> pairs, each (left, right, caption) with uint8 H×W×3 RGB images of any size.
    For example {"Worst false matches": [...], "Worst false non-matches": [...]}. A caption may have
    several lines; long ones are wrapped. A section without pairs says "none".

    Raises ValueError for an image that is not uint8 H×W×3.
    """
    from matplotlib.figure import Figure

    captions = {
        heading: [_wrap(caption) for _, _, caption in pairs] for heading, pairs in sections.items()
    }
    longest = max(
        (text.count("\n") + 1 for texts in captions.values() for text in texts), default=1
    )
    row_inches = _PAIR_INCHES / 2 + longest * _CAPTION_LINE_INCHES + 0.15
    rows = {heading: -(-len(pairs) // _PAIRS_PER_ROW) for heading, pairs in sections.items()}
    width = _PAIRS_PER_ROW * _PAIR_INCHES + 0.3
    height = (1 + sum(1 + (count == 0) for count in rows.values())) * _BAND_INCHES
    height += sum(rows.values()) * row_inches

    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH)
    top = height - _BAND_INCHES
    _band(figure, title, top, size=15)
    for heading, pairs in sections.items():
        top -= _BAND_INCHES
        _band(figure, heading, top, size=12)
        if not pairs:
            top -= _BAND_INCHES
            _band(figure, "none", top, size=11, colour="#777777")
        for index, (left, right, _) in enumerate(pairs):
            column = index % _PAIRS_PER_ROW
            if column == 0:
                top -= row_inches
            box = _box(figure, 0.15 + column * _PAIR_INCHES, top, _PAIR_INCHES, row_inches)
            _draw_pair(figure, box, side_by_side(left, right), captions[heading][index])
    save_figure(figure, path)


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two uint8 H×W×3 images of any sizes as one, centred vertically, with a white gap between.

    Raises ValueError for another shape or dtype.
    """
    for name, image in (("left", left), ("right", right)):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"{name} image has shape {image.shape} and type {image.dtype}, expected uint8 H×W×3"
            )
    height = max(len(left), len(right))
    sheet = np.full((height, left.shape[1] + _GAP + right.shape[1], 3), 255, dtype=np.uint8)
    for image, column in ((left, 0), (right, left.shape[1] + _GAP)):
        row = (height - len(image)) // 2
        sheet[row : row + len(image), column : column + image.shape[1]] = image
    return sheet


def _first_decade(curves: Iterable[Roc]) -> float:
    smallest = 1 / max(curve.negatives for curve in curves)
    # A tenth at most, so that the axis has an extent even for a single pair. The 1e-9 keeps 1/1000,
    # whose logarithm may round below -3, in its own decade.
    return min(0.1, 10.0 ** np.floor(np.log10(smallest) + 1e-9))


def _draw_roc(axes: Axes, label: str, curve: Roc, start: float) -> float:
    """Draw a curve, dotted from FAR `start` to its first point; returns the lowest TAR in view."""
    finest, at_zero = 1 / curve.negatives, float(curve.tar[curve.far == 0].max())
    far = np.concatenate(([finest], curve.far[curve.far > 0]))
    tar = np.concatenate(([at_zero], curve.tar[curve.far > 0]))
    (line,) = axes.step(far, tar, where="post", label=f"{label} (AUC {auc(curve):.5f})")
    axes.plot([start, finest], [at_zero, at_zero], color=line.get_color(), linestyle=":")
    return at_zero


def new_figure(inches: tuple[float, float], title: str) -> tuple[Figure, Axes]:
    """An empty picture of that width and height with one pair of axes; a long title is broken."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.add_subplot()
    lines = textwrap.fill(title, int(_TITLE_LETTERS * inches[0]))
    axes.set_title(lines, parse_math=False, weight="bold")
    axes.grid(which="major", color=_GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def show_rates_from(axes: Axes, lowest: float) -> None:
    """Let the vertical axis begin at the tenth at or below a rate, and end at 1."""
    bottom = min(np.floor(lowest * 10) / 10, 0.9)
    axes.set_ylim(bottom, 1 + 0.02 * (1 - bottom))


def save_with_legend(figure: Figure, path: str | os.PathLike[str], columns: int = 2) -> None:
    """Put the legend below the axes, and write the picture as `save_figure` does. columns: of the
    legend; fewer where long labels would not fit."""
    for count in range(columns, 0, -1):
        legend = figure.legend(loc="outside lower center", ncols=count, frameon=False)
        with _names_of_any_kind(figure):
            fits = legend.get_window_extent().width <= figure.bbox.width
        if count == 1 or fits:
            break
        legend.remove()
    save_figure(figure, path)


def _wrap(caption: str) -> str:
    """The caption in lines that fit below a pair; a long name has no spaces and is broken."""
    wrapped = (textwrap.wrap(line, _CAPTION_LETTERS) or [""] for line in caption.splitlines())
    return "\n".join(line for lines in wrapped for line in lines)


def _box(
    figure: Figure, left: float, bottom: float, width: float, height: float
) -> tuple[float, float, float, float]:
    """A rectangle in inches as fractions of the figure."""
    across, up = figure.get_size_inches()
    return left / across, bottom / up, width / across, height / up


def _band(figure: Figure, text: str, bottom: float, size: int, colour: str = _INK) -> None:
    """A line of text across the sheet, its lower edge `bottom` inches up."""
    x, y, _, _ = _box(figure, 0.2, bottom + 0.1, 0, 0)
    weight = "bold" if colour == _INK else "normal"
    figure.text(x, y, text, size=size, weight=weight, color=colour, parse_math=False)


def _draw_pair(
    figure: Figure, box: tuple[float, float, float, float], image: np.ndarray, caption: str
) -> None:
    left, bottom, width, height = box
    _, _, margin, picture = _box(figure, 0, 0, 0.06, _PAIR_INCHES / 2)
    axes = figure.add_axes((left + margin, bottom + height - picture, width - 2 * margin, picture))
    axes.imshow(image, aspect="equal", interpolation="antialiased")
    axes.set_anchor("N")
    axes.set_axis_off()
    place = {"transform": axes.transAxes, "ha": "center", "va": "top", "linespacing": 1.25}
    axes.text(0.5, -0.03, caption, size=8, color=_INK, parse_math=False, **place)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write the picture, and its folder if need be. Raises RunError if that can't be done."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    path = Path(path)
    make_folder(path.parent)
    with atomic_path(path) as temporary, _names_of_any_kind(figure):
        FigureCanvasAgg(figure).print_figure(temporary, format=path.suffix[1:] or "png")


@contextmanager
def _names_of_any_kind(figure: Figure) -> Iterator[None]:
    """While texts are measured or drawn, files' names among them."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # a file's name that is not UTF-8 can't be drawn
        shown = text.get_text().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if shown != text.get_text():
            text.set_text(shown)
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; it is in the tables as it is.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        yield
