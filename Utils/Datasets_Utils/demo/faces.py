"""Procedurally drawn faces: an `Identity` says who, a `Photo` says under which conditions.

The face is drawn from outlines on a turned head; light, colour and grain come last, as a camera
would add them. The same identity and photo give the same pixels.

What the demo sets consist of: every image of every set, and the pairs of the test sets.

An image depends on the seed and its own job alone, so that any number of worker processes draws the
same bytes. People are never shared by two sets.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from Utils.Datasets_Utils.demo.features import before, behind, on_the_face
from Utils.Datasets_Utils.demo.head import Colours, Head
from Utils.Datasets_Utils.demo.people import Identity, Photo, aged, random_identity, random_photo

SUPERSAMPLING = 2


def draw_face(identity: Identity, photo: Photo, size: int = 112) -> np.ndarray:
    """Draw the person under these conditions: uint8 size×size×3, RGB."""
    rng = np.random.default_rng(photo.seed)
    person = aged(identity, photo.age)
    head = Head(person, photo, size * SUPERSAMPLING)
    canvas = _background(rng, size * SUPERSAMPLING)
    colours = Colours(person, photo, rng)
    shapes = behind(person, photo, head, colours)
    shapes += head.project_all(on_the_face(person, photo, colours))
    shapes += before(person, photo, head, colours)
    for shape in shapes:
        shape.draw(canvas, head.unit)
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return _photograph(small, photo, head.centre * (size / 112), rng)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A soft gradient with a few blots, uint8 size×size×3."""
    corners = rng.uniform(10, 245, (2, 2, 3)).astype(np.uint8)
    blots = cv2.resize(corners, (28, 28), interpolation=cv2.INTER_LINEAR)
    for _ in range(rng.integers(0, 6)):
        x, y, across, down = (int(value) for value in rng.integers([0, 0, 2, 2], [28, 28, 9, 14]))
        colour = rng.uniform(10, 245, 3).tolist()
        if rng.random() < 0.5:
            cv2.rectangle(blots, (x, y), (x + across, y + down), colour, -1)
        else:
            cv2.circle(blots, (x, y), across // 2 + 1, colour, -1)
    return cv2.resize(blots, (size, size), interpolation=cv2.INTER_CUBIC)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = np.arange(size, dtype=np.float32)
    return line[None, :], line[:, None]


def _photograph(
    picture: np.ndarray, photo: Photo, centre: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Light, colour cast, exposure, blur and grain, as a camera would add them."""
    size = len(picture)
    lit = picture.astype(np.float32) * (1 / 255)
    if photo.saturation != 1:
        grey = cv2.cvtColor(lit, cv2.COLOR_RGB2GRAY)[..., None]
        lit = grey + (lit - grey) * np.float32(photo.saturation)
    shade = _light(photo, centre, size)
    cast = np.array(
        [1 + photo.warmth, 1 + photo.greenness - abs(photo.warmth) * 0.1, 1 - photo.warmth],
        np.float32,
    )
    lit *= shade[..., None] * (cast * np.float32(photo.exposure))
    lit = (lit - np.float32(0.45)) * np.float32(photo.contrast) + np.float32(0.45)
    if photo.blur > 0.25:
        lit = cv2.GaussianBlur(lit, (0, 0), photo.blur)
    grain = rng.standard_normal((size, size), np.float32) * np.float32(photo.noise / 255)
    lit += grain[..., None]
    return (np.clip(lit, 0, 1) * 255 + 0.5).astype(np.uint8)


def _light(photo: Photo, centre: np.ndarray, size: int) -> np.ndarray:
    """Brightness size×size of a lamp on a head taken as an ellipsoid around `centre`."""
    x, y = _grid(size)
    side = (x - np.float32(centre[0])) * np.float32(1 / (size * 0.46))
    down = (y - np.float32(centre[1])) * np.float32(1 / (size * 0.6))
    front = np.sqrt(np.maximum(1 - side * side - down * down, 0.05))
    azimuth, elevation = np.deg2rad([photo.light_azimuth, photo.light_elevation])
    lamp = np.array(
        [
            np.sin(azimuth) * np.cos(elevation),
            -np.sin(elevation),
            np.cos(azimuth) * np.cos(elevation),
        ],
        np.float32,
    )
    diffuse = np.maximum(side * lamp[0] + down * lamp[1] + front * lamp[2], 0)
    return np.float32(photo.ambient) + np.float32(1.25 * (1 - photo.ambient)) * diffuse


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


class Job(NamedTuple):
    """One image to draw: `path` below the root, the person's number within the set, conditions."""

    path: str
    set_name: str
    person: int
    photo: int
    kind: str


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
        for set_name, kinds in (("agedb_30", ("young", "old")), ("cfp_fp", ("frontal", "profile"))):
            kind = kinds[photo // 2]
            path = f"{set_name}/images/{_file_name(person, kind, photo % 2)}"
            jobs.append(Job(path, set_name, person, photo, kind))
    for person, photo in itertools.product(range(sizes.probe_people), range(sizes.probe_photos)):
        path = f"megaface/facescrub/{probe_name(names[people + person], person, photo)}"
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


def probe_name(name: str, person: int, photo: int) -> str:
    return f"{name}/{name}_{40000 + 100 * person + photo}.png"


def distractor_name(number: int) -> str:
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


def lfw_lines(sizes: DemoSizes, seed: int, names: list[str]) -> Iterator[str]:
    rng = np.random.default_rng([seed, SETS.index("lfw")])
    yield f"{sizes.folds}\t{sizes.lfw_pairs // 2}"
    for fold in range(sizes.folds):
        matched, mismatched = _fold_pairs(rng, fold, sizes, sizes.lfw_pairs, crossed=False)
        for (person, i), (_, j) in matched:
            yield f"{names[person]}\t{i + 1}\t{j + 1}"
        for (left, i), (right, j) in mismatched:
            yield f"{names[left]}\t{i + 1}\t{names[right]}\t{j + 1}"


def pair_lines(
    sizes: DemoSizes, seed: int, set_name: str, pairs: int, kinds: tuple[str, str]
) -> Iterator[str]:
    rng = np.random.default_rng([seed, SETS.index(set_name)])
    for fold in range(sizes.folds):
        chosen = _fold_pairs(rng, fold, sizes, pairs, crossed=True)
        for group, label in zip(chosen, (1, -1), strict=True):
            for sides in group:
                left, right = (_file_name(p, kinds[photo // 2], photo % 2) for p, photo in sides)
                yield f"{left} {right} {label}"
