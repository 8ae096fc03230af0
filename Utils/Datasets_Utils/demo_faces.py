"""Procedurally drawn faces: an `Identity` says who, a `Photo` says under which conditions.

A face is a set of outlines in *face coordinates*: pixels of a 112×112 crop, the origin between the
eyes, x to the viewer's right, y down. They lie on a head whose horizontal slices are half-ellipses;
the head is turned, projected, and aligned by its five landmarks to the ArcFace template with a
least-squares similarity, the way real photographs are cropped. Light, colour and grain come last.

Everything is a function of its arguments: the same identity and photo give the same pixels.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
SUPERSAMPLING = 2
CHEEK = 8.0  # y of the widest slice of the head
SKINS = np.array(
    [[252, 226, 205], [236, 190, 150], [198, 141, 98], [140, 92, 62], [88, 58, 44]], float
)
HAIRS = np.array(
    [[26, 22, 24], [62, 40, 28], [112, 70, 40], [150, 62, 28], [196, 148, 82], [232, 208, 150]],
    float,
)
EYES = np.array(
    [[58, 36, 22], [110, 72, 34], [96, 120, 60], [70, 120, 170], [120, 140, 150]], float
)


@dataclass(frozen=True)
class Identity:
    """Who is drawn. Lengths in face coordinates, colours as RGB 0-255, the rest fractions."""

    face_width: float
    jaw: float
    chin: float
    eye_gap: float
    eye_width: float
    eye_open: float
    eye_tilt: float
    eye_colour: tuple[float, ...]
    brow_height: float
    brow_thickness: float
    brow_length: float
    brow_tilt: float
    brow_arch: float
    nose_length: float
    nose_width: float
    nose_depth: float
    mouth_height: float
    mouth_width: float
    upper_lip: float
    lower_lip: float
    lip_colour: tuple[float, ...]
    skin_colour: tuple[float, ...]
    hair_colour: tuple[float, ...]
    hairline: float
    hair_temple: float
    hair_part: float
    hair_peak: float
    hair_volume: float
    hair_length: float
    hair_curl: float
    ear: float
    beard: float
    moustache: float
    blush: float
    greying: float
    moles: tuple[tuple[float, float, float], ...]
    freckles: tuple[tuple[float, float], ...]
    scar: tuple[float, ...]


@dataclass(frozen=True)
class Photo:
    """How it is drawn: angles in degrees, age in years, lengths in pixels, the rest fractions."""

    yaw: float
    pitch: float
    roll: float
    shift_x: float
    shift_y: float
    zoom: float
    age: float
    smile: float
    mouth_open: float
    brow_raise: float
    squint: float
    gaze: float
    light_azimuth: float
    light_elevation: float
    ambient: float
    exposure: float
    warmth: float
    greenness: float
    saturation: float
    contrast: float
    blur: float
    noise: float
    glasses: str
    cover: str
    cover_place: float
    hair_change: float
    seed: int


PHOTO_RANGES = {
    "yaw": (-25.0, 25.0),
    "pitch": (-11.0, 11.0),
    "roll": (-4.0, 4.0),
    "shift_x": (-2.0, 2.0),
    "shift_y": (-2.0, 2.0),
    "zoom": (0.96, 1.04),
    "age": (18.0, 60.0),
    "smile": (-0.4, 1.0),
    "mouth_open": (-0.8, 0.9),
    "brow_raise": (-0.6, 0.8),
    "squint": (0.0, 0.35),
    "gaze": (-1.0, 1.0),
    "light_azimuth": (-80.0, 80.0),
    "light_elevation": (-15.0, 65.0),
    "ambient": (0.4, 0.8),
    "exposure": (0.75, 1.4),
    "warmth": (-0.24, 0.24),
    "greenness": (-0.12, 0.12),
    "saturation": (0.65, 1.2),
    "contrast": (0.75, 1.2),
    "blur": (0.0, 1.0),
    "noise": (0.0, 6.0),
    "hair_change": (-1.0, 1.0),
    "cover_place": (-1.0, 1.0),
}


def random_identity(rng: np.random.Generator) -> Identity:
    """Draw a person; about forty independent traits."""
    melanin = _trait(rng, 0, len(SKINS) - 1.01)
    skin = _between(SKINS, melanin) * rng.uniform(0.95, 1.05, 3)
    # Dark skin with fair hair is left out: it would be the easiest cue and looks odd.
    fairest = len(HAIRS) - 1.01 if melanin < 2 else 2.2
    hair = _between(HAIRS, _trait(rng, 0, fairest)) * rng.uniform(0.85, 1.15, 3)
    lips = skin * np.array([0.92, 0.62, 0.62]) * rng.uniform(0.75, 1.15, 3)
    beard, moustache = _facial_hair(rng)
    long_hair = beard == 0 and rng.random() < 0.5
    return Identity(
        face_width=_trait(rng, 34, 45),
        jaw=_trait(rng, 1.3, 3.8),
        chin=_trait(rng, 53, 67),
        eye_gap=_trait(rng, 16, 21),
        eye_width=_trait(rng, 5.5, 11),
        eye_open=_trait(rng, 0.3, 0.78),
        eye_tilt=_trait(rng, -0.3, 0.3),
        eye_colour=tuple(_between(EYES, _trait(rng, 0, len(EYES) - 1.01))),
        brow_height=_trait(rng, 8, 14.5),
        brow_thickness=_trait(rng, 0.8, 5),
        brow_length=_trait(rng, 7.5, 13.5),
        brow_tilt=_trait(rng, -0.4, 0.35),
        brow_arch=_trait(rng, -0.5, 4),
        nose_length=_trait(rng, 16, 28),
        nose_width=_trait(rng, 4, 11.5),
        nose_depth=_trait(rng, 7, 17),
        mouth_height=_trait(rng, 36, 45),
        mouth_width=_trait(rng, 8.5, 19),
        upper_lip=_trait(rng, 1.1, 5),
        lower_lip=_trait(rng, 1.6, 6.8),
        lip_colour=tuple(np.clip(lips, 0, 255)),
        skin_colour=tuple(np.clip(skin, 0, 255)),
        hair_colour=tuple(np.clip(hair, 0, 255)),
        hairline=_trait(rng, -42, -15),
        hair_temple=_trait(rng, 3, 32),
        hair_part=_trait(rng, -1, 1),
        hair_peak=_trait(rng, -9, 9),
        hair_volume=_trait(rng, -1, 13),
        hair_length=_trait(rng, 32, 90) if long_hair else _trait(rng, -20, 12),
        hair_curl=max(0.0, _trait(rng, -1, 1)),
        ear=_trait(rng, 0.6, 1.6),
        beard=beard,
        moustache=moustache,
        blush=_trait(rng, 0, 1),
        greying=_trait(rng, 0.2, 0.8),
        moles=_moles(rng),
        freckles=_freckles(rng) if melanin < 1.6 and rng.random() < 0.35 else (),
        scar=tuple(rng.uniform([-24, 14, -8, 5], [24, 34, 8, 12])) if rng.random() < 0.2 else (),
    )


def random_photo(rng: np.random.Generator, **ranges: tuple[float, float]) -> Photo:
    """Draw conditions; `ranges` narrows any number of `PHOTO_RANGES` to (low, high).

    Two keys more: `glasses` and `cover`, the probabilities of wearing glasses (default 0.15) and of
    a hand or scarf before the face (default 0.08).
    """
    glasses_chance, cover_chance = ranges.pop("glasses", 0.15), ranges.pop("cover", 0.08)
    if unknown := set(ranges) - set(PHOTO_RANGES):
        raise ValueError(
            f"random_photo: unknown range {sorted(unknown)}, known {list(PHOTO_RANGES)}"
        )
    values = {name: rng.uniform(*span) for name, span in (PHOTO_RANGES | ranges).items()}
    glasses = rng.choice(["round", "square", "dark"], p=[0.45, 0.45, 0.1])
    cover = rng.choice(["hand", "scarf"])
    return Photo(
        **values,
        glasses=str(glasses) if rng.random() < glasses_chance else "",
        cover=str(cover) if rng.random() < cover_chance else "",
        seed=int(rng.integers(2**31)),
    )


def draw_face(identity: Identity, photo: Photo, size: int = 112) -> np.ndarray:
    """Draw the person under these conditions: uint8 size×size×3, RGB."""
    rng = np.random.default_rng(photo.seed)
    person = _aged(identity, photo.age)
    head = _Head(person, photo, size * SUPERSAMPLING)
    canvas = _background(rng, size * SUPERSAMPLING)
    colours = _Colours(person, photo, rng)
    for shape in _behind(person, photo, head, colours) + head.project_all(
        _skin(person, colours)
        + _marks(person, photo, colours)
        + _nose(person, photo, colours)
        + _mouth(person, photo, colours)
        + _eye(person, photo, colours, -1)
        + _eye(person, photo, colours, 1)
        + _glasses(person, photo, colours)
    ):
        shape.draw(canvas, head.unit)
    for shape in _before(person, photo, head, colours):
        shape.draw(canvas, head.unit)
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return _photograph(small, photo, head.centre * (size / 112), rng)


# --- people -------------------------------------------------------------------------------------


def _trait(rng: np.random.Generator, low: float, high: float) -> float:
    """A number of the range, the ends likelier than the middle: caricatures are told apart."""
    return low + (high - low) * float(np.sin(rng.uniform(0, np.pi / 2)) ** 2)


def _between(palette: np.ndarray, place: float) -> np.ndarray:
    """The colour at a fractional row of a palette."""
    row = int(place)
    return palette[row] + (palette[row + 1] - palette[row]) * (place - row)


def _facial_hair(rng: np.random.Generator) -> tuple[float, float]:
    kind = rng.random()
    if kind < 0.6:
        return 0.0, 0.0
    strength = rng.uniform(0.35, 0.95)
    return (0.0 if kind > 0.88 else strength), (0.0 if kind < 0.68 else strength)


def _moles(rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    places = rng.uniform([-27, -16, 0.9], [27, 50, 1.9], (rng.integers(0, 4), 3))
    return tuple(tuple(place) for place in places)


def _freckles(rng: np.random.Generator) -> tuple[tuple[float, float], ...]:
    places = rng.normal(0, 1, (rng.integers(14, 30), 2)) * [14, 4] + [0, 16]
    return tuple(tuple(place) for place in places)


def _aged(identity: Identity, age: float) -> Identity:
    """The same person at an age in years: fuller jaw, thinner lips and brows, grey hair."""
    old, young = np.clip((age - 40) / 35, 0, 1), np.clip((26 - age) / 16, 0, 1)
    grey = old * identity.greying
    changed = dict(identity.__dict__)
    changed["jaw"] += 1.1 * old - 0.2 * young
    changed["face_width"] += 2.0 * old - 1.0 * young
    changed["chin"] -= 2.5 * young
    changed["eye_open"] *= 1 + 0.12 * young - 0.25 * old
    changed["brow_thickness"] *= 1 - 0.25 * old
    changed["brow_height"] -= 1.2 * old
    changed["nose_length"] += 1.5 * old - 1.0 * young
    changed["nose_width"] += 1.2 * old
    changed["upper_lip"] *= 1 - 0.35 * old
    changed["lower_lip"] *= 1 - 0.3 * old
    changed["hairline"] -= 7 * old * identity.greying
    changed["beard"] *= 1 - young
    changed["moustache"] *= 1 - young
    hair = np.array(identity.hair_colour)
    changed["hair_colour"] = tuple(hair + (np.array([205, 205, 208]) - hair) * 0.85 * grey)
    return Identity(**changed)


# --- geometry -----------------------------------------------------------------------------------


class _Shape:
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


class _Head:
    """The turned head: takes face coordinates to pixels of the canvas."""

    def __init__(self, person: Identity, photo: Photo, size: int):
        self.person = person
        self.yaw, pitch = np.deg2rad([photo.yaw, photo.pitch])
        self.sin, self.cos = np.sin(self.yaw), np.cos(self.yaw)
        self.pitch_sin, self.pitch_cos = np.sin(pitch), np.cos(pitch)
        self.unit = size / 112
        self.rotation, self.offset = 1 + 0j, 0j
        self._align(photo)
        middle = self.place(np.array([[0.0, CHEEK - 4]]))[0] / self.unit
        self.centre = middle

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
        return np.stack([side * self.cos + front * self.sin, self._tilt(y, side, front)], axis=1)

    def _tilt(self, y: np.ndarray, side: np.ndarray, front: np.ndarray) -> np.ndarray:
        away = front * self.cos - side * self.sin - 30.0
        return y * self.pitch_cos - away * self.pitch_sin

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
        source = self.project(marks) @ [1, 1j]
        target = TEMPLATE @ [1, 1j]
        centred = source - source.mean()
        similarity = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
        error = photo.zoom * np.exp(1j * np.deg2rad(photo.roll))
        self.rotation = similarity * error
        self.offset = target.mean() + photo.shift_x + 1j * photo.shift_y
        self.offset -= self.rotation * source.mean()

    def place(self, plane: np.ndarray) -> np.ndarray:
        """Points of the picture's plane N×2 to canvas pixels N×2."""
        placed = (plane[:, 0] + 1j * plane[:, 1]) * self.rotation + self.offset
        return np.stack([placed.real, placed.imag], axis=1) * self.unit

    def project_all(self, shapes: list[_Shape]) -> list[_Shape]:
        """Project many outlines in one go: one call costs as much as one outline."""
        placed = self.place(self.project(np.concatenate([shape.points for shape in shapes])))
        ends = np.cumsum([len(shape.points) for shape in shapes])[:-1]
        parts = np.split(placed, ends)
        return [_Shape(part, s.colour, s.width) for part, s in zip(parts, shapes, strict=True)]

    def silhouette(self, y: np.ndarray, grow: float) -> tuple[np.ndarray, np.ndarray]:
        """Left and right x, in the picture's plane, of the head's slices at y, `grow` wider."""
        width, depth = self.half_width(y) + grow, self.depth(y) + grow
        back = 44.0 * np.sqrt(np.clip(1 - ((y + 15) / 46) ** 2, 0.02, 1)) + grow
        front = np.hypot(width * self.cos, depth * self.sin)
        rear = np.hypot(width * self.cos, back * self.sin)
        return (-rear, front) if self.yaw > 0 else (-front, rear)


