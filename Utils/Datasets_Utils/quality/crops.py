"""What is measured of each crop of a set, beside whether it can be read: its sharpness, and with a
detector whether its face lies where aligned faces lie."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from Config import ConfigError
from Utils.Datasets_Utils.alignment.detectors import DETECTORS
from Utils.Datasets_Utils.alignment.faces import Detector, choose
from Utils.Datasets_Utils.alignment.transform import template
from Utils.Datasets_Utils.quality.sharpness import SIDE, blur, grey, original_height
from Utils.tables import format_table

COLUMNS = ("blur", "original_height", "offset")
_SHOWN = 3  # of the worst images
_SHARES = (50, 10, 1)  # per cent
_BORDER = 0.25  # of the crop's height: detectors look for a whole face, and overlook cut ones
_GREY = (127, 127, 127)


@dataclass(frozen=True)
class Limits:
    """What a crop may be to stay in a clean list; by default anything.

    max_blur: see `sharpness.blur`. min_original: pixels, see `sharpness.original_height`.
    max_offset: see `offset`; a crop without a face is beyond each.
    """

    max_blur: float = np.inf
    min_original: float = 0.0
    max_offset: float = np.inf

    def beyond(self, measures: np.ndarray) -> np.ndarray:
        """bool N. measures: N×3, see `Measure`; what was not measured is beyond nothing."""
        blurs, heights, offsets = measures.T
        return (blurs > self.max_blur) | (heights < self.min_original) | (offsets > self.max_offset)


class Measure:
    """Measures the image of an index: COLUMNS, float32; NaN for what is not measured.

    open_detector: None: there is none. It is called in each process that measures. shown: bool N,
    the images that the detector sees.
    """

    def __init__(
        self,
        open_detector: Callable[[], Detector] | None = None,
        shown: np.ndarray | None = None,
    ) -> None:
        self.open_detector, self.shown = open_detector, shown
        self._detector: Detector | None = None

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        flat, found = grey(image), np.nan
        if self.open_detector and (self.shown is None or self.shown[index]):
            self._detector = self._detector or self.open_detector()
            found = offset(image, self._detector)
        return np.array((blur(flat), original_height(flat), found), np.float32)


def offset(image: np.ndarray, detector: Detector) -> float:
    """How far the five points of the most central face are from the template's: root of the mean
    square, in pixels of a crop of height 112; infinity where no face is found.

    image: uint8 H×W×3 RGB. A detector's points are themselves 2 to 3 pixels off.
    """
    height, width = image.shape[:2]
    border = round(_BORDER * height)
    framed = cv2.copyMakeBorder(image, *[border] * 4, cv2.BORDER_CONSTANT, value=_GREY)
    faces = detector.detect(framed)
    if not len(faces):
        return np.inf
    points = faces.points[choose(faces, "central", framed.shape[:2])[0]] - border
    away = points - template((height, width))
    return float(np.sqrt((away**2).sum(axis=1).mean())) * SIDE / height


def describe(measures: np.ndarray, name: Callable[[int], str]) -> str:
    """A table of what N×3 measures are, and the worst images; name: of an image."""
    rows = [["crops", "median", *(f"worst {share} %" for share in _SHARES[1:]), "worst"]]
    worst = []
    for title, values, digits, sign in _columns(measures):
        known = np.flatnonzero(np.isfinite(values))
        if not known.size:
            continue
        order = known[np.argsort(-sign * values[known], kind="stable")]
        places = [len(order) * share // 100 for share in _SHARES]
        rows.append([title, *(f"{values[order[i]]:.{digits}f}" for i in (*places, 0))])
        worst += [(f"{values[i]:.{digits}f}", title, name(i)) for i in order[:_SHOWN].tolist()]
    faceless = np.flatnonzero(np.isinf(measures[:, 2])).tolist()
    worst += [("", "no face found", name(i)) for i in faceless[:_SHOWN]]
    more = [f"no face is found in {len(faceless):,} images"] if faceless else []
    return "\n".join([format_table(rows, "<>>>>"), *more, "", format_table(worst, "><<", indent=4)])


def summary(measures: np.ndarray) -> dict[str, dict[str, float]]:
    """Percentiles of each measure, as plain values, and how many images have no face."""
    found: dict = {}
    for column, values in zip(COLUMNS, measures.T, strict=True):
        known = values[np.isfinite(values)].astype(np.float64)
        if known.size:
            shares = (0, 1, 10, 50, 90, 99, 100)
            levels = np.percentile(known, shares).round(3).tolist()
            found[column] = dict(zip((f"{share} %" for share in shares), levels, strict=True))
    found["without a face"] = int(np.isinf(measures[:, 2]).sum())
    return found


def texts(row: Sequence[float]) -> list[str]:
    """The three measures for a table on disk: empty where nothing was measured."""
    digits = zip(row, (3, 0, 1), strict=True)
    return ["" if np.isnan(value) else f"{value:.{places}f}" for value, places in digits]


def _columns(measures: np.ndarray) -> list[tuple[str, np.ndarray, int, int]]:
    """(title, values, digits, 1 where large values are bad, else -1)."""
    titles = ("blur, 0 to 1", "height of the original", "pixels off the template")
    return list(zip(titles, measures.T, (2, 0, 1), (1, -1, 1), strict=True))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `measure_of` and `limits_of`."""
    points = parser.add_argument_group("whether faces lie where aligned faces lie")
    points.add_argument("--detector", choices=list(DETECTORS), default="", help="finds the faces")
    points.add_argument("--detector_file", type=Path, help="its weights; else those in Pretrained/")
    points.add_argument(
        "--detector_images",
        type=int,
        metavar="N",
        help="how many images it looks at, from all over the set; all if not given",
    )
    limits = parser.add_argument_group("what the clean list leaves out")
    limits.add_argument("--max_blur", type=float, default=np.inf, help="0 to 1: more blurred crops")
    limits.add_argument(
        "--min_original", type=float, default=0, help="pixels: crops of smaller originals"
    )
    limits.add_argument(
        "--max_offset",
        type=float,
        default=np.inf,
        help="pixels of 112: faces that are further off, and crops without a face",
    )


def limits_of(given: argparse.Namespace) -> Limits:
    """Raises ConfigError for limits that can't be held."""
    for name in ("max_blur", "min_original", "max_offset"):
        value = getattr(given, name)
        if not value >= 0:
            raise ConfigError(name, value, "it must be 0 or more.")
    if given.max_offset < np.inf and not given.detector:
        raise ConfigError("max_offset", given.max_offset, "name a detector with --detector too.")
    return Limits(given.max_blur, given.min_original, given.max_offset)


def measure_of(given: argparse.Namespace, images: int) -> Measure:
    """For a set of so many images. Raises ConfigError for a number of images below 1, DataError or
    CheckpointError for a detector that has no weights, before any image is read."""
    if not given.detector:
        return Measure()
    count = images if given.detector_images is None else min(given.detector_images, images)
    if count < 1:
        raise ConfigError("detector_images", given.detector_images, "it must be at least 1.")
    open_detector = partial(DETECTORS[given.detector].open, given.detector_file)
    open_detector()
    shown = np.zeros(images, bool)
    shown[np.linspace(0, images - 1, count).astype(int)] = True
    return Measure(open_detector, shown)
