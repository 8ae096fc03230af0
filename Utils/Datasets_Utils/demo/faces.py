"""Procedurally drawn faces: an `Identity` is the person, a `Photo` the conditions.

A face is a list of outlines in face coordinates (see camera.py), drawn from back to front. The same
identity and photo give the same pixels.
"""

import cv2
import numpy as np

from Utils.Datasets_Utils.demo.camera import (
    CHEEK,
    Colours,
    HeadShape,
    Shape,
    background,
    closed,
    oval,
    photograph,
    surface,
)
from Utils.Datasets_Utils.demo.people import Identity, Photo, aged

SUPERSAMPLING = 2


def draw_face(identity: Identity, photo: Photo, size: int = 112) -> np.ndarray:
    """Draw the person under these conditions: uint8 size×size×3, RGB."""
    rng = np.random.default_rng(photo.seed)
    person = aged(identity, photo.age)
    head = HeadShape(person, photo, size * SUPERSAMPLING)
    canvas = background(rng, size * SUPERSAMPLING)
    colours = Colours(person, photo, rng)
    shapes = _behind(person, photo, head, colours)
    shapes += head.project_all(_on_the_face(person, photo, colours))
    shapes += _before(person, photo, head, colours)
    for shape in shapes:
        shape.draw(canvas, head.unit)
    small = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    return photograph(small, photo, head.centre * (size / 112), rng)


def _behind(person: Identity, photo: Photo, head: HeadShape, colours: Colours) -> list[Shape]:
    """Hair at the back, neck, clothes, skull and ears."""
    hair_end = person.hair_length + 4 * photo.hair_change
    volume = max(0.0, person.hair_volume + 1.5 * photo.hair_change)
    y = np.linspace(-60, max(hair_end, 20), 22)
    shapes = []
    if hair_end > 20:
        left, right = head.silhouette(np.minimum(y, CHEEK), volume * 0.6 + 3)
        shapes.append(closed(left, right, y, colours.hair * 0.8))
    neck_shift = -10 * head.sin
    neck = np.array(
        [[-24, 30], [24, 30], [26, 80], [90, 96], [90, 130], [-90, 130], [-90, 96], [-26, 80]]
    )
    shapes.append(Shape(neck[[0, 1, 2, 7]] + [neck_shift, 0], colours.shade(0.72)))
    shapes.append(Shape(neck[2:] + [neck_shift, 0], colours.clothes))
    y = np.linspace(-60, 24, 20)
    bumps = 1 + person.hair_curl * 0.35 * np.cos(np.arange(20) * 2.6)
    left, right = head.silhouette(y, volume * 0.7 + 0.8)
    cap = closed(left * (1 + (bumps - 1) * 0.2), right * (1 + (bumps - 1) * 0.2), y, colours.hair)
    cap.points[:, 1] -= volume * np.clip(-cap.points[:, 1] / 30, 0, 1)
    shapes.append(cap)
    if hair_end < 20:
        shapes += [_ear(person, head, colours, side) for side in (-1, 1)]
    return [Shape(head.place(s.points), s.colour, s.width) for s in shapes]


def _ear(person: Identity, head: HeadShape, colours: Colours, side: int) -> Shape:
    edge = side * person.face_width * head.cos
    width = 2.5 * person.ear + 6 * max(0.0, -side * head.sin)
    turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
    x, y = edge + side * width * (0.4 + np.cos(turn)), 8 + 9 * person.ear * np.sin(turn)
    return Shape(np.stack([x, y], axis=1), colours.shade(0.85))


def _skin(person: Identity, colours: Colours) -> list[Shape]:
    """The face below the hairline, cheeks, beard."""
    u = np.linspace(-0.999, 0.999, 17)
    skewed = u - 0.35 * person.hair_part * (1 - u**2)
    line = person.hairline + person.hair_temple * np.abs(skewed) ** 2.2
    line = line + person.hair_peak * np.exp(-((u * 4) ** 2)) - 3 * person.hair_part * u
    sides = np.linspace(line[-1] + 4, person.chin, 14)
    x = np.concatenate([u * person.face_width, np.full(14, 99.0), np.full(14, -99.0)])
    y = np.concatenate([line, sides, sides[::-1]])
    shapes = [Shape(surface(x, y), colours.skin)]
    if person.blush > 0.3:
        blush = colours.skin * np.array([1.0, 1 - 0.16 * person.blush, 1 - 0.14 * person.blush])
        shapes += [Shape(oval(side * 22, 24, 7.5, 6), blush) for side in (-1, 1)]
    if person.beard > 0.05:
        shapes.append(_beard(person, colours))
    if person.moustache > 0.05:
        shapes.append(_moustache(person, colours))
    return shapes


def _beard(person: Identity, colours: Colours) -> Shape:
    down = np.linspace(16, person.chin, 8)
    across = np.linspace(-0.75, 0.75, 9) * person.face_width
    inner = person.mouth_height - 5 + 8 * np.cos(across / person.face_width * 3.4) ** 2
    x = np.concatenate([np.full(8, -99.0), np.full(8, 99.0), across[::-1]])
    y = np.concatenate([down, down[::-1], inner[::-1]])
    return Shape(surface(x, y), _mixed(colours.skin, colours.hair, person.beard))


