"""The report of `label_noise`, and the image list of a training set without its worst images.

    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --max_angle 75
    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --share 0.05

FOLDER is a report of `label_noise`; its images are not read again. The new list lacks the images
that are further away than --max_angle degrees from the centre of their identity, or the --share of
all images that are furthest away. Images without such an angle, for example the only one of an
identity, stay. Labels are renumbered, without the identities that have no image left.
"""

import argparse
import csv
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from Config import ConfigError
from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.text import as_number, as_whole_number
from Utils.Datasets_Utils.training_set import TrainingSet, renumber
from Utils.errors import DataError, run_script
from Utils.Evaluation_Utils.plots import SheetPair, contact_sheet
from Utils.files import save_json
from Utils.tables import format_table, write_csv

IMAGE_COLUMNS = ("rank", "angle", "label", "image", "name")
IDENTITY_COLUMNS = ("rank", "median angle", "label", "images", "largest angle", "typical image")
SHOWN_IMAGES, SHOWN_IDENTITIES, PRINTED = 30, 15, 10
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True, eq=False)
class Ranking:
    """Images and identities, the most suspicious first.

    angles: float32 N degrees; NaN if there is none. labels: N, 0..C-1.
    images: N indices. identities: C labels, by their median image.
    typical, counts, medians, largest: by label, the index of the image nearest to the centre, the
        number of images, and the median and largest angle.
    """

    angles: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    identities: np.ndarray
    typical: np.ndarray
    counts: np.ndarray
    medians: np.ndarray
    largest: np.ndarray


