"""The person of a demo face and the conditions: an `Identity` and a `Photo`, chosen at random.

Everything is a function of its arguments: the same state of the generator gives the same person.
"""

from dataclasses import make_dataclass

import numpy as np

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


# The traits of a person, each with its range, in the order in which they are drawn. Lengths are in
# face coordinates, the rest are fractions; `eye_colour` is a fractional row of EYES.
TRAIT_RANGES = {
    "face_width": (34, 45),
    "jaw": (1.3, 3.8),
    "chin": (53, 67),
    "eye_gap": (16, 21),
    "eye_width": (5.5, 11),
    "eye_open": (0.3, 0.78),
    "eye_tilt": (-0.3, 0.3),
    "eye_colour": (0, len(EYES) - 1.01),
    "brow_height": (8, 14.5),
    "brow_thickness": (0.8, 5),
    "brow_length": (7.5, 13.5),
    "brow_tilt": (-0.4, 0.35),
    "brow_arch": (-0.5, 4),
    "nose_length": (16, 28),
    "nose_width": (4, 11.5),
    "nose_depth": (7, 17),
    "mouth_height": (36, 45),
    "mouth_width": (8.5, 19),
    "upper_lip": (1.1, 5),
    "lower_lip": (1.6, 6.8),
    "hairline": (-42, -15),
    "hair_temple": (3, 32),
    "hair_part": (-1, 1),
    "hair_peak": (-9, 9),
    "hair_volume": (-1, 13),
    "hair_length": (-20, 12),  # short hair
    "hair_curl": (-1, 1),  # straight below 0
    "ear": (0.6, 1.6),
    "blush": (0, 1),
    "greying": (0.2, 0.8),
}
LONG_HAIR = (32, 90)

# The conditions of a photo: angles in degrees, age in years, lengths in pixels, the rest fractions.
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


# A person: the traits above, colours as RGB 0-255, and marks of the skin.
Identity = make_dataclass(
    "Identity",
    (*TRAIT_RANGES, "lip_colour", "skin_colour", "hair_colour", "beard", "moustache")
    + ("moles", "freckles", "scar"),
    frozen=True,
)
# The conditions above, and: glasses: "round", "square", "dark" or "". cover: "hand", "scarf" or "".
# seed: of the background, the clothes and the grain.
Photo = make_dataclass("Photo", (*PHOTO_RANGES, "glasses", "cover", "seed"), frozen=True)


def random_identity(rng: np.random.Generator) -> Identity:
    """A random person; about forty independent traits."""
    melanin = _trait(rng, 0, len(SKINS) - 1.01)
    skin = _between(SKINS, melanin) * rng.uniform(0.95, 1.05, 3)
    # Dark skin with fair hair is left out: it would be the easiest cue and looks odd.
    fairest = len(HAIRS) - 1.01 if melanin < 2 else 2.2
    hair = _between(HAIRS, _trait(rng, 0, fairest)) * rng.uniform(0.85, 1.15, 3)
    lips = skin * np.array([0.92, 0.62, 0.62]) * rng.uniform(0.75, 1.15, 3)
    beard, moustache = _facial_hair(rng)
    long_hair = beard == 0 and rng.random() < 0.5
    ranges = TRAIT_RANGES | ({"hair_length": LONG_HAIR} if long_hair else {})
    traits = {name: _trait(rng, low, high) for name, (low, high) in ranges.items()}
    traits["eye_colour"] = tuple(_between(EYES, traits["eye_colour"]))
    traits["hair_curl"] = max(0.0, traits["hair_curl"])
    return Identity(
        **traits,
        lip_colour=tuple(np.clip(lips, 0, 255)),
        skin_colour=tuple(np.clip(skin, 0, 255)),
        hair_colour=tuple(np.clip(hair, 0, 255)),
        beard=beard,
        moustache=moustache,
        moles=_moles(rng),
        freckles=_freckles(rng) if melanin < 1.6 and rng.random() < 0.35 else (),
        scar=tuple(rng.uniform([-24, 14, -8, 5], [24, 34, 8, 12])) if rng.random() < 0.2 else (),
    )


def random_photo(rng: np.random.Generator, **ranges: tuple[float, float] | float) -> Photo:
    """Random conditions; `ranges` narrows any number of `PHOTO_RANGES` to (low, high).

    Two more keys: `glasses` and `cover`, the probabilities of wearing glasses (default 0.15) and of
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


def photo_of_kind(rng: np.random.Generator, kind: str, usual_age: float) -> Photo:
    """The conditions of a photo in the training set ("train"), of an "everyday" photo, or of one
    side of a pair: "young", "old", "frontal", "profile"."""
    side = rng.choice([-1, 1])
    near = (usual_age - 4, usual_age + 4)
    if kind == "train":
        turn = tuple(sorted((side * 25.0, side * 76.0))) if rng.random() < 0.3 else (-25.0, 25.0)
        age = (16.0, 74.0) if rng.random() < 0.5 else near
        return random_photo(rng, yaw=turn, age=age)
    profile = tuple(sorted((side * 58.0, side * 76.0)))
    ranges = {
        "everyday": {"yaw": (-16.0, 16.0), "age": near, "glasses": 0.08, "cover": 0.03},
        "young": {"yaw": (-25.0, 25.0), "age": (16.0, 26.0)},
        "old": {"yaw": (-25.0, 25.0), "age": (56.0, 72.0)},
        "frontal": {"yaw": (-8.0, 8.0), "age": near},
        "profile": {"yaw": profile, "age": near},
    }
    return random_photo(rng, **ranges[kind])


def aged(identity: Identity, age: float) -> Identity:
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


def _trait(rng: np.random.Generator, low: float, high: float) -> float:
    """A number in the range, likelier near its ends: so people are easier to tell apart."""
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
