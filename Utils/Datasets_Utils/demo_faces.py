"""Procedurally drawn faces: an `Identity` says who, a `Photo` says under which conditions.

The face is drawn from outlines on a turned head; light, colour and grain come last, as a camera
would add them. The same identity and photo give the same pixels.
"""

from functools import lru_cache

import cv2
import numpy as np

from Utils.Datasets_Utils.demo_features import before, behind, on_the_face
from Utils.Datasets_Utils.demo_head import Colours, Head
from Utils.Datasets_Utils.demo_people import Identity, Photo, aged

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
