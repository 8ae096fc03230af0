"""RFW, "Racial Faces in-the-Wild" (Wang et al., ICCV 2019): four races in one verification set.

As it is distributed: `test/data/<Race>/<person>/<person>_0001.jpg` and
`test/txts/<Race>/<Race>_pairs.txt`, below the folder or below `test`. Or as four .bin files,
`African_test.bin` and so on. Each race has its own pairs and ten folds; fold k of the set is fold k
of all races, and the races are the groups of the pairs.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from Utils.Datasets_Utils.formats.bin_set import open_bin
from Utils.Datasets_Utils.verification_set import VerificationSet, load_pairs_set
from Utils.errors import DataError

RACES = ("African", "Asian", "Caucasian", "Indian")

_SHOWN = 5  # people that a note names


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


def is_rfw(path: Path) -> bool:
    """Whether a folder has a list of pairs, or a .bin file, of one of the races at least."""
    return any(_pairs(root, race).is_file() for root in _roots(path) for race in RACES) or any(
        _bin(path, race).is_file() for race in RACES
    )


def open_rfw(path: Path, file_list: Path | None = None, _: str = "") -> VerificationSet:
    """Open the pairs of all races. Names are `<Race>/<person>/<person>_0001`.

    Raises DataError for a race that is missing, and for a file_list.
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
    if root:
        parts = [
            load_pairs_set(root / "data" / race, file)
            for race, file in zip(RACES, files, strict=True)
        ]
    else:
        parts = [open_bin(file) for file in files]
    return join([part.with_usable_folds() for part in parts], RACES, shared_people(parts))


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
    twice = [person for person, count in people.items() if count > 1]
    if not twice:
        return []
    first = ", ".join(twice[:_SHOWN]) + (", ..." if len(twice) > _SHOWN else "")
    return [f"{len(twice)} people are in two races, as in every copy of RFW: {first}"]


def _roots(path: Path) -> list[Path]:
    return [path / "test", path]


def _pairs(root: Path, race: str) -> Path:
    return root / "txts" / race / f"{race}_pairs.txt"


def _bin(path: Path, race: str) -> Path:
    return path / f"{race}_test.bin"
