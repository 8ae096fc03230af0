"""How long MegaFace scoring takes, as a ratio to the bare matrix multiplication, and its memory.

    python -m benchmarks.megaface_scoring [--distractors N] [--dims 256 512] [--folder DIR]

3,530 random probes of 80 people are scored against random distractors in a memory-mapped file:
identification, verification, ROC and open set, for one set of distractors. As among FaceScrub's
3,530 probes, 25 are mislabelled. Before and after the scoring, the bare products of the same blocks
are computed, always into the same memory. Memory is the growth of the process's resident size
without the pages of files, sampled a hundred times a second.

`--all_pairs 100000` instead counts every pair of so many images, ten of each person, beside the
bare products of as many pairs.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.memory import MemoryWatch
from Utils.cpu import keep_freed_memory
from Utils.Evaluation_Utils.all_pairs.figures import evaluate as evaluate_all_pairs
from Utils.Evaluation_Utils.identification import evaluate
from Utils.Evaluation_Utils.identification.scoring import BLOCK_SIZES
from Utils.files import atomic_path

PROBES, PEOPLE, MISLABELLED = 3530, 80, 25
PHOTOS = 10  # of a person, in every pair of images
_ROWS_AT_ONCE = 10_000


def make_probes(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 P×D features and P identities; two photos of a person have a cosine of about 0.55."""
    rng = np.random.default_rng(dim)
    ids = np.sort(np.arange(PROBES) % PEOPLE)
    noise = rng.normal(size=(PROBES, dim))
    probes = rng.normal(size=(PEOPLE, dim))[ids] + 0.9 * noise
    wrong = rng.permutation(PROBES)[:MISLABELLED]
    probes[wrong] = noise[wrong]
    return probes.astype(np.float32), ids


def make_distractors(path: Path, count: int, dim: int, photos: int = 0) -> np.ndarray:
    """A memory map of float32 N×D features; its file is written if it does not exist yet.
    photos: so many rows in turn are of one person, with a cosine of about 0.2; 0: strangers."""
    if not path.exists():
        rng = np.random.default_rng(1)
        with atomic_path(path) as temporary:
            table = np.lib.format.open_memmap(temporary, "w+", np.float32, (count, dim))
            for start in range(0, count, _ROWS_AT_ONCE):
                part = table[start : start + _ROWS_AT_ONCE]
                part[:] = rng.standard_normal(part.shape, np.float32)
                if photos:
                    people = rng.standard_normal((len(part) // photos + 1, dim), np.float32)
                    part[:] = 2 * part + people[np.arange(len(part)) // photos]
            del table
    return np.load(path, mmap_mode="r")


def multiply(probes: np.ndarray, distractors: np.ndarray, block: int) -> float:
    """Seconds for the bare products of all blocks."""
    left = torch.from_numpy(probes)
    out = torch.empty(len(probes), block)
    start = time.perf_counter()
    for first in range(0, len(distractors), block):
        right = torch.from_numpy(np.array(distractors[first : first + block]))
        torch.mm(left, right.T, out=out[:, : len(right)])
    return time.perf_counter() - start


def measure(folder: Path, count: int, dim: int) -> str:
    """One line of the table."""
    probes, ids = make_probes(dim)
    distractors = make_distractors(folder / f"distractors_{count}x{dim}.npy", count, dim)
    multiply(probes, distractors[: count // 10], BLOCK_SIZES["cpu"])  # wakes threads, reads pages
    before = multiply(probes, distractors, BLOCK_SIZES["cpu"])
    start = time.perf_counter()
    with MemoryWatch(100) as memory:
        result = evaluate(probes, ids, distractors)
    scoring = time.perf_counter() - start
    bare = (before + multiply(probes, distractors, BLOCK_SIZES["cpu"])) / 2
    tpr = result.verification["all"].points[-1].tar
    return (
        f"{PROBES:>6,} {count:>12,} {dim:>6} {bare:>10.1f} {scoring:>11.1f} {scoring / bare:>7.2f}"
        f" {memory.used / 2**30:>10.2f}   {100 * result.rank1:.3f} %, {100 * tpr:.3f} %"
    )


def measure_all_pairs(folder: Path, count: int, dim: int) -> str:
    """Every pair of `count` images, in words."""
    table = make_distractors(folder / f"people_{count}x{dim}.npy", count, dim, PHOTOS)
    rows = np.array(table[: BLOCK_SIZES["cpu"]])
    multiply(rows, table[: count // 10], len(rows))
    start = time.perf_counter()
    with MemoryWatch(100) as memory:
        result = evaluate_all_pairs(table, np.arange(count) // PHOTOS)
    scoring = time.perf_counter() - start
    bare = multiply(rows, table, len(rows)) * (count / len(rows) / 2)
    tars = ", ".join(f"{100 * p.tar:.3f} % at {p.target:g}" for p in result.every.points)
    return (
        f"{count:,} images, {dim}-d: {result.every.genuine:,} genuine and "
        f"{result.every.impostor:,} impostor pairs\nbare {bare:.1f} s, all figures {scoring:.1f} s "
        f"({scoring / bare:.2f}), memory {memory.used / 2**30:.2f} GiB\n"
        f"TAR {tars}; rank-1 {100 * result.rank1:.3f} %"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--distractors", type=int, default=1_000_000)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--all_pairs", type=int, metavar="N", help="every pair of N images instead")
    parser.add_argument("--folder", type=Path, help="folder in which the random features are kept")
    arguments = parser.parse_args()
    keep_freed_memory()  # as MegaFace_Evaluation.py does
    print(f"{torch.get_num_threads()} threads, blocks of {BLOCK_SIZES['cpu']} distractors")
    if not arguments.all_pairs:
        print(
            "probes  distractors    dim   bare (s)  scoring (s)   ratio  memory GiB   rank-1, TPR"
        )
    with tempfile.TemporaryDirectory() as temporary:
        for dim in arguments.dims:
            folder = arguments.folder or Path(temporary)
            if arguments.all_pairs:
                print(measure_all_pairs(folder, arguments.all_pairs, dim), flush=True)
            else:
                print(measure(folder, arguments.distractors, dim))


if __name__ == "__main__":
    main()