class _Colours:
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


def _surface(x, y, bulge=0.0) -> np.ndarray:
    """N×3 surface points from numbers or arrays."""
    return np.stack(np.broadcast_arrays(x, y, bulge), axis=1).astype(float)


def _oval(x: float, y: float, width: float, height: float, bulge: float = 0.0, n: int = 12):
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return _surface(x + width * np.cos(turn), y + height * np.sin(turn), bulge)


# --- outlines, back to front --------------------------------------------------------------------


def _behind(person: Identity, photo: Photo, head: _Head, colours: _Colours) -> list[_Shape]:
    """Hair at the back, neck, clothes, skull and ears."""
    hair_end = person.hair_length + 4 * photo.hair_change
    volume = max(0.0, person.hair_volume + 1.5 * photo.hair_change)
    y = np.linspace(-60, max(hair_end, 20), 22)
    shapes = []
    if hair_end > 20:
        left, right = head.silhouette(np.minimum(y, CHEEK), volume * 0.6 + 3)
        shapes.append(_closed(left, right, y, colours.hair * 0.8))
    neck_shift = -10 * head.sin
    neck = np.array(
        [[-24, 30], [24, 30], [26, 80], [90, 96], [90, 130], [-90, 130], [-90, 96], [-26, 80]]
    )
    shapes.append(_Shape(neck[[0, 1, 2, 7]] + [neck_shift, 0], colours.shade(0.72)))
    shapes.append(_Shape(neck[2:] + [neck_shift, 0], colours.clothes))
    y = np.linspace(-60, 24, 20)
    bumps = 1 + person.hair_curl * 0.35 * np.cos(np.arange(20) * 2.6)
    left, right = head.silhouette(y, volume * 0.7 + 0.8)
    cap = _closed(left * (1 + (bumps - 1) * 0.2), right * (1 + (bumps - 1) * 0.2), y, colours.hair)
    cap.points[:, 1] -= volume * np.clip(-cap.points[:, 1] / 30, 0, 1)
    shapes.append(cap)
    if hair_end < 20:
        shapes += [_ear(person, head, colours, side) for side in (-1, 1)]
    return [_Shape(head.place(s.points), s.colour, s.width) for s in shapes]


