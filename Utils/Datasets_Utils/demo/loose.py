"""Photos of demo faces as a camera took them: tilted, off the middle, of any size; not aligned.

With each come the five points and the score that a face detector would give.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from Utils.Datasets_Utils.demo.camera import HeadShape
from Utils.Datasets_Utils.demo.faces import SUPERSAMPLING, draw_face
from Utils.Datasets_Utils.demo.people import Identity, Photo, aged, random_photo

# How a face lies in its photo. `zoom` is its size, where 1 fills the photo as an aligned crop does.
_PLACE = {"roll": (-28.0, 28.0), "shift_x": (-9.0, 9.0), "shift_y": (-14.0, 0.0)}
_PLACE["zoom"] = (0.54, 0.76)
_STILL = {"yaw": (-35.0, 35.0), **_PLACE}
_CLIP = {"yaw": (-55.0, 55.0), "blur": (0.3, 1.3), "noise": (2.0, 9.0), **_PLACE}
# What differs between the frames of a clip.
_MOVES = ("yaw", "pitch", "roll", "shift_x", "shift_y", "smile", "mouth_open", "brow_raise", "gaze")
_SCORES = (0.1, 0.999)


class LoosePhoto(NamedTuple):
    """What to draw. size: of the square photo, in pixels."""

    person: Identity
    photo: Photo
    size: int

    def draw(self) -> np.ndarray:
        """uint8 size×size×3, RGB."""
        return draw_face(self.person, self.photo, self.size)

    def points(self) -> np.ndarray:
        """Left eye, right eye, nose, left and right corner of the mouth, as seen in the photo: 5×2
        pixels, x and y."""
        person = aged(self.person, self.photo.age)
        marks = HeadShape(person, self.photo, self.size * SUPERSAMPLING).marks
        return (marks + 0.5) / SUPERSAMPLING - 0.5

    def score(self) -> float:
        """How sure a detector would be, 0.1 to 0.999: less of small, turned, blurred, noisy, dark
        and covered faces."""
        photo = self.photo
        small = 1 - min(self.size * photo.zoom / 112, 1)
        turned, dark = (photo.yaw / 76) ** 2, max(0.0, 1 - photo.exposure)
        doubt = 0.35 * small + 0.3 * turned + 0.15 * photo.blur + 0.01 * photo.noise + 0.4 * dark
        return float(np.clip(1 - doubt - 0.1 * bool(photo.cover), *_SCORES))


def still(rng: np.random.Generator, person: Identity, usual_age: float) -> LoosePhoto:
    """A photo by a good camera, 100 to 180 pixels wide."""
    age = (usual_age - 4, usual_age + 4)
    return LoosePhoto(person, random_photo(rng, age=age, **_STILL), int(rng.integers(100, 181)))


def clip(
    rng: np.random.Generator, person: Identity, usual_age: float, frames: int
) -> list[LoosePhoto]:
    """Frames of one clip, 44 to 100 pixels wide: the same place, light and clothes."""
    age = (usual_age - 4, usual_age + 4)
    first, size = random_photo(rng, age=age, **_CLIP), int(rng.integers(44, 101))
    others = [random_photo(rng, age=age, **_CLIP) for _ in range(frames - 1)]
    moved = [replace(first, **{name: getattr(p, name) for name in _MOVES}) for p in others]
    return [LoosePhoto(person, photo, size) for photo in (first, *moved)]
