"""The demo's groups: drawn people in RFW's layout, its photos not aligned, as RFW's are not.

The groups have RFW's names, which its files need, and differ in nothing but how they are drawn: in
"Caucasian" the people look more alike, and in "Indian" the photos are small and blurred. All have
skins and hair of all colours.
"""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.demo.loose import LoosePhoto, still
from Utils.Datasets_Utils.demo.on_disk import made_once, write_image
from Utils.Datasets_Utils.demo.pairs import PHOTOS, lfw_lines
from Utils.Datasets_Utils.demo.people import TRAIT_RANGES, Identity, random_identity
from Utils.Datasets_Utils.demo.sets import DemoSets

GROUPS = ("African", "Asian", "Caucasian", "Indian")
ALIKE, BLURRED = "Caucasian", "Indian"

_RANDOM = (0, 8)  # key of the random numbers, which no other set has
_FOLDS, _PEOPLE, _PAIRS = 10, 50, 40  # of a group: folds, people in all, pairs in each fold
_SIZE = 144  # of a photo, in pixels
_SMALL = 56  # of a blurred one before it is enlarged
_SHARE = 0.45  # of the way to one face, by which people are more alike
_MIXED = (*sorted({*TRAIT_RANGES} - {"eye_colour"}), "skin_colour", "hair_colour", "lip_colour")


def ensure_rfw(demo: DemoSets) -> Path:
    """The demo's four groups, drawn unless they are there: the folder of `test`, as RFW has it.

    Raises RunError if it can't be written.
    """
    return made_once(demo.root / "rfw", _make)


def _make(root: Path) -> None:
    count = len(GROUPS) * _PEOPLE * PHOTOS
    with tqdm(total=count, desc="Drawing RFW's four groups", unit="face") as bar:
        for number, group in enumerate(GROUPS):
            lists = root / "test/txts" / group
            lists.mkdir(parents=True)
            names = [f"m.0demo{number}{person:02d}" for person in range(_PEOPLE)]
            marks = []
            for person, name in enumerate(names):
                (root / "test/data" / group / name).mkdir(parents=True)
                for photo, shot in enumerate(_photos(number, person), 1):
                    path = f"/test/data/{group}/{name}/{name}_{photo:04d}.jpg"
                    write_image(root / path[1:], _image(group, shot))
                    points = (shot.points() + 0.5) * (_SIZE / shot.size) - 0.5
                    fields = (f"{value:.2f}" for value in points.ravel())
                    marks.append("\t".join((path, str(person), *fields)))
                    bar.update()
            rng = np.random.default_rng([*_RANDOM, number, _PEOPLE])
            pairs = lfw_lines(rng, names, _FOLDS, _PAIRS)
            for kind, lines in (("pairs", pairs), ("lmk", marks)):
                (lists / f"{group}_{kind}.txt").write_text("".join(f"{line}\n" for line in lines))


def _photos(group: int, person: int) -> list[LoosePhoto]:
    rng = np.random.default_rng([*_RANDOM, group, person])
    identity, age = random_identity(rng), rng.uniform(22, 56)
    if GROUPS[group] == ALIKE:
        identity = _nearer(identity, random_identity(np.random.default_rng(_RANDOM)))
    size = _SMALL if GROUPS[group] == BLURRED else _SIZE
    return [still(rng, identity, age)._replace(size=size) for _ in range(PHOTOS)]


def _nearer(person: Identity, other: Identity) -> Identity:
    """The person, changed towards another one."""
    changed = {}
    for name in _MIXED:
        own, others = (np.array(getattr(each, name)) for each in (person, other))
        changed[name] = own + _SHARE * (others - own)
    return replace(person, **changed)


def _image(group: str, shot: LoosePhoto) -> np.ndarray:
    """The photo at its size on disk."""
    image = shot.draw()
    if group != BLURRED:
        return image
    return cv2.resize(image, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC)
