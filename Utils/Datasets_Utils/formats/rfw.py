"""RFW, "Racial Faces in-the-Wild" (Wang et al., ICCV 2019): four races in one verification set.

As it is distributed: `test/data/<Race>/<person>/<person>_0001.jpg` and
`test/txts/<Race>/<Race>_pairs.txt`, below the folder or below `test`. The photos are not aligned;
`<Race>_lmk.txt` beside the pairs has lines `path number x1 y1 ... x5 y5` with the five points of
each, by which they are aligned when they are read. Or as four .bin files, `African_test.bin` and so
on. Each race has its own pairs and ten folds; fold k of the set is fold k of all races, and the
races are the groups of the pairs.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from Utils.Datasets_Utils.alignment.transform import TEMPLATE, problem, similarity, warp
from Utils.Datasets_Utils.formats.bin_set import open_bin
from Utils.Datasets_Utils.images import ImageError, without_suffix
from Utils.Datasets_Utils.text import as_number, first_few, numbered_lines
from Utils.Datasets_Utils.verification_set import ImageFiles, VerificationSet, load_pairs_set
from Utils.errors import DataError
from Utils.files import reading

RACES = ("African", "Asian", "Caucasian", "Indian")

_SHOWN = 12  # people that a note names: as many as RFW has in two races
_CROP = (112, 112)  # height and width of photos that are aligned already


class JoinedImages(Sequence[np.ndarray]):
    """The images of several sets in one sequence."""

    def __init__(self, parts: Sequence[Sequence[np.ndarray]]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> np.ndarray:
        part, row = self._find(index)
        return part[row]

    def encoded(self, index: int) -> bytes | np.ndarray:
        """The bytes of the image file."""
        part, row = self._find(index)
        return part.encoded(row)

    def _find(self, index: int) -> tuple[Sequence[np.ndarray], int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = bisect.bisect_right(self.starts, index) - 1
        return self.parts[part], index - self.starts[part]


class AlignedPhotos(Sequence[np.ndarray]):
    """Photos aligned by five points each: uint8 112×112×3 RGB.

    points: float64 N×5×2, see `alignment.transform`. lines: N line numbers in the file `source`
    that they are from. Indexing raises ImageError for a photo or points that can't be used.
    """

    def __init__(self, photos: ImageFiles, points: np.ndarray, lines: list[int], source: Path):
        self.photos, self.points, self.lines, self.source = photos, points, lines, source

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> np.ndarray:
        if flaw := problem(self.points[index]):
            raise ImageError(
                f"{self.source}, line {self.lines[index]}: {flaw}, so the photo "
                f"{self.photos.paths[index]} can't be aligned."
            )
        return warp(self.photos[index], similarity(self.points[index], TEMPLATE))

    def encoded(self, index: int) -> bytes:
        """The aligned photo as a PNG file."""
        return cv2.imencode(".png", self[index][..., ::-1])[1].tobytes()


def is_rfw(path: Path) -> bool:
    """Whether a folder has a list of pairs, or a .bin file, of one of the races at least."""
    return any(_pairs(root, race).is_file() for root in _roots(path) for race in RACES) or any(
        _bin(path, race).is_file() for race in RACES
    )


def open_rfw(path: Path, file_list: Path | None = None, _: str = "") -> VerificationSet:
    """Open the pairs of all races. Names are `<Race>/<person>/<person>_0001`.

    Raises DataError for a race that is missing, points that are malformed or missing, and for a
    file_list.
    """
    if file_list:
        raise DataError(f"{path} holds RFW's own pairs; leave out the pairs file {file_list}.")
    root = next((r for r in _roots(path) if any(_pairs(r, x).is_file() for x in RACES)), None)
    files = [_pairs(root, race) if root else _bin(path, race) for race in RACES]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise DataError(
            f"{path}: {', '.join(missing)} missing, so it is not all of RFW; fetch what is missing,"
            f" or evaluate each race alone: its .bin file, or its folder of photos with its pairs."
        )
    notes: list[str] = []
    if root:
        parts, how = [], []
        for race, file in zip(RACES, files, strict=True):
            part = load_pairs_set(root / "data" / race, file)
            images, done = _aligned(part.images, file.with_name(f"{race}_lmk.txt"))
            parts.append(replace(part, images=images))
            how.append(done)
        alike = len({*how}) == 1
        notes = [f"photos {how[0]}"] if alike else [*map("{}: photos {}".format, RACES, how)]
    else:
        parts = [open_bin(file) for file in files]
    notes += shared_people(parts)
    return join([part.with_usable_folds() for part in parts], RACES, notes)


def _aligned(photos: ImageFiles, file: Path) -> tuple[Sequence[np.ndarray], str]:
    """(a race's photos, aligned by the points in a file if they need it; what was done)."""
    if not file.is_file():
        return photos, "as they are, there are no points to align them by"
    known = _read_points(file)
    keys = [without_suffix(Path(path).name) for path in photos.paths]
    if missing := [key for key in keys if key not in known]:
        raise DataError(
            f"{file}: has no points of {len(missing)} of the {len(keys)} photos: "
            f"{first_few(missing)}; expected a line `path number x1 y1 ... x5 y5` for each. "
            f"Without the file, the photos are taken as they are."
        )
    lines, points = zip(*(known[key] for key in keys), strict=True)
    size = photos[0].shape[:2]
    x, y = np.mean(points[0], axis=0)
    if size == _CROP or not (0 <= y < size[0] and 0 <= x < size[1]):
        return photos, f"as they are, {size[0]}×{size[1]}, aligned already"
    return AlignedPhotos(
        photos, np.array(points), list(lines), file
    ), "aligned by their five points"


def _read_points(file: Path) -> dict[str, tuple[int, np.ndarray]]:
    """(line number, 5×2 points) by the name of the photo, without folders and suffix."""
    known = {}
    with reading(file, "file of points"), open(file, "rb") as opened:
        for number, text in numbered_lines(opened, file):
            path, *fields = text.split()
            try:
                values = np.array([*map(as_number, fields[1:])]).reshape(5, 2)
            except ValueError:
                raise DataError(
                    f"{file}, line {number}: {text[:80]!r} is not a photo with its points; "
                    f"expected `path number x1 y1 ... x5 y5`."
                ) from None
            known[without_suffix(Path(path).name)] = (number, values)
    return known


def join(
    parts: Sequence[VerificationSet], groups: Sequence[str], notes: Sequence[str] = ()
) -> VerificationSet:
    """One set of several, each of which is a group of its pairs."""
    starts = np.cumsum([0, *(len(part.images) for part in parts)])
    names = [f"{group}/{name}" for p, group in zip(parts, groups, strict=True) for name in p.names]
    return VerificationSet(
        images=JoinedImages([part.images for part in parts]),
        names=names,
        left=np.concatenate([p.left + start for p, start in zip(parts, starts, strict=False)]),
        right=np.concatenate([p.right + start for p, start in zip(parts, starts, strict=False)]),
        same=np.concatenate([part.same for part in parts]),
        folds=np.concatenate([part.folds for part in parts]),
        sizes=dict(sum((Counter(part.sizes) for part in parts), Counter())),
        notes=(
            *(f"{g}: {note}" for p, g in zip(parts, groups, strict=True) for note in p.notes),
            *notes,
        ),
        groups=np.repeat(groups, [len(part.same) for part in parts]),
    )


def shared_people(parts: Sequence[VerificationSet]) -> list[str]:
    """A note about people who are in two races, by the folders of their photos."""
    people = Counter(
        person
        for part in parts
        for person in {name.split("/")[0] for name in part.names if "/" in name}
    )
    twice = sorted(person for person, count in people.items() if count > 1)
    if not twice:
        return []
    names = first_few(twice, _SHOWN)
    return [f"{len(twice)} people are in two races, and stay in, as in published figures: {names}"]


def _roots(path: Path) -> list[Path]:
    return [path / "test", path]


def _pairs(root: Path, race: str) -> Path:
    return root / "txts" / race / f"{race}_pairs.txt"


def _bin(path: Path, race: str) -> Path:
    return path / f"{race}_test.bin"
