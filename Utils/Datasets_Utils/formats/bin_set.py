"""Verification sets in a .bin file (lfw.bin, agedb_30.bin, ...), as insightface distributes them.

A pickle of (images, issame): 2P encoded images, two for each pair, and P flags. It was written by
Python 2 or 3, with lists, tuples or arrays; images as bytes, text or uint8 arrays of bytes; flags
as bools, 0 and 1, or -1 and 1. A pickle can run any code when it is read, so the reader here builds
bytes, lists and arrays of plain values, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from Utils.Datasets_Utils.folds import consecutive_folds
from Utils.Datasets_Utils.images import image_size
from Utils.Datasets_Utils.training_set import ImageStore
from Utils.Datasets_Utils.verification_set import StoredImages, VerificationSet
from Utils.errors import DataError
from Utils.file_kinds import other_kind
from Utils.files import atomic_path, reading
from Utils.pickle_checks import UnsafePickleError, check_pickle
from Utils.pickled_arrays import STAND_INS, PickledArray

_PROTOCOL = 4  # the highest that every Python 3 in use reads

# What a pickle of (images, issame) starts with in every protocol, also if they are in an array.
_STARTS = (b"\x80", b"(", b"]", b"}", b"cnumpy")
# Flags in text, as some programs write them.
_WORDS = {"true": 1, "false": 0}


class BinImages(ImageStore):
    """Encoded images in memory: there are some thousands. source: their file, for messages."""

    def __init__(self, source: Path, encoded: Iterable[bytes]) -> None:
        self.source = source
        self._encoded = list(encoded)

    def __len__(self) -> int:
        return len(self._encoded)

    def encoded(self, row: int) -> bytes:
        return self._encoded[row]

    def name(self, row: int) -> str:
        return str(row)


def is_bin(path: Path) -> bool:
    """Whether a file is a .bin set: by its name, or as a pickle by its name and first bytes."""
    suffix = path.suffix.lower()
    if suffix not in (".bin", ".pkl", ".pickle") or not path.is_file():
        return False
    return suffix == ".bin" or _is_pickle(path)


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as f:
        start = f.read(6)
    return not start or start.startswith(_STARTS)


def open_bin(path: Path, file_list: Path | None = None, _: str = "") -> VerificationSet:
    """Open a .bin set. Images of the same bytes become one. There are ten consecutive folds.

    Raises DataError, naming the file and the byte or image, for a pickle that needs anything but
    bytes and arrays (refused before any of it is run), that is damaged, or whose images and pairs
    do not fit together; and for a file_list.
    """
    if file_list:
        raise DataError(f"{path} holds its own pairs; leave out the pairs file {file_list}.")
    encoded, same = read_bin(path)
    rows: dict[bytes, int] = {}
    indices = np.array([rows.setdefault(image, len(rows)) for image in encoded], np.int64)
    first = np.unique(indices, return_index=True)[1].tolist()
    return VerificationSet(
        images=StoredImages(BinImages(path, rows)),
        names=[f"{path.stem} {index}" for index in first],
        left=indices[::2],
        right=indices[1::2],
        same=same,
        folds=consecutive_folds(len(same)),
        sizes=dict(Counter(image_size(image) for image in rows)),
    )


def read_bin(path: Path) -> tuple[list[bytes], np.ndarray]:
    """(2P encoded images, P bools) of a .bin file. Raises DataError as `open_bin` does."""
    images, same = _parts(path, _unpickle(path))
    flags = _as_flags(path, same)
    images = [part for image in images for part in (image if _is_list(image) else (image,))]
    if len(images) != 2 * len(flags):
        raise DataError(
            f"{path} holds {len(images)} images for {len(flags)} pairs; expected two for each, so "
            f"{2 * len(flags)}. {_make(path)}"
        )
    encoded = [_as_bytes(path, number, image) for number, image in enumerate(images)]
    return encoded, flags


def _make(path: Path) -> str:
    """How to make such a file anew, for errors."""
    target = shlex.quote(str(path.with_name(f"{path.stem}_new.bin")))
    command = f"python -m Utils.Datasets_Utils.convert_dataset IMAGES {target} --file_list PAIRS"
    return f"Make one from the photos and their pairs file: `{command}`."


def write_bin(path: Path, encoded: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a .bin set of 2P encoded images and P bools."""
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        pickle.dump(([bytes(e) for e in encoded], [bool(s) for s in same]), f, _PROTOCOL)


def _unpickle(path: Path) -> Any:
    with reading(path, "verification set"):
        data = path.read_bytes()
        if not _is_pickle(path):
            why = other_kind(path) or f"it does not start as a pickle does. {_make(path)}"
            raise DataError(f"{path} is no .bin set: {why}")
    file = io.BytesIO(data)
    try:
        check_pickle(file, len(data))
        file.seek(0)
        return _Unpickler(file, path).load()
    except DataError:
        raise
    except UnsafePickleError as error:
        raise DataError(f"{path}, {error}, which no verification set has; refused.") from None
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path}, byte {file.tell()}: the pickle of {len(data)} bytes is damaged or cut short "
            f"there ({error}). Fetch it again."
        ) from None