def _closed(left: np.ndarray, right: np.ndarray, y: np.ndarray, colour: np.ndarray) -> _Shape:
    x = np.concatenate([left, right[::-1]])
    return _Shape(np.stack([x, np.concatenate([y, y[::-1]])], axis=1), colour)


def _ear(person: Identity, head: _Head, colours: _Colours, side: int) -> _Shape:
    edge = side * person.face_width * head.cos
    width = 2.5 * person.ear + 6 * max(0.0, -side * head.sin)
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    x, y = edge + side * width * (0.4 + np.cos(turn)), 8 + 9 * person.ear * np.sin(turn)
    return _Shape(np.stack([x, y], axis=1), colours.shade(0.85))


def _skin(person: Identity, colours: _Colours) -> list[_Shape]:
    """The face below the hairline, cheeks, beard."""
    u = np.linspace(-0.999, 0.999, 17)
    skewed = u - 0.35 * person.hair_part * (1 - u**2)
    line = person.hairline + person.hair_temple * np.abs(skewed) ** 2.2
    line = line + person.hair_peak * np.exp(-((u * 4) ** 2)) - 3 * person.hair_part * u
    sides = np.linspace(line[-1] + 4, person.chin, 14)
    x = np.concatenate([u * person.face_width, np.full(14, 99.0), np.full(14, -99.0)])
    y = np.concatenate([line, sides, sides[::-1]])
    shapes = [_Shape(_surface(x, y), colours.skin)]
    if person.blush > 0.3:
        blush = colours.skin * np.array([1.0, 1 - 0.16 * person.blush, 1 - 0.14 * person.blush])
        shapes += [_Shape(_oval(side * 22, 24, 7.5, 6), blush) for side in (-1, 1)]
    if person.beard > 0.05:
        shapes.append(_beard(person, colours))
    if person.moustache > 0.05:
        shapes.append(_moustache(person, colours))
    return shapes


