"""The demo sets: one training set and four test sets, laid out on disk as the real ones are.

`ensure_demo_sets` draws them on first use; after that it returns their paths at once. An image
depends only on the seed and its own job, so that any number of worker processes draws the same
bytes. No person is in two sets.
"""

import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.demo.faces import draw_face
from Utils.Datasets_Utils.demo.on_disk import write_image
from Utils.Datasets_Utils.demo.pairs import PHOTOS, crossed_lines, lfw_lines
from Utils.Datasets_Utils.demo.people import Identity, photo_of_kind, random_identity
from Utils.errors import RunError
from Utils.files import not_written

GENERATOR_VERSION = 1  # raise it when pixels or layout change, so that existing sets are redrawn
STAMP = "demo_sets.json"
CHUNK = 32  # images a worker draws between two steps of the progress bar

SETS = ("train", "lfw", "agedb_30", "cfp_fp", "facescrub", "distractors")
# The two kinds of photos that a pair of these sets compares.
KINDS = {"agedb_30": ("young", "old"), "cfp_fp": ("frontal", "profile")}
FIRST_NAMES = (
    "Ada Alba Anton Aron Bela Bruno Carla Cleo Dario Dora Edda Elio Enzo Etta Fabio Flora "
    "Gero Gilda Hanno Hedda Ilja Ines Ivo Jana Jonas Kira Lars Leona Livia Marek Mila Nelo "
    "Nora Olga Oskar Petra Quirin Rita Ruben Sanna Silas Tessa Tilo Ursa Vera Vito Wanda "
    "Yorick Zita Zeno"
).split()
LAST_NAMES = (
    "Abelin Ambrask Bordun Brevik Calder Corvane Dahlmar Dorvik Eskeland Ferrow Fennimar "
    "Galbrek Gorsk Halvane Hollin Iversk Jastrow Kelmar Korvald Lindqvar Lorimand Marvek "
    "Melgaard Norrind Ostrel Pavlin Perrault Quillar Rasmind Rovane Salvek Sorrel Tamsin "
    "Torvald Ulvane Vargand Vellin Wexmar Wrenfeld Yarrow Zabel Zorin"
).split()


@dataclass(frozen=True)
class DemoSizes:
    """How much to draw. Pairs are counted in a fold; half of them are matched."""

    train_people: int = 200
    train_photos: int = 10
    folds: int = 10
    lfw_pairs: int = 60
    agedb_pairs: int = 60
    cfp_pairs: int = 70
    people_per_fold: int = 12
    probe_people: int = 20
    probe_photos: int = 6
    distractors: int = 1000


DEFAULT_SIZES = DemoSizes()


@dataclass(frozen=True)
class DemoSets:
    """The paths of the sets: image folders and their lists."""

    root: Path
    train_images: Path
    train_list: Path
    lfw_images: Path
    lfw_pairs: Path
    agedb_images: Path
    agedb_pairs: Path
    cfp_images: Path
    cfp_pairs: Path
    megaface: Path
    facescrub_images: Path
    facescrub_list: Path
    distractor_images: Path
    distractor_lists: tuple[Path, ...]


def ensure_demo_sets(
    root: str | os.PathLike,
    seed: int = 0,
    sizes: DemoSizes = DEFAULT_SIZES,
    workers: int | None = None,
) -> DemoSets:
    """Draw the demo sets into `root` unless they are there already, and return their paths.

    They are drawn into a folder beside `root`, which is renamed at the end; sets of another seed,
    size or generator are replaced. `workers` defaults to the cores that this process may use.
    Raises RunError if `root` holds other files, or can't be written.
    """
    root = Path(root).absolute()
    stamp = {"generator": GENERATOR_VERSION, "seed": seed, "sizes": asdict(sizes)}
    if _read_stamp(root) == stamp:
        return _paths(root, sizes)
    building = root.with_name(f".{root.name}.building-{os.getpid()}")
    old = building.with_name(f"{building.name}-old")
    try:
        if root.is_file() or (
            root.is_dir() and any(root.iterdir()) and not (root / STAMP).exists()
        ):
            raise RunError(f"{root} holds files other than demo faces: name another folder.")
        shutil.rmtree(building, ignore_errors=True)
        jobs = plan_jobs(sizes, seed)
        for folder in {os.path.dirname(job.path) for job in jobs}:
            (building / folder).mkdir(parents=True, exist_ok=True)
        _draw_all(building, jobs, seed, workers or _cores())
        _write_lists(building, jobs, sizes, seed)
        (building / STAMP).write_text(json.dumps(stamp, indent=1))
        if _read_stamp(root) != stamp:  # else another process was faster; it drew the same files
            if root.exists():
                root.rename(old)
            building.rename(root)
    except OSError as error:
        raise RunError(not_written(root, error)) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return _paths(root, sizes)


