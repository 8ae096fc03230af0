"""The demo's TinyFace: its MegaFace's photos, made as poor as a surveillance camera's.

The people of the probes are in the gallery too, with other photos, among the distractors. Each face
is shrunk to 14 to 24 pixels, with noise, and enlarged to 112×112, as aligned copies of TinyFace
are. Folders and lists are the real ones'; the images have another suffix than the lists say, which
is usual for such copies.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import scipy.io

from Utils.Datasets_Utils.demo.on_disk import made_once, write_image
from Utils.Datasets_Utils.demo.sets import DemoSets

_SIDES = (14, 24)  # pixels of a face, as in the real set
_NOISE = 6.0  # standard deviation, in grey levels
_PROBES = 3  # every third photo of a person is a probe


def ensure_tinyface(demo: DemoSets) -> Path:
    """The demo's TinyFace, made from the other demo sets unless it is there. Returns the folder of
    Probe, Gallery_Match, Gallery_Distractor and the lists. Raises RunError if it can't be written.
    """
    made = made_once(demo.root / "tinyface", lambda folder: _make(demo, folder / "Testing_Set"))
    return made / "Testing_Set"


def _make(demo: DemoSets, root: Path) -> None:
    listed = json.loads(demo.facescrub_list.read_text())
    people = {name: number for number, name in enumerate(dict.fromkeys(listed["id"]), 1)}
    names: dict[str, list[str]] = {"Probe": [], "Gallery_Match": []}
    jobs = []
    for number, (path, person) in enumerate(zip(listed["path"], listed["id"], strict=True)):
        part = "Gallery_Match" if number % _PROBES else "Probe"
        names[part].append(f"{people[person]}_{number}")
        jobs.append((demo.facescrub_images / path, f"{part}/{names[part][-1]}"))
    for number, path in enumerate(sorted(demo.distractor_images.rglob("*.jpg"))):
        jobs.append((path, f"Gallery_Distractor/{number:06d}"))
    for part in (*names, "Gallery_Distractor"):
        (root / part).mkdir(parents=True)
    for number, (path, name) in enumerate(jobs):
        image = worsened(cv2.imread(str(path)), np.random.default_rng(number))
        write_image(root / f"{name}.png", image[..., ::-1])
    for part, file, prefix in (
        ("Probe", "probe", "probe"),
        ("Gallery_Match", "gallery_match", "gallery"),
    ):
        cells = np.empty((len(names[part]), 1), object)
        cells[:, 0] = [f"{name}.jpg" for name in names[part]]
        ids = np.array([[int(name.split("_")[0])] for name in names[part]], np.uint16)
        values = {f"{prefix}_set": cells, f"{prefix}_ids": ids}
        scipy.io.savemat(root / f"{file}_img_ID_pairs.mat", values)


def worsened(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A uint8 H×W×3 image as a small, noisy one of its content, enlarged to the same size."""
    height, width = image.shape[:2]
    side = int(rng.integers(_SIDES[0], _SIDES[1] + 1))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    small = (small + rng.normal(0, _NOISE, small.shape)).clip(0, 255).astype(np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
