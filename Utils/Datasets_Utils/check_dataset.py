"""Read every image of a training set and report what is wrong with it.

    python -m Utils.Datasets_Utils.check_dataset SOURCE [--file_list LIST] [--output FOLDER]

SOURCE is anything that training opens. The report names images that can't be read or are truncated,
images of another size than most, duplicates (of equal pixels) and pictures that are nearly the same
(saved again, resized, brightened), and identities with one image; the most blurred crops, those of
the smallest originals, and with --detector those whose face does not lie where aligned faces lie.

FOLDER (Results/check_<name>) gets report.json, images.csv, with the measures of each image,
images_per_identity.png and clean_list.txt: the list of the good images, to train on with
--train_file_list. Of duplicates with one label, it has the first; of duplicates with several labels
it has none, because all labels but one are wrong. The same holds for nearly equal pictures with
--leave_out_near only. Blurred, small and unaligned crops are left out only beyond a limit that is
given (--max_blur, --min_original, --max_offset).

The exit status is 0 for a clean set, 2 for one that is not.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.utils.data import Dataset
from tqdm import tqdm

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.appearance import redness, swapped_colours
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder
from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.images import ImageError, describe_sizes, inspect_image, noting_flaws
from Utils.Datasets_Utils.quality import crops
from Utils.Datasets_Utils.quality.alike import near_hashes, picture_hash, really_alike
from Utils.Datasets_Utils.quality.table import describe, draw_histogram
from Utils.Datasets_Utils.training_set import TrainingSet, renumber
from Utils.errors import run_script
from Utils.files import atomic_path, make_folder
from Utils.tables import write_csv
from Utils.workers import SteadyLoader

UNCLEAN = 2  # exit status
_BATCH = 64


@dataclass(frozen=True)
class Findings:
    """What was found in a set of N images.

    sizes: int32 N×2, height and width, 0 for unreadable images. unreadable: index -> the error.
    flawed: what is wrong with images that are read all the same. reds: float N, see `redness`.
    odd: bools N, images of another size than most. duplicate_of: int64 N, index of the first image
    of the same pixels, which may be the image itself. near: int64 P×2, pairs of images that are
    nearly the same, see `alike`; of duplicates, the first alone is in them. measures: float32 N×3,
    see `crops.Measure`. beyond: bools N, images beyond the given limits. bad: bools N, images that
    a clean list leaves out: those and what can't be read, has an odd size or is a duplicate.
    """

    sizes: np.ndarray
    unreadable: dict[int, str]
    flawed: list[str]
    reds: np.ndarray
    odd: np.ndarray
    duplicate_of: np.ndarray
    near: np.ndarray
    measures: np.ndarray
    beyond: np.ndarray
    bad: np.ndarray


def check(
    data: TrainingSet,
    num_workers: int = 2,
    measure: crops.Measure | None = None,
    limits: crops.Limits | None = None,
    leave_out_near: bool = False,
) -> Findings:
    """Read every image of a training set, with a progress bar; those that seem to be nearly the
    same are read once more, and are ordered with two labels first."""
    count = len(data)
    sizes, digests = np.zeros((count, 2), np.int32), np.zeros((count, 4), np.int64)
    reds, flawed = np.full(count, np.nan), []
    measures = np.full((count, len(crops.COLUMNS)), np.nan, np.float32)
    unreadable: dict[int, str] = {}
    loader = SteadyLoader(
        _Examined(data, measure or crops.Measure()),
        batch_size=_BATCH,
        num_workers=num_workers,
        collate_fn=list,
    )
    with tqdm(total=count, unit="image", desc="Checking") as bar:
        for batch in loader:
            for number, found in enumerate(batch, bar.n):
                if isinstance(found, str):
                    unreadable[number] = found
                else:
                    sizes[number], digests[number], reds[number], measures[number], flaws = found
                    flawed += flaws
            bar.update(len(batch))
    readable = np.ones(count, bool)
    readable[list(unreadable)] = False
    kinds, counts = np.unique(sizes[readable], axis=0, return_counts=True)
    usual = kinds[counts.argmax()] if len(kinds) else 0
    odd = readable & (sizes != usual).any(1)
    duplicate_of = _first_of_same(digests[:, :2], readable)
    once = np.flatnonzero(readable & (duplicate_of == np.arange(count)))
    near = really_alike(once[near_hashes(digests[once, 2:])], lambda row: data[row][0])
    beyond = (limits or crops.Limits()).beyond(measures)
    labels = np.asarray(data.labels)
    near = near[np.argsort(labels[near[:, 0]] == labels[near[:, 1]], kind="stable")]
    bad = ~readable | odd | beyond | _to_leave_out(duplicate_of, labels)
    if leave_out_near:
        bad |= _to_leave_out(_first_of_near(near, duplicate_of), labels)
    return Findings(sizes, unreadable, flawed, reds, odd, duplicate_of, near, measures, beyond, bad)


class _Examined(Dataset):
    def __init__(self, data: TrainingSet, measure: crops.Measure) -> None:
        self.data, self.measure = data, measure

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple | str:
        try:
            place = self.data.images.place(self.data.row(index))
            with noting_flaws() as flaws:
                image, digest = inspect_image(self.data.encoded(index), place)
            digest += picture_hash(image)
            return image.shape[:2], digest, redness(image), self.measure(image, index), flaws
        except ImageError as error:
            return str(error)


def _first_of_same(digests: np.ndarray, readable: np.ndarray) -> np.ndarray:
    first = np.arange(len(digests))
    rows = np.flatnonzero(readable)
    if rows.size:
        _, where, group = np.unique(digests[rows], axis=0, return_index=True, return_inverse=True)
        first[rows] = rows[where[group.ravel()]]
    return first


def _first_of_near(near: np.ndarray, duplicate_of: np.ndarray) -> np.ndarray:
    """int64 N: the first of the images that an image is the same as, or nearly so."""
    count = len(duplicate_of)
    left = np.concatenate((near[:, 0], duplicate_of))
    right = np.concatenate((near[:, 1], np.arange(count)))
    graph = coo_array((np.ones(len(left)), (left, right)), (count, count))
    group = connected_components(graph, directed=False)[1]
    return np.unique(group, return_index=True)[1][group]


def _to_leave_out(duplicate_of: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bools N: duplicates except the first, and all duplicates whose labels differ."""
    indices = np.arange(len(labels))
    contradicted = np.zeros(len(labels), bool)
    contradicted[duplicate_of[labels != labels[duplicate_of]]] = True
    return (duplicate_of != indices) | contradicted[duplicate_of]


