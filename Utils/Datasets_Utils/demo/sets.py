"""The demo sets on disk: one training set and four test sets, laid out as the real ones are.

`ensure_demo_sets` draws them on first use; after that it returns their paths at once.
"""

import itertools
import json
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from tqdm import tqdm

from Utils.Datasets_Utils.demo.plan import (
    DemoSizes,
    Job,
    distractor_name,
    draw_job,
    invented_names,
    lfw_lines,
    pair_lines,
    plan_jobs,
    probe_list,
    train_lines,
)
from Utils.errors import RunError
from Utils.files import not_written

GENERATOR_VERSION = 1  # raise it when pixels or layout change, so that existing sets are redrawn
STAMP = "demo_sets.json"
JPEG_QUALITY = 93
CHUNK = 32  # images a worker draws between two steps of the progress bar
DEFAULT_SIZES = DemoSizes()
ABANDONED_AFTER = 3600.0  # seconds; an unfinished folder that is older belongs to a dead process


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
    progress: bool = True,
) -> DemoSets:
    """Draw the demo sets into `root` unless they are there already, and return their paths.

    They are drawn into a folder beside `root`, which is renamed at the end; sets of another seed,
    size or generator are replaced. `workers` defaults to the cores that this process may use.
    Raises RunError where `root` holds other files, or can't be written.
    """
    root = Path(root).absolute()
    stamp = {"generator": GENERATOR_VERSION, "seed": seed, "sizes": asdict(sizes)}
    if _read_stamp(root) == stamp:
        return _paths(root, sizes)
    building = root.with_name(f".{root.name}.building-{os.getpid()}")
    try:
        if root.is_file() or (_holds_files(root) and not (root / STAMP).exists()):
            raise RunError(f"{root} holds files other than demo faces: name another folder.")
        _remove_abandoned(root)
        shutil.rmtree(building, ignore_errors=True)
        jobs = plan_jobs(sizes, seed)
        for folder in {os.path.dirname(job.path) for job in jobs}:
            (building / folder).mkdir(parents=True, exist_ok=True)
        _draw_all(building, jobs, seed, workers or _cores(), progress)
        _write_lists(building, sizes, seed)
        (building / STAMP).write_text(json.dumps(stamp, indent=1))
        _move_into_place(building, root, stamp)
    except OSError as error:
        raise RunError(not_written(root, error)) from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return _paths(root, sizes)


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _write_lists(root: Path, sizes: DemoSizes, seed: int) -> None:
    paths = _paths(root, sizes)
    for path, lines in (
        (paths.train_list, train_lines(sizes, seed)),
        (paths.lfw_pairs, lfw_lines(sizes, seed, invented_names(sizes, seed))),
        (paths.agedb_pairs, pair_lines(sizes, seed, "agedb_30")),
        (paths.cfp_pairs, pair_lines(sizes, seed, "cfp_fp")),
    ):
        path.write_text("".join(f"{line}\n" for line in lines))
    paths.facescrub_list.write_text(json.dumps(probe_list(sizes, seed), indent=4))
    for path, count in zip(paths.distractor_lists, _distractor_counts(sizes), strict=True):
        path.write_text(json.dumps({"path": [distractor_name(n) for n in range(count)]}, indent=4))


def _distractor_counts(sizes: DemoSizes) -> list[int]:
    """10, 100, 1000, ... up to the number of distractors."""
    return [10**power for power in range(1, 7) if 10**power <= sizes.distractors]


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
    """Remove the folders of killed processes beside `root`, none that may still be in use."""
    for folder in root.parent.glob(f".{root.name}.building-*"):
        try:
            if time.time() - folder.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue


def _move_into_place(building: Path, root: Path, stamp: dict) -> None:
    if _read_stamp(root) == stamp:
        return  # another process was faster; it drew the same files
    if root.exists():
        old = building.with_name(f"{building.name}-old")
        root.rename(old)
        building.rename(root)
        shutil.rmtree(old, ignore_errors=True)
    else:
        building.rename(root)


def _cores() -> int:
    """The cores that this process may use; on macOS and Windows, all cores."""
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
    """Draw and write some images; return their number."""
    for job in jobs:
        path = root / job.path
        settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if path.suffix == ".jpg" else []
        encoded, data = cv2.imencode(path.suffix, draw_job(seed, job)[..., ::-1], settings)
        if not encoded:
            raise OSError(f"OpenCV could not encode {path}")
        path.write_bytes(data.tobytes())
    return len(jobs)
