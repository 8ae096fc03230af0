"""What the demo sets consist of: every image of every set, and the lines of their lists.

An image depends only on the seed and its own job, so that any number of worker processes draws the
same bytes. No person is in two sets.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.demo.faces import draw_face
from Utils.Datasets_Utils.demo.people import Identity, Photo, random_identity, random_photo

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


class Job(NamedTuple):
    """One image to draw.

    path: relative to the folder of all sets. person, photo: counted from 0 in the set and for the
    person. kind: of conditions, see `demo_photo`.
    """

    path: str
    set_name: str
    person: int
    photo: int
    kind: str


def demo_person(seed: int, set_name: str, person: int) -> Identity:
    """The person of that number in a set; no person is in two sets."""
    return random_identity(np.random.default_rng([seed, SETS.index(set_name), person]))


def demo_photo(seed: int, job: Job) -> Photo:
    """The conditions of one image."""
    rng = np.random.default_rng([seed, SETS.index(job.set_name), job.person, job.photo + 1])
    # The person's age in most of their photos has a random stream that these photos share.
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


def plan_jobs(sizes: DemoSizes, seed: int) -> list[Job]:
    """Every image of every set."""
    names = invented_names(sizes, seed)
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
        for set_name, kinds in KINDS.items():
            kind = kinds[photo // 2]
            path = f"{set_name}/images/{_file_name(person, kind, photo % 2)}"
            jobs.append(Job(path, set_name, person, photo, kind))
    for person, photo in itertools.product(range(sizes.probe_people), range(sizes.probe_photos)):
        path = f"megaface/facescrub/{_probe_name(names[people + person], person, photo)}"
        jobs.append(Job(path, "facescrub", person, photo, "everyday"))
    jobs += [
        Job(f"megaface/distractors/{distractor_name(number)}", "distractors", number, 0, "everyday")
        for number in range(sizes.distractors)
    ]
    return jobs


def invented_names(sizes: DemoSizes, seed: int) -> list[str]:
    """As many invented names as LFW and FaceScrub need, all different."""
    everyone = [f"{first}_{last}" for first in FIRST_NAMES for last in LAST_NAMES]
    order = np.random.default_rng([seed, len(SETS)]).permutation(len(everyone))
    return [everyone[i] for i in order[: sizes.folds * sizes.people_per_fold + sizes.probe_people]]


def _file_name(person: int, kind: str, photo: int) -> str:
    return f"{person:04d}_{kind}_{photo + 1:02d}.jpg"


def _probe_name(name: str, person: int, photo: int) -> str:
    return f"{name}/{name}_{40000 + 100 * person + photo}.png"


def distractor_name(number: int) -> str:
    return f"{number // 100:03d}/{number // 10:05d}/{number:06d}_0.jpg"


def _fold_pairs(
    rng: np.random.Generator, fold: int, sizes: DemoSizes, pairs: int, crossed: bool
) -> tuple[list, list]:
    """Matched and mismatched pairs ((person, photo), (person, photo)) among one fold's people.

    crossed: each pair is one of a person's first two photos and one of the last two.
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


def train_lines(sizes: DemoSizes, seed: int) -> Iterator[str]:
    """The lines of the training set's image list."""
    for job in plan_jobs(sizes, seed):
        if job.set_name == "train":
            yield f"{job.path.removeprefix('train/images/')}  {job.person}"


def probe_list(sizes: DemoSizes, seed: int) -> dict[str, list[str]]:
    """MegaFace's list of the probes: their paths and people."""
    people = invented_names(sizes, seed)[sizes.folds * sizes.people_per_fold :]
    probes = [
        (name, _probe_name(name, person, photo))
        for person, name in enumerate(people)
        for photo in range(sizes.probe_photos)
    ]
    return {"path": [path for _, path in probes], "id": [name for name, _ in probes]}


def lfw_lines(sizes: DemoSizes, seed: int, names: list[str]) -> Iterator[str]:
    """The lines of a pairs file in LFW's format; names: of the people of all folds."""
    rng = np.random.default_rng([seed, SETS.index("lfw")])
    yield f"{sizes.folds}\t{sizes.lfw_pairs // 2}"
    for fold in range(sizes.folds):
        matched, mismatched = _fold_pairs(rng, fold, sizes, sizes.lfw_pairs, crossed=False)
        for (person, i), (_, j) in matched:
            yield f"{names[person]}\t{i + 1}\t{j + 1}"
        for (left, i), (right, j) in mismatched:
            yield f"{names[left]}\t{i + 1}\t{names[right]}\t{j + 1}"


def pair_lines(sizes: DemoSizes, seed: int, set_name: str) -> Iterator[str]:
    """The lines of the pairs file of agedb_30 or cfp_fp."""
    kinds = KINDS[set_name]
    pairs = sizes.agedb_pairs if set_name == "agedb_30" else sizes.cfp_pairs
    rng = np.random.default_rng([seed, SETS.index(set_name)])
    for fold in range(sizes.folds):
        chosen = _fold_pairs(rng, fold, sizes, pairs, crossed=True)
        for group, label in zip(chosen, (1, -1), strict=True):
            for sides in group:
                left, right = (_file_name(p, kinds[photo // 2], photo % 2) for p, photo in sides)
                yield f"{left} {right} {label}"