def _beard(person: Identity, colours: _Colours) -> _Shape:
    down = np.linspace(16, person.chin, 8)
    across = np.linspace(-0.75, 0.75, 9) * person.face_width
    inner = person.mouth_height - 5 + 8 * np.cos(across / person.face_width * 3.4) ** 2
    x = np.concatenate([np.full(8, -99.0), np.full(8, 99.0), across[::-1]])
    y = np.concatenate([down, down[::-1], inner[::-1]])
    return _Shape(_surface(x, y), _mixed(colours.skin, colours.hair, person.beard))


def _moustache(person: Identity, colours: _Colours) -> _Shape:
    x = np.linspace(-1, 1, 9) * person.mouth_width * 1.05
    bow = person.mouth_height + 3 * np.abs(x / person.mouth_width) ** 2
    top = bow - 7 + 3 * np.abs(x / person.mouth_width)
    points = _surface(np.concatenate([x, x[::-1]]), np.concatenate([top, bow[::-1]]), 1.0)
    return _Shape(points, _mixed(colours.skin, colours.hair, person.moustache))


def _mixed(first: np.ndarray, second: np.ndarray, part: float) -> np.ndarray:
    return first + (second - first) * part


def _marks(person: Identity, photo: Photo, colours: _Colours) -> list[_Shape]:
    """Moles, freckles, a scar, and the wrinkles of age."""
    shapes = [_Shape(_oval(x, y, r, r, n=8), colours.shade(0.35)) for x, y, r in person.moles]
    shapes += [_Shape(_oval(x, y, 0.6, 0.6, n=5), colours.shade(0.72)) for x, y in person.freckles]
    if person.scar:
        x, y, dx, dy = person.scar
        shapes.append(_Shape(_surface([x, x + dx], [y, y + dy]), colours.shade(1.3), 1.0))
    old = np.clip((photo.age - 38) / 35, 0, 1)
    if old > 0.1:
        shapes += _wrinkles(person, colours.shade(1 - 0.35 * old), 0.5 + 0.6 * old)
    return shapes


