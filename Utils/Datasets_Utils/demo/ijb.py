"""The demo's IJB-C: templates of stills and clips of 40 people, in loose crops.

Folders and lists are those of insightface's distribution (see Evaluation_Utils/ijb/lists.py). Each
person is in one of the two galleries, with two stills and a clip, and is searched for three times:
with a still, with a clip, and with both. All probes are paired with all of the galleries.
"""

import itertools
from pathlib import Path

import numpy as np
from tqdm import tqdm

from Utils.Datasets_Utils.demo.loose import LoosePhoto, clip, still
from Utils.Datasets_Utils.demo.on_disk import made_once, write_image
from Utils.Datasets_Utils.demo.people import random_identity
from Utils.Datasets_Utils.demo.sets import DemoSets

_PEOPLE = 40
_RANDOM = (0, 7)  # key of the random numbers, which no other set has
# The stills and the frames of a clip in each template of a person, the gallery's first.
_TEMPLATES = ((2, 2), (1, 0), (0, 4), (1, 3))
_GALLERIES = ("G1", "G2")  # the first half of the people, and the others


def ensure_ijb(demo: DemoSets) -> Path:
    """The demo's IJB-C, drawn unless it is there: the folder of loose_crop and meta.

    Raises RunError if it can't be written.
    """
    return made_once(demo.root / "ijbc", _make)


def _make(root: Path) -> None:
    (root / "loose_crop").mkdir()
    (root / "meta").mkdir()
    lists: dict[str, list[str]] = {"face_tid_mid.txt": [], "name_5pts_score.txt": []}
    subjects: list[list[str]] = [[] for _ in _TEMPLATES]  # lines of each kind of template
    photos = tqdm(_photos(), desc="Drawing IJB-C", unit="face")
    for number, (template, media, photo) in enumerate(photos, 1):
        name = f"{number}.jpg"
        write_image(root / "loose_crop" / name, photo.draw())
        points = " ".join(f"{value:.3f}" for value in photo.points().ravel())
        lists["face_tid_mid.txt"].append(f"{name} {template} {media}")
        lists["name_5pts_score.txt"].append(f"{name} {points} {photo.score():.3f}")
        kind, person = divmod(template - 1, _PEOPLE)
        subjects[kind].append(f"{template},{person + 1},img/{name}")
    searched = range(_PEOPLE + 1, _PEOPLE * len(_TEMPLATES) + 1)
    lists["template_pair_label.txt"] = [
        f"{known} {probe} {int((probe - known) % _PEOPLE == 0)}"
        for known, probe in itertools.product(range(1, _PEOPLE + 1), searched)
    ]
    header = "TEMPLATE_ID,SUBJECT_ID,FILENAME"
    half = len(subjects[0]) // 2
    for name, lines in zip(_GALLERIES, (subjects[0][:half], subjects[0][half:]), strict=True):
        lists[f"1N_gallery_{name}.csv"] = [header, *lines]
    lists["1N_probe_mixed.csv"] = [header, *itertools.chain(*subjects[1:])]
    for name, lines in lists.items():
        (root / f"meta/ijbc_{name}").write_text("".join(f"{line}\n" for line in lines))


def _photos() -> list[tuple[int, int, LoosePhoto]]:
    """(template, media, photo): person p (from 1) has the templates p, p + 40, p + 80, p + 120;
    the frames of a clip have one media."""
    found: list[tuple[int, int, LoosePhoto]] = []
    media = itertools.count(1)
    for person in range(_PEOPLE):
        rng = np.random.default_rng([*_RANDOM, person])
        identity, age = random_identity(rng), rng.uniform(22, 56)
        for kind, (stills, frames) in enumerate(_TEMPLATES):
            shots = [[still(rng, identity, age)] for _ in range(stills)]
            shots += [clip(rng, identity, age, frames)] if frames else []
            template = 1 + person + kind * _PEOPLE
            for shot, number in zip(shots, media, strict=False):
                found += [(template, number, photo) for photo in shot]
    return found
