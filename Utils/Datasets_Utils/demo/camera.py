"""The camera of a demo face: the turned head in the picture, then background, light and grain.

Outlines are in *face coordinates*: pixels of a 112×112 crop, the origin between the eyes, x to the
viewer's right, y down. They are on a head whose horizontal slices are half-ellipses; it is turned,
projected, and aligned by its five landmarks to the ArcFace template with a least-squares
similarity, the way real photographs are cropped.
"""

from functools import lru_cache

import cv2
import numpy as np

from Utils.Datasets_Utils.alignment.transform import TEMPLATE
from Utils.Datasets_Utils.demo.people import Identity, Photo

CHEEK = 8.0  # y of the widest slice of the head


class Shape:
    """A filled outline, or with a `width` an open line, of one colour; points N×2 or N×3."""

    __slots__ = ("colour", "points", "width")

    def __init__(self, points: np.ndarray, colour: np.ndarray, width: float = 0.0):
        self.points, self.colour, self.width = points, colour, width

    def draw(self, canvas: np.ndarray, unit: float) -> None:
        points = [np.rint(self.points * 16).astype(np.int32)]
        colour = [float(value) for value in self.colour]
        if self.width:
            width = max(1, round(self.width * unit))
            cv2.polylines(canvas, points, False, colour, width, cv2.LINE_AA, 4)
        else:
            cv2.fillPoly(canvas, points, colour, cv2.LINE_AA, 4)


class HeadShape:
    """The turned head: maps face coordinates to pixels of the canvas.

    size: of the canvas in pixels. unit: pixels of the canvas in one face coordinate. marks: where
    the eyes, the nose and the corners of the mouth are on the canvas, 5×2.
    """

    def __init__(self, person: Identity, photo: Photo, size: int):
        self.person = person
        self.yaw, pitch = np.deg2rad([photo.yaw, photo.pitch])
        self.sin, self.cos = np.sin(self.yaw), np.cos(self.yaw)
        self.pitch_sin, self.pitch_cos = np.sin(pitch), np.cos(pitch)
        self.unit = size / 112
        self.rotation, self.offset = 1 + 0j, 0j
        self._align(photo)
        self.centre = self.place(np.array([[0.0, CHEEK - 4]]))[0] / self.unit

    def half_width(self, y: np.ndarray) -> np.ndarray:
        top, chin = -58.0, self.person.chin
        above = np.clip((CHEEK - y) / (CHEEK - top), 0, 1)
        below = np.clip((y - CHEEK) / (chin - CHEEK), 0, 1)
        shape = np.where(y < CHEEK, above**2.4, below**self.person.jaw)
        return self.person.face_width * np.sqrt(1.0001 - shape)

    def depth(self, y: np.ndarray) -> np.ndarray:
        below = np.clip((y - CHEEK) / (self.person.chin + 1 - CHEEK), 0, 1)
        above = np.clip((CHEEK - y) / 70, 0, 1)
        return 34.0 * np.sqrt(1.0001 - above**2.5 - below**7)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Points of the surface N×3 (x, y, height above it) to the plane of the picture, N×2."""
        x, y, bulge = points.T
        width, depth = self.half_width(y), self.depth(y)
        angle = np.arcsin(np.clip(x / width, -1, 1))
        # What has turned out of sight collapses onto the silhouette, so it hides itself.
        limit = np.arctan2(width * self.cos, depth * abs(self.sin))
        angle = np.minimum(angle, limit) if self.yaw > 0 else np.maximum(angle, -limit)
        side, front = width * np.sin(angle), depth * np.cos(angle) + bulge
        away = front * self.cos - side * self.sin - 30.0
        down = y * self.pitch_cos - away * self.pitch_sin
        return np.stack([side * self.cos + front * self.sin, down], axis=1)

    def _align(self, photo: Photo) -> None:
        """Least-squares similarity of the five landmarks to the template, then the photo's."""
        p = self.person
        marks = np.array(
            [
                [-p.eye_gap, 0, 0],
                [p.eye_gap, 0, 0],
                [0, p.nose_length, p.nose_depth],
                [-p.mouth_width, p.mouth_height, 0],
                [p.mouth_width, p.mouth_height, 0],
            ]
        )
        plane = self.project(marks)
        source = plane @ [1, 1j]
        target = TEMPLATE @ [1, 1j]
        centred = source - source.mean()
        similarity = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
        error = photo.zoom * np.exp(1j * np.deg2rad(photo.roll))
        self.rotation = similarity * error
        self.offset = target.mean() + photo.shift_x + 1j * photo.shift_y
        self.offset -= self.rotation * source.mean()
        self.marks = self.place(plane)

    def place(self, plane: np.ndarray) -> np.ndarray:
        """Points of the picture's plane N×2 to canvas pixels N×2."""
        placed = (plane[:, 0] + 1j * plane[:, 1]) * self.rotation + self.offset
        return np.stack([placed.real, placed.imag], axis=1) * self.unit

    def project_all(self, shapes: list[Shape]) -> list[Shape]:
        """Project many outlines in one go: one call costs as much as one outline."""
        placed = self.place(self.project(np.concatenate([shape.points for shape in shapes])))
        ends = np.cumsum([len(shape.points) for shape in shapes])[:-1]
        parts = np.split(placed, ends)
        return [Shape(part, s.colour, s.width) for part, s in zip(parts, shapes, strict=True)]

    def silhouette(self, y: np.ndarray, grow: float) -> tuple[np.ndarray, np.ndarray]:
        """Left and right x, in the picture's plane, of the head's slices at y, `grow` wider."""
        width, depth = self.half_width(y) + grow, self.depth(y) + grow
        back = 44.0 * np.sqrt(np.clip(1 - ((y + 15) / 46) ** 2, 0.02, 1)) + grow
        front = np.hypot(width * self.cos, depth * self.sin)
        rear = np.hypot(width * self.cos, back * self.sin)
        return (-rear, front) if self.yaw > 0 else (-front, rear)


class Colours:
    """The colours of one photo of a person, as RGB arrays."""

    def __init__(self, person: Identity, photo: Photo, rng: np.random.Generator):
        self.skin = np.array(person.skin_colour)
        self.hair = np.array(person.hair_colour)
        self.lips = np.array(person.lip_colour)
        self.iris = np.array(person.eye_colour)
        self.clothes = rng.uniform(20, 240, 3)
        self.thing = rng.uniform(20, 230, 3)

    def shade(self, factor: float) -> np.ndarray:
        """Skin, darker and redder below 1, lighter above."""
        return np.clip(self.skin * factor ** np.array([0.85, 1.05, 1.05]), 0, 255)


def surface(x, y, bulge=0.0) -> np.ndarray:
    """N×3 surface points from numbers or arrays."""
    return np.stack(np.broadcast_arrays(x, y, bulge), axis=1).astype(float)


def oval(x: float, y: float, width: float, height: float, bulge: float = 0.0, n: int = 12):
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return surface(x + width * np.cos(turn), y + height * np.sin(turn), bulge)


def closed(left: np.ndarray, right: np.ndarray, y: np.ndarray, colour: np.ndarray) -> Shape:
    x = np.concatenate([left, right[::-1]])
    return Shape(np.stack([x, np.concatenate([y, y[::-1]])], axis=1), colour)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
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


def photograph(
    picture: np.ndarray, photo: Photo, centre: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Light, colour cast, exposure, blur and grain, as a camera would add them.

    picture: uint8 size×size×3. centre: (x, y) of the head in it.
    """
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


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = np.arange(size, dtype=np.float32)
    return line[None, :], line[:, None]