def _wrinkles(person: Identity, colour: np.ndarray, width: float) -> list[_Shape]:
    x = np.linspace(-16, 16, 7)
    lines = [_surface(x, y + (x / 10) ** 2 * 0.6) for y in (-24, -20)]
    for side in (-1, 1):
        fold = np.linspace(0, 1, 5)
        start, end = person.nose_width + 2, person.mouth_width + 5
        reach = person.mouth_height - person.nose_length + 4
        lines.append(
            _surface(
                side * (start + (end - start) * fold**0.7), person.nose_length - 2 + reach * fold
            )
        )
        corner = side * (person.eye_gap + person.eye_width + 2)
        lines += [_surface([corner, corner + side * 5], [0, y]) for y in (-3, 1, 4)]
        bag = np.linspace(-0.8, 0.8, 5)
        lines.append(_surface(side * person.eye_gap + bag * person.eye_width, 7.5 - 2.5 * bag**2))
    return [_Shape(line, colour, width) for line in lines]


def _nose(person: Identity, photo: Photo, colours: _Colours) -> list[_Shape]:
    """A wedge whose lit and shaded halves follow the light, wings and nostrils."""
    n, w, d = person.nose_length, person.nose_width, person.nose_depth
    lit = -1 if photo.light_azimuth < 0 else 1
    shapes = []
    for side, tone in ((-lit, 0.84), (lit, 0.97)):
        x = side * np.array([0.0, 2.2, 2.6, w * 0.9, w, w * 0.6, 0.0])
        y = np.array([-3, -2, n * 0.5, n * 0.82, n * 0.97, n + 2, n + 3])
        bulge = np.array([1.5, 0.5, d * 0.3, d * 0.25, 0.0, d * 0.25, d * 0.8])
        shapes.append(_Shape(_surface(x, y, bulge), colours.shade(tone)))
    ridge = _surface(
        [0, 1.3, 2.4, 0, -2.4, -1.3],
        [-3, n * 0.5, n, n + 3, n, n * 0.5],
        np.array([1.5, 0.55 * d, d, 0.85 * d, d, 0.55 * d]),
    )
    shapes.append(_Shape(ridge, colours.shade(1.07)))
    for side in (-1, 1):
        nostril = _oval(side * w * 0.48, n + 1.6, w * 0.2 + 0.4, 1.1, d * 0.4, 8)
        shapes.append(_Shape(nostril, colours.shade(0.4)))
    return shapes


