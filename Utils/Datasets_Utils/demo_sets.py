"""The demo data: one training set and four test sets of drawn faces, laid out as the real ones are.

`ensure_demo_sets` draws them on first use and afterwards returns the paths at once. A set is
described by a list of jobs (file, person, conditions); every image depends only on the seed and
its own job, so any number of worker processes gives the same bytes. No person is in two sets.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from .demo_faces import Identity, Photo, draw_face, random_identity, random_photo

GENERATOR_VERSION = 1  # raise it when drawing or layout changes, so that cached sets are redrawn
STAMP = "demo_sets.json"
JPEG_QUALITY = 93
CHUNK = 32  # images a worker draws between two steps of the progress bar
ABANDONED_AFTER = 3600.0  # seconds after which another process's unfinished folder is rubbish
SETS = ("train", "lfw", "agedb_30", "cfp_fp", "facescrub", "distractors")
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
    """How much to draw; a fold holds as many matched as mismatched pairs."""

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


@dataclass(frozen=True)
class DemoSets:
    """Where the sets are: image folders and the lists that go with them."""

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


class Job(NamedTuple):
    """One image to draw: `path` below the root, the person's number within the set, conditions."""

    path: str
    set_name: str
    person: int
    photo: int
    kind: str


def ensure_demo_sets(
    root: str | os.PathLike,
    seed: int = 0,
    sizes: DemoSizes = DemoSizes(),
    workers: int | None = None,
    progress: bool = True,
) -> DemoSets:
    """Draw the demo sets into `root` unless they are there already, and return their paths.

    They are drawn into a folder beside `root` that is renamed when whole; sets of another seed,
    size or generator are replaced. `workers` defaults to the cores this process may use. Raises
    FileExistsError where `root` holds something else than demo sets.
    """
    root = Path(root).absolute()
    stamp = {"generator": GENERATOR_VERSION, "seed": seed, "sizes": asdict(sizes)}
    if _read_stamp(root) == stamp:
        return _paths(root, sizes)
    if root.is_dir() and any(root.iterdir()) and not (root / STAMP).exists():
        raise FileExistsError(
            f"{root} holds files other than demo faces: name another folder for them"
        )
    _remove_abandoned(root)
    building = root.with_name(f".{root.name}.building-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        jobs = plan_jobs(sizes, seed)
        for folder in {os.path.dirname(job.path) for job in jobs}:
            (building / folder).mkdir(parents=True, exist_ok=True)
        _draw_all(building, jobs, seed, workers or _cores(), progress)
        _write_lists(building, sizes, seed)
        (building / STAMP).write_text(json.dumps(stamp, indent=1))
        _move_into_place(building, root, stamp)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return _paths(root, sizes)


# --- people and photos --------------------------------------------------------------------------


def demo_person(seed: int, set_name: str, person: int) -> Identity:
    """The person of that number in a set; no two sets share one."""
    return random_identity(np.random.default_rng([seed, SETS.index(set_name), person]))


def demo_photo(seed: int, job: Job) -> Photo:
    """The conditions of one image."""
    rng = np.random.default_rng([seed, SETS.index(job.set_name), job.person, job.photo + 1])
    # The person's age in most of their photos: a stream of its own, shared by their photos.
    usual_age = np.random.default_rng([seed, SETS.index(job.set_name), job.person, 0]).uniform(
        22, 56
    )
    side = rng.choice([-1, 1])
    profile = tuple(sorted((side * 58.0, side * 76.0)))
    near = (usual_age - 4, usual_age + 4)
    if job.kind == "train":
        turn = tuple(sorted((side * 25.0, side * 76.0))) if rng.random() < 0.3 else (-25.0, 25.0)
        age = (16.0, 74.0) if rng.random() < 0.5 else near
        return random_photo(rng, yaw=turn, age=age)
    ranges = {
        "everyday": {"yaw": (-16.0, 16.0), "age": near, "glasses": 0.08, "cover": 0.03},
        "young": {"yaw": (-25.0, 25.0), "age": (16.0, 26.0)},
        "old": {"yaw": (-25.0, 25.0), "age": (56.0, 72.0)},
        "frontal": {"yaw": (-8.0, 8.0), "age": near},
        "profile": {"yaw": profile, "age": near},
    }
    return random_photo(rng, **ranges[job.kind])


def draw_job(seed: int, job: Job) -> np.ndarray:
    """The image of a job: uint8 112×112×3, RGB."""
    return draw_face(demo_person(seed, job.set_name, job.person), demo_photo(seed, job))


# --- the plan -----------------------------------------------------------------------------------


def plan_jobs(sizes: DemoSizes, seed: int) -> list[Job]:
    """Every image of every set."""
    names = _names(sizes, seed)
    people = sizes.folds * sizes.people_per_fold
    jobs = [
        Job(f"train/images/{person:06d}/{photo:03d}.jpg", "train", person, photo, "train")
        for person in range(sizes.train_people)
        for photo in range(sizes.train_photos)
    ]
    for person, photo in itertools.product(range(people), range(4)):
        name = names[person]
        path = f"lfw/images/{name}/{name}_{photo + 1:04d}.jpg"
        jobs.append(Job(path, "lfw", person, photo, "everyday"))
        for set_name, kinds in (("agedb_30", ("young", "old")), ("cfp_fp", ("frontal", "profile"))):
            kind = kinds[photo // 2]
            path = f"{set_name}/images/{_file_name(person, kind, photo % 2)}"
            jobs.append(Job(path, set_name, person, photo, kind))
    for person, photo in itertools.product(range(sizes.probe_people), range(sizes.probe_photos)):
        path = f"megaface/facescrub/{_probe(names[people + person], person, photo)}"
        jobs.append(Job(path, "facescrub", person, photo, "everyday"))
    jobs += [
        Job(f"megaface/distractors/{_distractor(number)}", "distractors", number, 0, "everyday")
        for number in range(sizes.distractors)
    ]
    return jobs


def _names(sizes: DemoSizes, seed: int) -> list[str]:
    """As many invented names as LFW and FaceScrub need, all different."""
    everyone = [f"{first}_{last}" for first in FIRST_NAMES for last in LAST_NAMES]
    order = np.random.default_rng([seed, len(SETS)]).permutation(len(everyone))
    return [everyone[i] for i in order[: sizes.folds * sizes.people_per_fold + sizes.probe_people]]


def _file_name(person: int, kind: str, photo: int) -> str:
    return f"{person:04d}_{kind}_{photo + 1:02d}.jpg"


def _probe(name: str, person: int, photo: int) -> str:
    return f"{name}/{name}_{40000 + 100 * person + photo}.png"


def _distractor(number: int) -> str:
    return f"{number // 100:03d}/{number // 10:05d}/{number:06d}_0.jpg"


def _fold_pairs(
    rng: np.random.Generator, fold: int, sizes: DemoSizes, pairs: int, crossed: bool
) -> tuple[list, list]:
    """Matched and mismatched pairs ((person, photo), (person, photo)) among one fold's people.

    `crossed` sets pair one of a person's first two photos with one of the last two.
    """
    people = range(fold * sizes.people_per_fold, (fold + 1) * sizes.people_per_fold)
    photos = (
        list(itertools.product((0, 1), (2, 3)))
        if crossed
        else list(itertools.combinations(range(4), 2))
    )
    matched = [((p, i), (p, j)) for p in people for i, j in photos]
    mismatched = [
        ((p, i), (q, j))
        for p, q in itertools.permutations(people, 2)
        for i, j in photos
        if crossed or p < q
    ]
    half = pairs // 2
    if half > min(len(matched), len(mismatched)):
        raise ValueError(f"{sizes.people_per_fold} people per fold are too few for {pairs} pairs")
    return tuple(
        [choices[i] for i in rng.permutation(len(choices))[:half]]
        for choices in (matched, mismatched)
    )


# --- lists on disk ------------------------------------------------------------------------------


def _write_lists(root: Path, sizes: DemoSizes, seed: int) -> None:
    names = _names(sizes, seed)
    paths = _paths(root, sizes)
    train = (job for job in plan_jobs(sizes, seed) if job.set_name == "train")
    _write_lines(
        paths.train_list,
        (f"{job.path.removeprefix('train/images/')}  {job.person}" for job in train),
    )
    _write_lines(paths.lfw_pairs, _lfw_lines(sizes, seed, names))
    _write_lines(
        paths.agedb_pairs, _pair_lines(sizes, seed, "agedb_30", sizes.agedb_pairs, ("young", "old"))
    )
    _write_lines(
        paths.cfp_pairs, _pair_lines(sizes, seed, "cfp_fp", sizes.cfp_pairs, ("frontal", "profile"))
    )
    _write_megaface_lists(paths, sizes, names)


def _lfw_lines(sizes: DemoSizes, seed: int, names: list[str]) -> Iterator[str]:
    rng = np.random.default_rng([seed, SETS.index("lfw")])
    yield f"{sizes.folds}\t{sizes.lfw_pairs // 2}"
    for fold in range(sizes.folds):
        matched, mismatched = _fold_pairs(rng, fold, sizes, sizes.lfw_pairs, crossed=False)
        for (person, i), (_, j) in matched:
            yield f"{names[person]}\t{i + 1}\t{j + 1}"
        for (left, i), (right, j) in mismatched:
            yield f"{names[left]}\t{i + 1}\t{names[right]}\t{j + 1}"


def _pair_lines(
    sizes: DemoSizes, seed: int, set_name: str, pairs: int, kinds: tuple[str, str]
) -> Iterator[str]:
    rng = np.random.default_rng([seed, SETS.index(set_name)])
    for fold in range(sizes.folds):
        chosen = _fold_pairs(rng, fold, sizes, pairs, crossed=True)
        for group, label in zip(chosen, (1, -1), strict=True):
            for sides in group:
                left, right = (_file_name(p, kinds[photo // 2], photo % 2) for p, photo in sides)
                yield f"{left} {right} {label}"


def _write_megaface_lists(paths: DemoSets, sizes: DemoSizes, names: list[str]) -> None:
    first = sizes.folds * sizes.people_per_fold
    probes = [
        (names[first + person], _probe(names[first + person], person, photo))
        for person in range(sizes.probe_people)
        for photo in range(sizes.probe_photos)
    ]
    lists = {"path": [path for _, path in probes], "id": [name for name, _ in probes]}
    paths.facescrub_list.write_text(json.dumps(lists, indent=4))
    for target, count in zip(paths.distractor_lists, _distractor_counts(sizes), strict=True):
        target.write_text(json.dumps({"path": [_distractor(n) for n in range(count)]}, indent=4))


def _distractor_counts(sizes: DemoSizes) -> list[int]:
    """10, 100, 1000, ... as far as there are distractors."""
    return [10**power for power in range(1, 7) if 10**power <= sizes.distractors]


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


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


# --- building -----------------------------------------------------------------------------------


def _read_stamp(root: Path) -> dict | None:
    try:
        return json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None


def _remove_abandoned(root: Path) -> None:
    """Remove what killed processes left beside `root`, but nothing that may still be growing."""
    for folder in root.parent.glob(f".{root.name}.building-*"):
        try:
            if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _move_into_place(building: Path, root: Path, stamp: dict) -> None:
    if _read_stamp(root) == stamp:
        return  # another process was faster; its files are the same
    if root.exists():
        old = building.with_name(f"{building.name}-old")
        root.rename(old)
        building.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    else:
        building.rename(root)


def _cores() -> int:
    """The cores this process may use; macOS and Windows tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _draw_all(root: Path, jobs: list[Job], seed: int, workers: int, progress: bool) -> None:
    chunks = [jobs[start : start + CHUNK] for start in range(0, len(jobs), CHUNK)]
    with tqdm(
        total=len(jobs), desc="Drawing the demo faces", unit="face", disable=not progress
    ) as bar:
        if workers > 1 and len(chunks) > 1:
            try:
                _draw_in_processes(root, chunks, seed, workers, bar)
                return
            except BrokenProcessPool:
                # Spawned workers cannot start below a script without a `__main__` guard.
                bar.reset()
        for chunk in chunks:
            bar.update(_draw_chunk(root, seed, chunk))


def _draw_in_processes(
    root: Path, chunks: list[list[Job]], seed: int, workers: int, bar: tqdm
) -> None:
    # Spawned, not forked: the caller may already run threads of torch or OpenCV.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(chunks)), mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        for drawn in pool.map(_draw_chunk, itertools.repeat(root), itertools.repeat(seed), chunks):
            bar.update(drawn)


def _draw_chunk(root: Path, seed: int, jobs: list[Job]) -> int:
    """Draw and write some images; returns how many."""
    for job in jobs:
        path = root / job.path
        settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
        encoded, data = cv2.imencode(path.suffix, draw_job(seed, job)[..., ::-1], settings)
        if not encoded:
            raise OSError(f"OpenCV could not encode {path}")
        path.write_bytes(data.tobytes())
    return len(jobs)
