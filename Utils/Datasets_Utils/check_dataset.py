"""Read every image of a training set and report what is wrong with it.

    python -m Utils.Datasets_Utils.check_dataset SOURCE [--file_list LIST] [--output FOLDER]

SOURCE is anything that training opens. The report names images that can't be read or are truncated,
images of another size than most, duplicates (of equal pixels), and identities with one image; the
most blurred crops, those of the smallest originals, and with --detector those whose face does not
lie where aligned faces lie. FOLDER (Results/check_<name>) gets report.json, images.csv, with the
measures of each image, images_per_identity.png and clean_list.txt: the list of the good images, to
train on with --train_file_list. Of duplicates with one label, it has the first; of duplicates with
several labels it has none, because all labels but one are wrong. Blurred, small and unaligned crops
are left out only beyond a limit that is given (--max_blur, --min_original, --max_offset).

The exit status is 0 for a clean set, 2 for one that is not.
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.appearance import redness, swapped_colours
from Utils.Datasets_Utils.formats.class_tree import add_identity_folder
from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.images import ImageError, describe_sizes, inspect_image, noting_flaws
from Utils.Datasets_Utils.quality import crops
from Utils.Datasets_Utils.training_set import TrainingSet, renumber
from Utils.errors import run_script
from Utils.files import atomic_path, make_folder
from Utils.processes import SteadyLoader
from Utils.tables import format_table, write_csv

SHOWN = 5
UNCLEAN = 2  # exit status
_BATCH = 64
_EDGES = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, np.inf)  # of the printed table


@dataclass(frozen=True)
class Findings:
    """What was found in a set of N images.

    sizes: int32 N×2, height and width, 0 for unreadable images. unreadable: index -> the error.
    flawed: what is wrong with images that are read all the same. reds: float N, see `redness`.
    odd: bools N, images of another size than most. duplicate_of: int64 N, index of the first image
    of the same pixels, which may be the image itself. measures: float32 N×3, see `crops.Measure`.
    beyond: bools N, images beyond the given limits. bad: bools N, images that a clean list leaves
    out: those and what can't be read, has an odd size or is a duplicate.
    """

    sizes: np.ndarray
    unreadable: dict[int, str]
    flawed: list[str]
    reds: np.ndarray
    odd: np.ndarray
    duplicate_of: np.ndarray
    measures: np.ndarray
    beyond: np.ndarray
    bad: np.ndarray


def check(
    data: TrainingSet,
    num_workers: int = 2,
    measure: crops.Measure | None = None,
    limits: crops.Limits | None = None,
) -> Findings:
    """Read every image of a training set once, with a progress bar."""
    count = len(data)
    sizes, digests = np.zeros((count, 2), np.int32), np.zeros((count, 2), np.int64)
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
    duplicate_of = _first_of_same(digests, readable)
    beyond = (limits or crops.Limits()).beyond(measures)
    bad = ~readable | odd | beyond | _to_leave_out(duplicate_of, np.asarray(data.labels))
    return Findings(sizes, unreadable, flawed, reds, odd, duplicate_of, measures, beyond, bad)


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
        "duplicates": [
            f"{data.name(i)} (label {labels[i]}) = {data.name(first)} (label {labels[first]})"
            for i, first in zip(
                copies.tolist(), findings.duplicate_of[copies].tolist(), strict=True
            )
        ],
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


def describe(report: dict, per_identity: np.ndarray) -> str:
    """The report for printing, with a table of how many identities have how many images."""
    lines = []
    facts = format_table([(name, _cell(value)) for name, value in report.items()], "<<")
    for line, value in zip(facts.split("\n"), report.values(), strict=True):
        lines.append(line)
        if isinstance(value, list):
            lines += [f"    {text}" for text in value[:SHOWN]]
            lines += ["    ..."] if len(value) > SHOWN else []
    rows = [("images", "identities")]
    for low, high in pairwise(_EDGES):
        count = int(((per_identity >= low) & (per_identity < high)).sum())
        bounds = f"{low}" if high == low + 1 else f"{low} to {high - 1}"
        if count:
            rows.append((f"{low} and more" if high == np.inf else bounds, f"{count:,}"))
    return "\n".join([*lines, "", format_table(rows, "<>")])


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:g}" for key, number in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        value = len(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def draw_histogram(per_identity: np.ndarray, path: Path) -> None:
    """A histogram of images per identity as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    bins = np.unique(np.geomspace(1, per_identity.max() + 1, 40).astype(int))
    axes.hist(per_identity, bins=np.append(bins, bins[-1] + 1))
    axes.set(xscale="log", xlabel="images of an identity", ylabel="identities")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        FigureCanvasAgg(figure).print_png(f)


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
    arguments = parser.parse_args()
    limits = crops.limits_of(arguments)
    data = open_training_set(
        arguments.source, arguments.file_list, arguments.identity_folder, arguments.list_encoding
    )
    output = Path(arguments.output or f"Results/check_{Path(arguments.source).absolute().name}")
    measure = crops.measure_of(arguments, len(data))
    make_folder(output)
    findings = check(data, arguments.num_workers, measure, limits)
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