def _paths(root: Path, sizes: DemoSizes) -> DemoSets:
    megaface = root / "megaface"
    return DemoSets(
        root=root,
        train_images=root / "train" / "images",
        train_list=root / "train" / "train.txt",
        lfw_images=root / "lfw" / "images",
        lfw_pairs=root / "lfw" / "pairs.txt",
        agedb_images=root / "agedb_30" / "images",
        agedb_pairs=root / "agedb_30" / "agedb_30_pair.txt",
        cfp_images=root / "cfp_fp" / "images",
        cfp_pairs=root / "cfp_fp" / "cfp_fp_pair.txt",
        megaface=megaface,
        facescrub_images=megaface / "facescrub",
        facescrub_list=megaface / "facescrub_features_list.json",
        distractor_images=megaface / "distractors",
        distractor_lists=tuple(
            megaface / f"megaface_features_list.json_{count}_1"
            for count in _distractor_counts(sizes)
        ),
    )


def _distractor_counts(sizes: DemoSizes) -> list[int]:
    """10, 100, 1000, ... up to the number of distractors."""
    return [10**power for power in range(1, 7) if 10**power <= sizes.distractors]


def _read_stamp(root: Path) -> dict | None:
    try:
        return json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None


class Job(NamedTuple):
    """One image to draw.

    path: relative to the folder of all sets. person, photo: counted from 0 in the set and for the
    person. kind: of conditions, see `photo_of_kind`.
    """

    path: str
    set_name: str
    person: int
    photo: int
    kind: str