def _mouth(person: Identity, photo: Photo, colours: _Colours) -> list[_Shape]:
    x = np.linspace(-1, 1, 11)
    width = person.mouth_width * (1 + 0.14 * max(0.0, photo.smile))
    parting = max(0.0, photo.mouth_open) * 4.5
    rest = person.mouth_height - photo.smile * 3.0 * np.abs(x) ** 1.6
    arch = np.sqrt(1.0001 - x**2)
    bow = arch * (1 - 0.3 * np.exp(-((x * 5) ** 2)))
    upper, lower = rest - parting * 0.35 * arch, rest + parting * arch
    both = np.concatenate([x, x[::-1]]) * width
    outer = _surface(
        both,
        np.concatenate([upper - person.upper_lip * bow, (lower + person.lower_lip * arch)[::-1]]),
        1.0,
    )
    shapes = [_Shape(outer, colours.lips)]
    gap = _surface(both * 0.96, np.concatenate([upper, lower[::-1]]), 0.8)
    if parting > 1.2:
        shapes.append(_Shape(gap, np.array([70.0, 25, 28])))
        bite = np.minimum(upper + 2.2, lower)
        shapes.append(
            _Shape(
                _surface(both * 0.8, np.concatenate([upper, bite[::-1]]), 0.8),
                np.array([240.0, 236, 224]),
            )
        )
    else:
        shapes.append(_Shape(gap[:11], colours.lips * 0.45, 0.8))
    return shapes


def _eye(person: Identity, photo: Photo, colours: _Colours, side: int) -> list[_Shape]:
    """Socket, white, iris cut by the lids, lid line, brow."""
    wide = person.eye_width
    opening = wide * person.eye_open * (1 - photo.squint) * (1 + 0.12 * photo.brow_raise)
    x = np.linspace(-1, 1, 9)
    slant = -person.eye_tilt * x * wide
    upper = slant - opening * np.sqrt(1.0001 - x**2)
    lower = slant + 0.7 * opening * (1 - x**2)
    lid_x = side * (person.eye_gap + x * wide)
    lids = np.concatenate([lid_x, lid_x[::-1]])
    socket = _surface(lids, np.concatenate([upper - 2.6, lower[::-1] + 1.2]))
    white = _surface(lids, np.concatenate([upper, lower[::-1]]))
    shapes = [_Shape(socket, colours.shade(0.86)), _Shape(white, np.array([238.0, 236, 232]))]
    centre = photo.gaze * 0.22 * wide * side
    radius = min(4.6, wide * 0.52)
    for part, colour in ((1.0, colours.iris), (0.48, np.array([12.0, 10, 12]))):
        disc = _oval(centre, -0.1 * opening, radius * part, radius * part, n=14)
        top = np.interp(disc[:, 0], x * wide, upper)
        disc[:, 1] = np.clip(disc[:, 1], top, np.interp(disc[:, 0], x * wide, lower))
        disc[:, 0] = side * (person.eye_gap + disc[:, 0])
        shapes.append(_Shape(disc, colour))
    glint = side * (person.eye_gap + centre) + 1.2
    shapes.append(_Shape(_oval(glint, -1.2, 0.8, 0.8, n=6), np.array([250.0, 250, 250])))
    shapes.append(_Shape(_surface(lid_x, upper), colours.shade(0.25), 1.0))
    return shapes + [_brow(person, photo, colours, side)]