class _Unpickler(pickle.Unpickler):
    """Finds the few names in _BUILDERS, and raises DataError for any other name."""

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        # Images that Python 2 wrote are strings there, and bytes here.
        super().__init__(file, encoding="bytes")
        self._data = file.getvalue()
        self._path = path

    def find_class(self, module: str, name: str) -> Callable:
        found = _BUILDERS.get((module, name))
        if found is None:
            raise DataError(
                f"{self._path}, byte {_named_at(self._data, module, name)}: the pickle asks for "
                f"{module}.{name}, which no verification set needs. It was refused, and nothing "
                f"was run: do not trust this file."
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise DataError(f"{self._path}: the pickle refers to objects outside itself; refused.")


class _Builder:
    """A function that a pickle may call. A pickle can set the attributes and defaults of a plain
    function, also for files that are read later; this object can't be changed."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} can't be set")


def _encode(text: str, encoding: Any) -> bytes:
    """Bytes as Python 3 writes them in protocol 2. Other encodings could make a small text huge."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}; expected latin1")
    return text.encode("latin1")


def _bytes(content: Any = b"", encoding: Any = "latin1") -> bytes:
    """bytes, which protocol 2 writes so if they are empty, and bytearray."""
    if isinstance(content, str):
        return _encode(content, str(encoding).replace("-", ""))
    return content if isinstance(content, bytes) else b""


_BUILDERS: dict[tuple[str, str], Any] = {
    **{name: _Builder(stand_in) for name, stand_in in STAND_INS.items()},
    ("_codecs", "encode"): _Builder(_encode),
    **{
        (module, name): _Builder(_bytes)
        for module in ("builtins", "__builtin__")
        for name in ("bytes", "bytearray")
    },
}


def _parts(path: Path, content: Any) -> tuple[Sequence, Sequence]:
    """(images, issame) of a pickle's content; told apart by what is in them."""
    parts = _plain(content)
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise DataError(f"{path} does not hold (images, issame), as a .bin set does. {_make(path)}")
    first, second = map(_plain, parts)
    if not all(isinstance(part, list | tuple | np.ndarray) for part in (first, second)):
        raise DataError(f"{path} does not hold two lists, of images and of issame. {_make(path)}")
    if _are_flags(first) and not _are_flags(second):
        return second, first
    return first, second


def _plain(value: Any) -> Any:
    return value.values if isinstance(value, PickledArray) else value


def _is_list(image: Any) -> bool:
    """Whether this is a pair of images in place of one."""
    return isinstance(image, list | tuple) and len(image) == 2


def _as_flags(path: Path, same: Sequence) -> np.ndarray:
    """bools of issame."""
    if not _are_flags(same):
        raise DataError(
            f"{path}: issame is no list of bools, one for each pair, nor of 0 and 1, or -1 and 1. "
            f"{_make(path)}"
        )
    flags = np.array([_as_number(flag) for flag in same])
    found = set(flags.tolist())
    if not (found <= {0, 1} or found <= {-1, 1}):
        raise DataError(
            f"{path}: issame holds numbers other than 0 and 1, or -1 and 1: {sorted(found)[:5]}. "
            f"{_make(path)}"
        )
    return flags == 1


def _are_flags(values: Sequence) -> bool:
    if isinstance(values, np.ndarray) and values.ndim != 1:
        return False
    return len(values) > 0 and all(_as_number(value) is not None for value in values)


def _as_number(flag: Any) -> float | None:
    """A flag as a number; None for anything else."""
    if isinstance(flag, bytes):
        flag = flag.decode("latin1")
    if isinstance(flag, str):
        text = flag.strip().lower()
        flag = _WORDS.get(text, int(text) if re.fullmatch(r"[+-]?\d", text) else None)
    return float(flag) if isinstance(flag, bool | int | float | np.bool_ | np.number) else None


def _as_bytes(path: Path, number: int, image: Any) -> bytes:
    image = _plain(image)
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size in image.shape:
        return image.tobytes()
    try:
        if isinstance(image, str):  # Python 2's bytes, read as Latin-1
            return image.encode("latin1")
        found = f"a {type(image).__name__}"
    except UnicodeEncodeError:
        found = "text"
    if isinstance(image, np.ndarray):
        found = f"an array of shape {image.shape} and type {image.dtype}"
    raise DataError(
        f"{path}: image {number} is {found}; expected bytes of a JPEG or PNG file. {_make(path)}"
    )


def _named_at(data: bytes, module: str, name: str) -> int:
    """The byte at which a pickle names something, for the error."""
    named = {f"{module} {name}", f"__builtin__ {name}"}
    last = 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name in ("GLOBAL", "INST") and argument in named:
            return position
        if opcode.name == "STACK_GLOBAL":
            return last
        if argument in (module, name):
            last = position
    return last
