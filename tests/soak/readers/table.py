"""A reader that mutated files are given to, and how its first files are made."""

import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from tests.soak.structures import Change


@dataclass(frozen=True)
class Subject:
    """What is mutated, and read. seeds: whole files. path: where a mutated one is written. read:
    called after that, without arguments."""

    seeds: list[bytes]
    path: Path
    read: Callable[[], object]


@dataclass(frozen=True)
class Reader:
    """make: prepares an empty folder, with the files beside the mutated one. changes: what is tried
    beside changes of plain bytes. needs: a package that not everybody has; "" for none."""

    name: str
    make: Callable[[Path], Subject]
    changes: tuple[Change, ...] = ()
    needs: str = ""


READERS: dict[str, Reader] = {}


def reader(name: str, *changes: Change, needs: str = "") -> Callable:
    """Register a function as the `make` of a reader."""

    def register(make: Callable[[Path], Subject]) -> Callable[[Path], Subject]:
        READERS[name] = Reader(name, make, changes, needs)
        return make

    return register


def image(suffix: str = ".png", seed: int = 0, side: int = 12) -> bytes:
    """An encoded image of noise."""
    shape = (side, side) if suffix == ".pgm" else (side, side, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def faces(suffix: str = ".png") -> dict[str, bytes]:
    """Two photos of each of three people, by their paths."""
    return {
        f"{person}/{person}_{photo:04d}{suffix}": image(suffix, 2 * row + photo)
        for row, person in enumerate(("Ann", "Bo", "Cy"))
        for photo in (1, 2)
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def tar_of(files: dict[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def texts(*contents: str) -> list[bytes]:
    return [content.encode() for content in contents]


def all_of(items: Iterable[object], most: int = 20) -> None:
    """Read the first items: each may raise an error of the project, and the next is read."""
    from Utils.errors import UserError

    size = min(len(items), most)
    for row in range(size):
        try:
            items[row]
        except UserError:
            continue