def plan_jobs(sizes: DemoSizes, seed: int) -> list[Job]:
    """Every image of every set."""
    names = invented_names(sizes, seed)
    people = sizes.folds * sizes.people_per_fold
    jobs = [
        Job(f"train/images/{person:06d}/{photo:03d}.jpg", "train", person, photo, "train")
        for person in range(sizes.train_people)
        for photo in range(sizes.train_photos)
    ]
    for person, photo in itertools.product(range(people), range(PHOTOS)):
        name = names[person]
        path = f"lfw/images/{name}/{name}_{photo + 1:04d}.jpg"
        jobs.append(Job(path, "lfw", person, photo, "everyday"))
        for set_name, kinds in KINDS.items():
            kind = kinds[photo // 2]
            path = f"{set_name}/images/{_file_name(person, kind, photo % 2)}"
            jobs.append(Job(path, set_name, person, photo, kind))
    for person, photo in itertools.product(range(sizes.probe_people), range(sizes.probe_photos)):
        name = names[people + person]
        path = f"megaface/facescrub/{name}/{name}_{40000 + 100 * person + photo}.png"
        jobs.append(Job(path, "facescrub", person, photo, "everyday"))
    for number in range(sizes.distractors):
        name = f"{number // 100:03d}/{number // 10:05d}/{number:06d}_0.jpg"
        jobs.append(Job(f"megaface/distractors/{name}", "distractors", number, 0, "everyday"))
    return jobs


def invented_names(sizes: DemoSizes, seed: int) -> list[str]:
    """As many invented names as LFW and FaceScrub need, all different."""
    everyone = [f"{first}_{last}" for first in FIRST_NAMES for last in LAST_NAMES]
    order = np.random.default_rng([seed, len(SETS)]).permutation(len(everyone))
    return [everyone[i] for i in order[: sizes.folds * sizes.people_per_fold + sizes.probe_people]]


def _file_name(person: int, kind: str, photo: int) -> str:
    return f"{person:04d}_{kind}_{photo + 1:02d}.jpg"


def demo_person(seed: int, set_name: str, person: int) -> Identity:
    """The person of that number in a set; no person is in two sets."""
    return random_identity(np.random.default_rng([seed, SETS.index(set_name), person]))


def draw_job(seed: int, job: Job) -> np.ndarray:
    """The image of a job: uint8 112×112×3, RGB."""
    key = [seed, SETS.index(job.set_name), job.person]
    # The person's age in most of their photos has a random stream that these photos share.
    usual_age = np.random.default_rng([*key, 0]).uniform(22, 56)
    photo = photo_of_kind(np.random.default_rng([*key, job.photo + 1]), job.kind, usual_age)
    return draw_face(demo_person(seed, job.set_name, job.person), photo)


def _cores() -> int:
    """The cores that this process may use; on macOS and Windows, all cores."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_all(root: Path, jobs: list[Job], seed: int, workers: int) -> None:
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    draw = partial(_draw_chunk, root, seed)
    with tqdm(total=len(jobs), desc="Drawing the demo faces", unit="face") as bar:
        if workers > 1 and len(chunks) > 1:
            # Spawned, not forked: the caller may already run threads of torch or OpenCV.
            pool = ProcessPoolExecutor(
                max_workers=min(workers, len(chunks)),
                mp_context=multiprocessing.get_context("spawn"),
                initializer=cv2.setNumThreads,
                initargs=(1,),
            )
            try:
                with pool:
                    for drawn in pool.map(draw, chunks):
                        bar.update(drawn)
                return
            except BrokenProcessPool:
                # Spawned workers cannot start below a script without a `__main__` guard.
                bar.reset()
        for chunk in chunks:
            bar.update(draw(chunk))


def _draw_chunk(root: Path, seed: int, jobs: list[Job]) -> int:
    """Draw and write some images; return their number."""
    for job in jobs:
        write_image(root / job.path, draw_job(seed, job))
    return len(jobs)


def _write_lists(root: Path, jobs: list[Job], sizes: DemoSizes, seed: int) -> None:
    paths = _paths(root, sizes)
    for path, lines in (
        (
            paths.train_list,
            (f"{name}  {int(os.path.dirname(name))}" for name in _names(jobs, "train/images")),
        ),
        (paths.lfw_pairs, _lfw_lines(sizes, seed)),
        (paths.agedb_pairs, _pair_lines(sizes, seed, "agedb_30", sizes.agedb_pairs)),
        (paths.cfp_pairs, _pair_lines(sizes, seed, "cfp_fp", sizes.cfp_pairs)),
    ):
        path.write_text("".join(f"{line}\n" for line in lines))
    probes = _names(jobs, "megaface/facescrub")
    ids = [os.path.dirname(name) for name in probes]
    paths.facescrub_list.write_text(json.dumps({"path": probes, "id": ids}, indent=4))
    distractors = _names(jobs, "megaface/distractors")
    for path, count in zip(paths.distractor_lists, _distractor_counts(sizes), strict=True):
        path.write_text(json.dumps({"path": distractors[:count]}, indent=4))


def _names(jobs: list[Job], folder: str) -> list[str]:
    """The images in a folder, relative to it."""
    return [os.path.relpath(job.path, folder) for job in jobs if job.path.startswith(folder)]


def _lfw_lines(sizes: DemoSizes, seed: int) -> Iterable[str]:
    rng = np.random.default_rng([seed, SETS.index("lfw")])
    names = invented_names(sizes, seed)[: sizes.folds * sizes.people_per_fold]
    header = f"{sizes.folds}\t{sizes.lfw_pairs // 2}"
    return [header, *lfw_lines(rng, names, sizes.folds, sizes.lfw_pairs)]


def _pair_lines(sizes: DemoSizes, seed: int, set_name: str, pairs: int) -> Iterable[str]:
    """Of agedb_30 or cfp_fp."""
    rng = np.random.default_rng([seed, SETS.index(set_name)])
    people, kinds = sizes.folds * sizes.people_per_fold, KINDS[set_name]

    def file_name(person: int, photo: int) -> str:
        return _file_name(person, kinds[photo // 2], photo % 2)

    return crossed_lines(rng, people, sizes.folds, pairs, file_name)