def _moustache(person: Identity, colours: Colours) -> Shape:
    x = np.linspace(-1, 1, 9) * person.mouth_width * 1.05
    bow = person.mouth_height + 3 * np.abs(x / person.mouth_width) ** 2
    top = bow - 7 + 3 * np.abs(x / person.mouth_width)
    points = surface(np.concatenate([x, x[::-1]]), np.concatenate([top, bow[::-1]]), 1.0)
    return Shape(points, _mixed(colours.skin, colours.hair, person.moustache))


def _mixed(first: np.ndarray, second: np.ndarray, part: float) -> np.ndarray:
    return first + (second - first) * part


def _marks(person: Identity, photo: Photo, colours: Colours) -> list[Shape]:
    """Moles, freckles, a scar, and the wrinkles of age."""
    shapes = [Shape(oval(x, y, r, r, n=8), colours.shade(0.35)) for x, y, r in person.moles]
    shapes += [Shape(oval(x, y, 0.6, 0.6, n=5), colours.shade(0.72)) for x, y in person.freckles]
    if person.scar:
        x, y, dx, dy = person.scar
        shapes.append(Shape(surface([x, x + dx], [y, y + dy]), colours.shade(1.3), 1.0))
    old = np.clip((photo.age - 38) / 35, 0, 1)
    if old > 0.1:
        shapes += _wrinkles(person, colours.shade(1 - 0.35 * old), 0.5 + 0.6 * old)
    return shapes


def _wrinkles(person: Identity, colour: np.ndarray, width: float) -> list[Shape]:
    x = np.linspace(-16, 16, 7)
    lines = [surface(x, y + (x / 10) ** 2 * 0.6) for y in (-24, -20)]
    for side in (-1, 1):
        fold = np.linspace(0, 1, 5)
        start, end = person.nose_width + 2, person.mouth_width + 5
        reach = person.mouth_height - person.nose_length + 4
        lines.append(
            surface(
                side * (start + (end - start) * fold**0.7), person.nose_length - 2 + reach * fold
            )
        )
        corner = side * (person.eye_gap + person.eye_width + 2)
        lines += [surface([corner, corner + side * 5], [0, y]) for y in (-3, 1, 4)]
        bag = np.linspace(-0.8, 0.8, 5)
        lines.append(surface(side * person.eye_gap + bag * person.eye_width, 7.5 - 2.5 * bag**2))
    return [Shape(line, colour, width) for line in lines]


def _nose(person: Identity, photo: Photo, colours: Colours) -> list[Shape]:
    """A wedge whose lit and shaded halves follow the light, wings and nostrils."""
    n, w, d = person.nose_length, person.nose_width, person.nose_depth
    lit = -1 if photo.light_azimuth < 0 else 1
    shapes = []
    for side, tone in ((-lit, 0.84), (lit, 0.97)):
        x = side * np.array([0.0, 2.2, 2.6, w * 0.9, w, w * 0.6, 0.0])
        y = np.array([-3, -2, n * 0.5, n * 0.82, n * 0.97, n + 2, n + 3])
        bulge = np.array([1.5, 0.5, d * 0.3, d * 0.25, 0.0, d * 0.25, d * 0.8])
        shapes.append(Shape(surface(x, y, bulge), colours.shade(tone)))
    ridge = surface(
        [0, 1.3, 2.4, 0, -2.4, -1.3],
        [-3, n * 0.5, n, n + 3, n, n * 0.5],
        np.array([1.5, 0.55 * d, d, 0.85 * d, d, 0.55 * d]),
    )
    shapes.append(Shape(ridge, colours.shade(1.07)))
    for side in (-1, 1):
        nostril = oval(side * w * 0.48, n + 1.6, w * 0.2 + 0.4, 1.1, d * 0.4, 8)
        shapes.append(Shape(nostril, colours.shade(0.4)))
    return shapes


def _mouth(person: Identity, photo: Photo, colours: Colours) -> list[Shape]:
    x = np.linspace(-1, 1, 11)
    width = person.mouth_width * (1 + 0.14 * max(0.0, photo.smile))
    parting = max(0.0, photo.mouth_open) * 4.5
    rest = person.mouth_height - photo.smile * 3.0 * np.abs(x) ** 1.6
    arch = np.sqrt(1.0001 - x**2)
    bow = arch * (1 - 0.3 * np.exp(-((x * 5) ** 2)))
    upper, lower = rest - parting * 0.35 * arch, rest + parting * arch
    both = np.concatenate([x, x[::-1]]) * width
    outer = surface(
        both,
        np.concatenate([upper - person.upper_lip * bow, (lower + person.lower_lip * arch)[::-1]]),
        1.0,
    )
    shapes = [Shape(outer, colours.lips)]
    gap = surface(both * 0.96, np.concatenate([upper, lower[::-1]]), 0.8)
    if parting > 1.2:
        shapes.append(Shape(gap, np.array([70.0, 25, 28])))
        bite = np.minimum(upper + 2.2, lower)
        shapes.append(
            Shape(
                surface(both * 0.8, np.concatenate([upper, bite[::-1]]), 0.8),
                np.array([240.0, 236, 224]),
            )
        )
    else:
        shapes.append(Shape(gap[:11], colours.lips * 0.45, 0.8))
    return shapes


