"""The demo data: one training set and four test sets of drawn faces, laid out as the real ones are.

`ensure_demo_sets` draws them on first use and afterwards returns the paths at once.
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

import cv2
from tqdm import tqdm

from Utils.Datasets_Utils.demo.faces import (
    DemoSizes,
    Job,
    distractor_name,
    draw_job,
    invented_names,
    lfw_lines,
    pair_lines,
    plan_jobs,
    probe_name,
)

GENERATOR_VERSION = 1  # raise it when drawing or layout changes, so that cached sets are redrawn
STAMP = "demo_sets.json"
JPEG_QUALITY = 93
CHUNK = 32  # images a worker draws between two steps of the progress bar
DEFAULT_SIZES = DemoSizes()
ABANDONED_AFTER = 3600.0  # seconds after which another process's unfinished folder is rubbish


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


def ensure_demo_sets(
    root: str | os.PathLike,
    seed: int = 0,
    sizes: DemoSizes = DEFAULT_SIZES,
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


def _write_lists(root: Path, sizes: DemoSizes, seed: int) -> None:
    names = invented_names(sizes, seed)
    paths = _paths(root, sizes)
    train = (job for job in plan_jobs(sizes, seed) if job.set_name == "train")
    _write_lines(
        paths.train_list,
        (f"{job.path.removeprefix('train/images/')}  {job.person}" for job in train),
    )
    _write_lines(paths.lfw_pairs, lfw_lines(sizes, seed, names))
    _write_lines(
        paths.agedb_pairs, pair_lines(sizes, seed, "agedb_30", sizes.agedb_pairs, ("young", "old"))
    )
    _write_lines(
        paths.cfp_pairs, pair_lines(sizes, seed, "cfp_fp", sizes.cfp_pairs, ("frontal", "profile"))
    )
    _write_megaface_lists(paths, sizes, names)


def _write_megaface_lists(paths: DemoSets, sizes: DemoSizes, names: list[str]) -> None:
    first = sizes.folds * sizes.people_per_fold
    probes = [
        (names[first + person], probe_name(names[first + person], person, photo))
        for person in range(sizes.probe_people)
        for photo in range(sizes.probe_photos)
    ]
    lists = {"path": [path for _, path in probes], "id": [name for name, _ in probes]}
    paths.facescrub_list.write_text(json.dumps(lists, indent=4))
    for target, count in zip(paths.distractor_lists, _distractor_counts(sizes), strict=True):
        target.write_text(
            json.dumps({"path": [distractor_name(n) for n in range(count)]}, indent=4)
        )


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