def rank(angles: np.ndarray, labels: np.ndarray) -> Ranking:
    """Order images by their angle, and identities by the angle of their median image."""
    order = np.lexsort((angles, labels))  # by label, then by angle; NaN last
    starts = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    measured = np.bincount(labels[~np.isnan(angles)], minlength=len(starts))
    ordered, last = angles[order], np.maximum(measured - 1, 0)
    medians = (ordered[starts + last // 2] + ordered[starts + measured // 2]) / 2
    return Ranking(
        angles=angles,
        labels=labels,
        images=_descending(angles),
        identities=_descending(medians),
        typical=order[starts],
        counts=np.bincount(labels),
        medians=medians,
        largest=ordered[starts + last],
    )


def _descending(angles: np.ndarray) -> np.ndarray:
    """Indices from the largest angle to the smallest; NaN last."""
    return np.argsort(-np.nan_to_num(angles, nan=-1.0), kind="stable")


def write_report(
    data: TrainingSet, angles: np.ndarray, unreadable: np.ndarray, folder: Path, about: dict
) -> str:
    """Write tables, contact sheet and report.json; returns a table for printing.

    angles, unreadable: as `label_noise.measure` returns them. about: further values for the JSON.
    """
    ranking = rank(angles, np.asarray(data.labels))
    images = (
        (place, f"{angles[i]:.2f}", data.labels[i], i, data.name(i))
        for place, i in enumerate(ranking.images.tolist(), 1)
    )
    write_csv(folder / "images.csv", IMAGE_COLUMNS, images)
    identities = (
        (
            place,
            f"{ranking.medians[c]:.2f}",
            c,
            ranking.counts[c],
            f"{ranking.largest[c]:.2f}",
            data.name(ranking.typical[c]),
        )
        for place, c in enumerate(ranking.identities.tolist(), 1)
    )
    write_csv(folder / "identities.csv", IDENTITY_COLUMNS, identities)
    title = f"Far from their identity: {data.source.name}"
    contact_sheet(_sheet(data, ranking), folder / "worst.png", title)
    names = [data.name(i) for i in unreadable.tolist()]
    found = angles[~np.isnan(angles)]
    degrees = np.percentile(found, PERCENTILES).tolist() if found.size else []
    summary = {
        **about,
        "images": len(angles),
        "identities": len(ranking.counts),
        "identities with one image": int((ranking.counts == 1).sum()),
        "angle percentiles": {
            f"{p} %": round(angle, 2) for p, angle in zip(PERCENTILES, degrees, strict=False)
        },
        "images that can't be read": names,
    }
    save_json(folder / "report.json", summary)
    return _table(data, ranking, summary["angle percentiles"], names)


def _sheet(data: TrainingSet, ranking: Ranking) -> dict[str, list[SheetPair]]:
    """Each image beside the most typical one of its identity; identities as their two extremes."""
    angles, labels, typical = ranking.angles, ranking.labels, ranking.typical

    def pair(left: int, right: int, caption: str) -> SheetPair:
        return data[left][0], data[right][0], caption

    worst = [i for i in ranking.images[:SHOWN_IMAGES].tolist() if not np.isnan(angles[i])]
    furthest = ranking.images[np.unique(labels[ranking.images], return_index=True)[1]]  # by label
    widest = ranking.identities[:SHOWN_IDENTITIES].tolist()
    return {
        "Images furthest from their identity, each beside its most typical image": [
            pair(i, typical[labels[i]], f"{angles[i]:.0f}°, label {labels[i]}\n{data.name(i)}")
            for i in worst
        ],
        "Identities of the widest spread: the furthest image and the most typical one": [
            pair(furthest[c], typical[c], f"label {c}, median {ranking.medians[c]:.0f}°")
            for c in widest
            if not np.isnan(ranking.medians[c])
        ],
    }


def _table(
    data: TrainingSet, ranking: Ranking, percentiles: dict[str, float], unreadable: list[str]
) -> str:
    angles, medians, counts = ranking.angles, ranking.medians, ranking.counts
    shares = [
        ["images up to", *percentiles],
        ["angle", *(f"{angle:.1f}°" for angle in percentiles.values())],
    ]
    images = [["angle", "label", "most suspicious images"]]
    images += [
        [f"{angles[i]:.1f}°", str(ranking.labels[i]), data.name(i)]
        for i in ranking.images[:PRINTED].tolist()
    ]
    identities = [["median", "label", "images", "most suspicious identities"]]
    identities += [
        [f"{medians[c]:.1f}°", str(c), str(counts[c])]
        for c in ranking.identities[:PRINTED].tolist()
    ]
    blocks = [
        f"{len(data):,} images of {data.num_classes:,} identities",
        format_table(shares, "<" + ">" * len(percentiles)),
        format_table(images, ">><"),
        format_table(identities, ">>><"),
    ]
    if unreadable:
        count = f"images that can't be read: {len(unreadable):,}"
        blocks.append("\n".join([count, *unreadable[:PRINTED]]))
    return "\n\n".join(blocks)


def leave_out_worst(
    report: Path, file_list: Path, max_angle: float | None = None, share: float | None = None
) -> str:
    """Write the list and return lines that say how many images it lacks.

    max_angle: degrees 0..180; share: 0..1; exactly one of them. Raises ConfigError for values out
    of range, DataError for a report that can't be read or if no image would be left.
    """
    if (max_angle is None) == (share is None):
        raise ConfigError("share", share, "give one of --max_angle and --share.")
    if max_angle is not None and not 0 <= max_angle <= 180:
        raise ConfigError("max_angle", max_angle, "it must be an angle from 0 to 180 degrees.")
    if share is not None and not 0 <= share < 1:
        raise ConfigError("share", share, "it must be at least 0 and below 1.")
    names, labels, angles = read_images(report / "images.csv")
    angles = np.nan_to_num(angles, nan=-1.0)
    if share is not None:
        out = np.zeros(len(angles), bool)
        out[_descending(angles)[: round(share * len(angles))]] = True
        out &= angles >= 0
    else:
        out = angles > max_angle
    kept = np.flatnonzero(~out)
    if len(kept) == 0:
        given = f"share {share}" if max_angle is None else f"max_angle {max_angle}"
        raise DataError(f"{report}: with {given} no image is left; nothing is written.")
    new_labels = renumber(labels[kept], 1)[1]
    write_lines(file_list, (names[row] for row in kept.tolist()), new_labels)
    identities, left = len(np.unique(labels)), int(new_labels.max()) + 1
    return (
        f"{file_list}: {len(kept):,} images, {left:,} identities\n"
        f"  left out: {int(out.sum()):,} images, {identities - left:,} identities with them"
    )


def read_images(path: Path) -> tuple[PathTable, np.ndarray, np.ndarray]:
    """(names, labels, angles) of images.csv, in the order of the training set.

    Raises DataError naming file and line if it is no such table.
    """
    indices, labels, angles = array("q"), array("q"), array("f")

    def names() -> Iterator[str]:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            try:
                for row in csv.DictReader(file):
                    name = os.fspath(row["name"])  # None, of a row that ends too early
                    indices.append(as_whole_number(row["image"]))
                    labels.append(as_whole_number(row["label"]))
                    angles.append(as_number(row["angle"]))
                    yield name
            except (KeyError, TypeError, ValueError, OverflowError, csv.Error):
                line = len(angles) + 2
                raise DataError(
                    f"{path}, line {line} is no row of label_noise's images.csv."
                ) from None

    try:
        table = PathTable(names())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}; run label_noise.") from None
    order = np.argsort(np.array(indices, np.int64))
    if not np.array_equal(np.array(indices)[order], np.arange(len(order))):
        raise DataError(f"{path} lacks some of the images; write the report again.")
    ordered = PathTable(table[row] for row in order.tolist())
    return ordered, np.array(labels, np.int64)[order], np.array(angles)[order]


def main() -> None:
    """Read the command line, write the list, print how many images it lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="the folder of the report")
    parser.add_argument("list", type=Path, help="the list to write")
    parser.add_argument("--max_angle", type=float, help="degrees; images further than this go")
    parser.add_argument("--share", type=float, help="0..1; this share of the images goes")
    given = parser.parse_args()
    print(leave_out_worst(given.report, given.list, given.max_angle, given.share))


if __name__ == "__main__":
    run_script(main)