def write_clean_list(data: TrainingSet, findings: Findings, path: Path) -> int:
    """Write the list of the good images, labelled from 0 again; returns how many they are."""
    kept = np.flatnonzero(~findings.bad)
    labels = renumber(np.asarray(data.labels)[kept], min_images=1)[1]
    write_lines(path, (data.name(row) for row in kept.tolist()), labels)
    return len(kept)


def summary(data: TrainingSet, findings: Findings) -> dict:
    """The findings as plain values: counts, and the names of the images that are wrong."""
    per_identity = np.bincount(data.labels, minlength=data.num_classes)
    sizes = Counter(map(tuple, findings.sizes.tolist()))
    sizes = {size if size != (0, 0) else None: count for size, count in sizes.items()}
    copies = np.flatnonzero(findings.duplicate_of != np.arange(len(data)))
    labels = np.asarray(data.labels)

    def pair(image: int, other: int, sign: str) -> str:
        left, right = (f"{data.name(i)} (label {labels[i]})" for i in (image, other))
        return f"{left} {sign} {right}"

    return {
        "images": len(data),
        "identities": data.num_classes,
        "images per identity": {
            "least": int(per_identity.min()),
            "median": float(np.median(per_identity)),
            "mean": round(float(per_identity.mean()), 2),
            "most": int(per_identity.max()),
        },
        "identities with one image": int((per_identity == 1).sum()),
        "sizes": describe_sizes(sizes),
        "unreadable": list(findings.unreadable.values()),
        "read in spite of a flaw": findings.flawed,
        "colours": _colours(findings),
        "odd sizes": [
            f"{data.name(i)} {findings.sizes[i, 0]}×{findings.sizes[i, 1]}"
            for i in np.flatnonzero(findings.odd).tolist()
        ],
        "duplicates": [pair(i, findings.duplicate_of[i], "=") for i in copies.tolist()],
        "nearly the same": [pair(right, left, "~") for left, right in findings.near.tolist()],
        "of them, with two labels": int(
            (labels[findings.near[:, 0]] != labels[findings.near[:, 1]]).sum()
        ),
        "beyond the limits": [data.name(i) for i in np.flatnonzero(findings.beyond).tolist()],
        "clean": not findings.bad.any(),
    }


def write_measures(data: TrainingSet, findings: Findings, path: Path) -> None:
    """Write a line for each image: its size, measures, the image that it repeats, whether the clean
    list has it."""
    repeats = findings.duplicate_of != np.arange(len(data))
    rows = (
        (
            *(i, data.labels[i], data.name(i), *findings.sizes[i]),
            *crops.texts(findings.measures[i]),
            data.name(findings.duplicate_of[i]) if repeats[i] else "",
            int(not findings.bad[i]),
        )
        for i in range(len(data))
    )
    columns = ("image", "label", "name", "height", "width", *crops.COLUMNS, "duplicate_of", "good")
    write_csv(path, columns, rows)


def _colours(findings: Findings) -> str:
    swapped = swapped_colours(findings.reds)
    return f"{swapped}; train with --train_channel_order BGR" if swapped else "not swapped"


def main() -> None:
    """Read the command line, check the set, write the files, print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the training set")
    parser.add_argument("--file_list", help="its image list")
    parser.add_argument("--list_encoding", default="", help="of the image list")
    add_identity_folder(parser)
    parser.add_argument("--output", help="folder for report, histogram and clean list")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read")
    crops.add_flags(parser)
    parser.add_argument(
        "--leave_out_near",
        action="store_true",
        help="treat pictures that are nearly the same like duplicates in the clean list",
    )
    arguments = parser.parse_args()
    limits = crops.limits_of(arguments)
    data = open_training_set(
        arguments.source, arguments.file_list, arguments.identity_folder, arguments.list_encoding
    )
    output = Path(arguments.output or f"Results/check_{Path(arguments.source).absolute().name}")
    measure = crops.measure_of(arguments, len(data))
    make_folder(output)
    findings = check(data, arguments.num_workers, measure, limits, arguments.leave_out_near)
    report, per_identity = summary(data, findings), np.bincount(data.labels)
    with atomic_path(output / "report.json") as temporary:
        values = {**report, "crops": crops.summary(findings.measures)}
        temporary.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    write_measures(data, findings, output / "images.csv")
    draw_histogram(per_identity, output / "images_per_identity.png")
    kept = write_clean_list(data, findings, output / "clean_list.txt")
    print("\n".join(("", *data.notes, describe(report, per_identity), "")))
    print(crops.describe(findings.measures, data.name), end="\n\n")
    print(f"Clean list of {kept:,} images, histogram, measures and report: {output}")
    print(
        "Wrong labels: python -m Utils.Evaluation_Utils.label_noise; people of a test set: overlap"
    )
    if findings.bad.any():
        sys.exit(UNCLEAN)


if __name__ == "__main__":
    run_script(main)
