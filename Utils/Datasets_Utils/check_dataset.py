"""Read every image of a training set and say what is wrong with it.

    python -m Utils.Datasets_Utils.check_dataset SOURCE [--file_list LIST] [--output FOLDER]

SOURCE is anything that training opens. Reported are images that can't be read or are cut short,
images of another size than most, exact duplicates (pixel for pixel), and identities with one image.
FOLDER (Results/check_<name>) gets report.json, images_per_identity.png and clean_list.txt: the list
of the good images, to train from with --train_file_list. Of duplicates under one label the first
stays; of those under several labels none does, as all but one of the labels are wrong.

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
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from Utils.Datasets_Utils import open_training_set
from Utils.Datasets_Utils.generate_dataset_list import write_lines
from Utils.Datasets_Utils.images import ImageError, describe_sizes, inspect_image
from Utils.Datasets_Utils.training_set import TrainingSet
from Utils.errors import run_script
from Utils.files import atomic_path, make_folder

SHOWN = 5
UNCLEAN = 2  # exit status
_BATCH = 64


@dataclass(frozen=True)
class Findings:
    """What the N images of a set are like.

    sizes: int32 N×2, height and width, 0 for unreadable ones. unreadable: image -> why.
    odd: bools N, of another size than most. duplicate_of: int64 N, the first image of the same
    pixels, itself if there is none before. bad: bools N, what a clean list leaves out.
    """

    sizes: np.ndarray
    unreadable: dict[int, str]
    odd: np.ndarray
    duplicate_of: np.ndarray
    bad: np.ndarray

    @property
    def clean(self) -> bool:
        return not self.bad.any()


def check(data: TrainingSet, num_workers: int = 2) -> Findings:
    """Read every image of a training set, with a progress bar."""
    count = len(data)
    sizes, digests = np.zeros((count, 2), np.int32), np.zeros((count, 2), np.int64)
    unreadable: dict[int, str] = {}
    loader = DataLoader(
        _Examined(data), batch_size=_BATCH, num_workers=num_workers, collate_fn=list
    )
    with tqdm(total=count, unit="image", desc="Checking") as bar:
        for batch in loader:
            for number, found in enumerate(batch, bar.n):
                if isinstance(found, str):
                    unreadable[number] = found
                else:
                    sizes[number], digests[number] = found
            bar.update(len(batch))
    readable = np.ones(count, bool)
    readable[list(unreadable)] = False
    odd = readable & (sizes != _most_frequent(sizes[readable])).any(1)
    duplicate_of = _first_of_same(digests, readable)
    bad = ~readable | odd | _to_leave_out(duplicate_of, np.asarray(data.labels))
    return Findings(sizes, unreadable, odd, duplicate_of, bad)


class _Examined(Dataset):
    def __init__(self, data: TrainingSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple | str:
        try:
            place = self.data.images.place(self.data.row(index))
            return inspect_image(self.data.encoded(index), place)
        except ImageError as error:
            return str(error)


def _most_frequent(sizes: np.ndarray) -> np.ndarray:
    if len(sizes) == 0:
        return np.zeros(2, np.int32)
    values, counts = np.unique(sizes, axis=0, return_counts=True)
    return values[counts.argmax()]


def _first_of_same(digests: np.ndarray, readable: np.ndarray) -> np.ndarray:
    first = np.arange(len(digests))
    rows = np.flatnonzero(readable)
    if rows.size:
        _, where, group = np.unique(digests[rows], axis=0, return_index=True, return_inverse=True)
        first[rows] = rows[where[group.ravel()]]
    return first


def _to_leave_out(duplicate_of: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Duplicates but for the first, and all of those whose labels differ."""
    numbers = np.arange(len(labels))
    contradicted = np.zeros(len(labels), bool)
    contradicted[duplicate_of[labels != labels[duplicate_of]]] = True
    return (duplicate_of != numbers) | contradicted[duplicate_of]


def write_clean_list(data: TrainingSet, findings: Findings, path: Path) -> int:
    """Write the list of the images that are not bad, labels numbered anew; returns their number."""
    kept = np.flatnonzero(~findings.bad)
    labels = np.unique(np.asarray(data.labels)[kept], return_inverse=True)[1]
    write_lines(path, (data.name(row) for row in kept.tolist()), labels)
    return len(kept)


def summary(data: TrainingSet, findings: Findings) -> dict:
    """The findings as plain values: counts, and the places of what is wrong."""
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
        "clean": findings.clean,
    }


def table(report: dict, per_identity: np.ndarray) -> str:
    """The report for printing, with how many identities have how many images."""
    lines = []
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:g}" for key, number in value.items())
        elif isinstance(value, list):
            lines.append(f"{name:<28}{len(value):,}")
            lines += [f"    {text}" for text in value[:SHOWN]]
            lines += ["    ..."] if len(value) > SHOWN else []
            continue
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        lines.append(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value}")
    lines += ["", f"{'images':<12}{'identities':>10}"]
    edges = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, np.inf]
    for low, high in pairwise(edges):
        number = int(((per_identity >= low) & (per_identity < high)).sum())
        bounds = f"{low}" if high == low + 1 else f"{low} and more" if high == np.inf else ""
        lines += [f"{bounds or f'{low} to {high - 1}':<12}{number:>10,}"] if number else []
    return "\n".join(lines)


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


def run(source: str, file_list: str | None, output: Path, num_workers: int) -> bool:
    """Check a set, write the files, print the report. Returns whether it is clean."""
    data = open_training_set(source, file_list)
    make_folder(output)
    findings = check(data, num_workers)
    report, per_identity = summary(data, findings), np.bincount(data.labels)
    with atomic_path(output / "report.json") as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draw_histogram(per_identity, output / "images_per_identity.png")
    kept = write_clean_list(data, findings, output / "clean_list.txt")
    print(f"\n{table(report, per_identity)}\n")
    print(f"Clean list of {kept:,} images, histogram and report: {output}")
    return findings.clean


def main() -> None:
    """Read the command line, check, and exit with the status that says whether it is clean."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="the training set")
    parser.add_argument("--file_list", help="its image list")
    parser.add_argument("--output", help="folder for report, histogram and clean list")
    parser.add_argument("--num_workers", type=int, default=2, help="processes that read")
    arguments = parser.parse_args()
    name = Path(arguments.source).absolute().name
    output = Path(arguments.output or f"Results/check_{name}")
    if not run(arguments.source, arguments.file_list, output, arguments.num_workers):
        sys.exit(UNCLEAN)


if __name__ == "__main__":
    run_script(main)