def _eye(person: Identity, photo: Photo, colours: Colours, side: int) -> list[Shape]:
    """Socket, white, iris cut by the lids, lid line, brow."""
    wide = person.eye_width
    opening = wide * person.eye_open * (1 - photo.squint) * (1 + 0.12 * photo.brow_raise)
    x = np.linspace(-1, 1, 9)
    slant = -person.eye_tilt * x * wide
    upper = slant - opening * np.sqrt(1.0001 - x**2)
    lower = slant + 0.7 * opening * (1 - x**2)
    lid_x = side * (person.eye_gap + x * wide)
    lids = np.concatenate([lid_x, lid_x[::-1]])
    socket = surface(lids, np.concatenate([upper - 2.6, lower[::-1] + 1.2]))
    white = surface(lids, np.concatenate([upper, lower[::-1]]))
    shapes = [Shape(socket, colours.shade(0.86)), Shape(white, np.array([238.0, 236, 232]))]
    centre = photo.gaze * 0.22 * wide * side
    radius = min(4.6, wide * 0.52)
    for part, colour in ((1.0, colours.iris), (0.48, np.array([12.0, 10, 12]))):
        disc = oval(centre, -0.1 * opening, radius * part, radius * part, n=14)
        top = np.interp(disc[:, 0], x * wide, upper)
        disc[:, 1] = np.clip(disc[:, 1], top, np.interp(disc[:, 0], x * wide, lower))
        disc[:, 0] = side * (person.eye_gap + disc[:, 0])
        shapes.append(Shape(disc, colour))
    glint = side * (person.eye_gap + centre) + 1.2
    shapes.append(Shape(oval(glint, -1.2, 0.8, 0.8, n=6), np.array([250.0, 250, 250])))
    shapes.append(Shape(surface(lid_x, upper), colours.shade(0.25), 1.0))
    return shapes + [_brow(person, photo, colours, side)]


def _brow(person: Identity, photo: Photo, colours: Colours, side: int) -> Shape:
    x = np.linspace(-1, 1, 7)
    height = -person.brow_height - 2.2 * photo.brow_raise
    middle = height - person.brow_tilt * x * 6 - person.brow_arch * (1 - x**2)
    half = person.brow_thickness * 0.5 * (1 - 0.55 * np.clip(x, -0.2, 1))
    across = side * (person.eye_gap + 0.6 + x * person.brow_length)
    points = surface(
        np.concatenate([across, across[::-1]]),
        np.concatenate([middle - half, (middle + half)[::-1]]),
    )
    return Shape(points, _mixed(colours.hair * 0.75, colours.skin, 0.1))


def _glasses(person: Identity, photo: Photo, colours: Colours) -> list[Shape]:
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
        rim = surface(x, y, 4.0)
        if photo.glasses == "dark":
            shapes.append(Shape(rim, colours.thing * 0.25))
        shapes.append(Shape(rim, colours.thing * 0.6, 1.3))
        temple = side * (person.eye_gap + 13.5)
        shapes.append(
            Shape(surface([temple, side * 99.0], [-1, -1], [4, 1]), colours.thing * 0.6, 1.3)
        )
    bridge = person.eye_gap - 12.5
    shapes.append(Shape(surface([-bridge, 0, bridge], [0, -1, 0], 6.0), colours.thing * 0.6, 1.3))
    return shapes


def _on_the_face(person: Identity, photo: Photo, colours: Colours) -> list[Shape]:
    """Skin, marks, nose, mouth, eyes and glasses; on the head's surface."""
    return (
        _skin(person, colours)
        + _marks(person, photo, colours)
        + _nose(person, photo, colours)
        + _mouth(person, photo, colours)
        + _eye(person, photo, colours, -1)
        + _eye(person, photo, colours, 1)
        + _glasses(person, photo, colours)
    )


def _before(person: Identity, photo: Photo, head: HeadShape, colours: Colours) -> list[Shape]:
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
            shapes.append(closed(edge, edge - side * thick, y, colours.hair * 0.92))
    place = photo.cover_place
    if photo.cover == "scarf":
        edge = person.mouth_height + 4 + 7 * place
        outline = np.array(
            [[-70, edge + 6], [-20, edge], [20, edge + 2], [70, edge + 5], [70, 130], [-70, 130]]
        )
        shapes.append(Shape(outline, colours.thing))
    elif photo.cover == "hand":
        side = -1 if place < 0 else 1
        for finger in range(4):
            tip = np.array([side * (20 + 3 * finger), 12 + 9 * finger + 24 * abs(place)])
            root = tip + [side * 60, 26]
            shapes.append(Shape(np.stack([tip, root]), colours.shade(0.9 - 0.04 * finger), 10))
    return [Shape(head.place(s.points), s.colour, s.width) for s in shapes]