def _brow(person: Identity, photo: Photo, colours: _Colours, side: int) -> _Shape:
    x = np.linspace(-1, 1, 7)
    height = -person.brow_height - 2.2 * photo.brow_raise
    middle = height - person.brow_tilt * x * 6 - person.brow_arch * (1 - x**2)
    half = person.brow_thickness * 0.5 * (1 - 0.55 * np.clip(x, -0.2, 1))
    across = side * (person.eye_gap + 0.6 + x * person.brow_length)
    points = _surface(
        np.concatenate([across, across[::-1]]),
        np.concatenate([middle - half, (middle + half)[::-1]]),
    )
    return _Shape(points, _mixed(colours.hair * 0.75, colours.skin, 0.1))


def _glasses(person: Identity, photo: Photo, colours: _Colours) -> list[_Shape]:
    if not photo.glasses:
        return []
    shapes = []
    power = 0.5 if photo.glasses == "square" else 1.0
    turn = np.linspace(0, 2 * np.pi, 21)
    for side in (-1, 1):
        x = (
            side * (person.eye_gap + 0.5)
            + 13 * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** power
        )
        y = 1.5 + 10 * np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** power
        rim = _surface(x, y, 4.0)
        if photo.glasses == "dark":
            shapes.append(_Shape(rim, colours.thing * 0.25))
        shapes.append(_Shape(rim, colours.thing * 0.6, 1.3))
        temple = side * (person.eye_gap + 13.5)
        shapes.append(
            _Shape(_surface([temple, side * 99.0], [-1, -1], [4, 1]), colours.thing * 0.6, 1.3)
        )
    bridge = person.eye_gap - 12.5
    shapes.append(_Shape(_surface([-bridge, 0, bridge], [0, -1, 0], 6.0), colours.thing * 0.6, 1.3))
    return shapes


def _before(person: Identity, photo: Photo, head: _Head, colours: _Colours) -> list[_Shape]:
    """Locks beside the face, then a hand or a scarf; in the picture's plane."""
    shapes = []
    if person.hair_length > 20:
        end = person.hair_length + 4 * photo.hair_change
        y = np.linspace(person.hairline - 6, end, 12)
        left, right = head.silhouette(np.minimum(y, CHEEK), 2.0)
        grown = np.clip((y - y[0]) / 22, 0.2, 1)
        for edge, side in ((left, -1), (right, 1)):
            if side * head.sin > 0.3:
                continue  # the lock on the side turned away would hide the profile
            thick = grown * (
                7 + 2 * np.sin(y * 0.12 + person.hair_part * 3) * (1 + person.hair_curl)
            )
            shapes.append(_closed(edge, edge - side * thick, y, colours.hair * 0.92))
    place = photo.cover_place
    if photo.cover == "scarf":
        edge = person.mouth_height + 4 + 7 * place
        outline = np.array(
            [[-70, edge + 6], [-20, edge], [20, edge + 2], [70, edge + 5], [70, 130], [-70, 130]]
        )
        shapes.append(_Shape(outline, colours.thing))
    elif photo.cover == "hand":
        side = -1 if place < 0 else 1
        for finger in range(4):
            tip = np.array([side * (20 + 3 * finger), 12 + 9 * finger + 24 * abs(place)])
            root = tip + [side * 60, 26]
            shapes.append(_Shape(np.stack([tip, root]), colours.shade(0.9 - 0.04 * finger), 10))
    return [_Shape(head.place(s.points), s.colour, s.width) for s in shapes]


# --- the picture --------------------------------------------------------------------------------


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
