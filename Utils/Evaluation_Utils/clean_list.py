"""Write the image list of a training set without its most suspicious images.

    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --max_angle 75
    python -m Utils.Evaluation_Utils.clean_list FOLDER LIST --share 0.05

FOLDER is a report of `label_noise`; its images are not read again. Left out are images that lie
further than --max_angle degrees from the centre of their identity, or the --share of all images
that lies furthest. Images without such an angle, as the only one of an identity, stay.
Labels are numbered anew, without the identities of which no image is left.
"""

import argparse
import csv
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.storage import PathTable
from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.training_set import renumber
from Utils.errors import DataError, run_script


def write_clean_list(
    report: Path, file_list: Path, max_angle: float | None = None, share: float | None = None
) -> str:
    """Write the list and return a line on what is left out.

    max_angle: degrees 0..180; share: 0..1; exactly one of them. Raises DataError for a report that
    can't be read and where nothing would be left, ValueError for numbers out of range.
    """
    if (max_angle is None) == (share is None):
        raise ValueError("give one of --max_angle and --share.")
    if max_angle is not None and not 0 <= max_angle <= 180:
        raise ValueError(f"max_angle is {max_angle}; it must be an angle from 0 to 180 degrees.")
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"share is {share}; it must be at least 0 and below 1.")
    names, labels, angles = read_images(report / "images.csv")
    angles = np.nan_to_num(angles, nan=-1.0)
    if share is not None:
        out = np.zeros(len(angles), bool)
        out[np.argsort(-angles, kind="stable")[: round(share * len(angles))]] = True
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

    Raises DataError naming file and line where it is no such table.
    """
    numbers, labels, angles = array("q"), array("q"), array("f")

    def names() -> Iterator[str]:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            try:
                for row in csv.DictReader(file):
                    numbers.append(int(row["image"]))
                    labels.append(int(row["label"]))
                    angles.append(float(row["angle"]))
                    yield row["name"]
            except (KeyError, TypeError, ValueError, OverflowError, csv.Error):
                line = len(angles) + 2
                raise DataError(
                    f"{path}, line {line} is no row of label_noise's images.csv."
                ) from None

    try:
        table = PathTable(names())
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}; run label_noise.") from None
    order = np.argsort(np.array(numbers, np.int64))
    if not np.array_equal(np.array(numbers)[order], np.arange(len(order))):
        raise DataError(f"{path} lacks some of the images; write the report again.")
    ordered = PathTable(table[row] for row in order.tolist())
    return ordered, np.array(labels, np.int64)[order], np.array(angles)[order]


def main() -> None:
    """Read the command line, write the list, print what it leaves out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="the folder of the report")
    parser.add_argument("list", type=Path, help="the list to write")
    parser.add_argument("--max_angle", type=float, help="degrees; leave out what lies further")
    parser.add_argument("--share", type=float, help="0..1; leave out so much, the furthest")
    given = parser.parse_args()
    print(write_clean_list(given.report, given.list, given.max_angle, given.share))


if __name__ == "__main__":
    run_script(main)
