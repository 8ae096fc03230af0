"""Verification sets in a .bin file (lfw.bin, agedb_30.bin, ...), as insightface distributes them.

A pickle of (images, issame): 2P encoded images, two for each pair, and P bools. It was written by
Python 2 or 3, with images as bytes or as uint8 arrays of bytes. A pickle can run any code when it
is read, so the reader here builds bytes, lists and arrays of plain numbers, and nothing else.
"""

from __future__ import annotations

import io
import pickle
import pickletools
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
from Utils.files import atomic_path, reading

_PROTOCOL = 4  # the highest that every Python 3 in use reads

_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_TYPES = frozenset({"u1", "b1", "i1", "i4", "i8", "u4", "u8", "|u1", "|b1"})


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
        return f"image {row}"


def is_bin(path: Path) -> bool:
    """Whether a file is a .bin set, by its name and first bytes (of a pickle)."""
    if path.suffix != ".bin" or not path.is_file():
        return False
    with open(path, "rb") as f:
        return f.read(1) in (b"\x80", b"(", b"]", b"")


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
    content = _unpickle(path)
    if not (isinstance(content, tuple | list) and len(content) == 2):
        raise DataError(f"{path} does not hold (images, issame), as a .bin set does.")
    images, same = content
    if not isinstance(images, list | tuple) or not isinstance(same, list | tuple | np.ndarray):
        raise DataError(f"{path} does not hold two lists, of images and of issame.")
    flags = _as_flags(path, same)
    if len(images) % 2 or len(images) != 2 * len(flags):
        raise DataError(
            f"{path} holds {len(images)} images for {len(flags)} pairs; expected two for each, so "
            f"{2 * len(flags)}."
        )
    encoded = [_as_bytes(path, number, image) for number, image in enumerate(images)]
    return encoded, flags


def write_bin(path: Path, encoded: Sequence[bytes], same: Sequence[bool]) -> None:
    """Write a .bin set of 2P encoded images and P bools."""
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        pickle.dump(([bytes(e) for e in encoded], [bool(s) for s in same]), f, _PROTOCOL)


def _unpickle(path: Path) -> Any:
    with reading(path, "verification set"):
        data = path.read_bytes()
    file = io.BytesIO(data)
    try:
        _check_memo(path, file)
        return _Unpickler(file, path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(
            f"{path}, byte {file.tell()}: the pickle of {len(data)} bytes is damaged or cut short "
            f"there ({error})."
        ) from None


def _check_memo(path: Path, file: io.BytesIO) -> None:
    """Raise DataError for a memo index that no pickle of this length can need: Python allocates a
    memo up to the largest index, so that 4 bytes of a pickle could allocate gigabytes."""
    size = file.getbuffer().nbytes
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > size:
            raise DataError(
                f"{path}, byte {position}: the pickle of {size} bytes counts {argument} objects; "
                f"refused."
            )
    file.seek(0)


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


class _NdarrayName:
    """Replaces numpy.ndarray where a pickle names it; can't be called or changed."""

    __slots__ = ()


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


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """A pickled array before its state, with type and bytes, is set."""
    return np.ndarray((0,), "b")


def _array_type(code: Any, *_: Any) -> np.dtype:
    code = code.decode("ascii") if isinstance(code, bytes) else code
    if code not in _TYPES:
        raise pickle.UnpicklingError(f"an array of type {code!r}; expected one of plain numbers")
    return np.dtype(code)


def _scalar(kind: np.dtype, value: bytes) -> Any:
    return np.frombuffer(value, kind)[0]


def _array_of_bytes(buffer: Any, kind: np.dtype, shape: Any, *_: Any) -> np.ndarray:
    """An array in pickle protocol 5."""
    return np.frombuffer(buffer, kind).reshape(shape)


def _encode(text: str, encoding: Any) -> bytes:
    """Bytes as Python 3 writes them in protocol 2. Other encodings could make a small text huge."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}; expected latin1")
    return text.encode("latin1")


def _bytes(*_: Any) -> bytes:
    """Empty bytes as Python 3 writes them in protocol 2."""
    return b""


_BUILDERS: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _Builder(_empty_array) for module in _ARRAY_MODULES},
    **{(module, "scalar"): _Builder(_scalar) for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _Builder(_array_of_bytes) for module in _NUMERIC_MODULES},
    ("numpy", "ndarray"): _NdarrayName(),
    ("numpy", "dtype"): _Builder(_array_type),
    ("_codecs", "encode"): _Builder(_encode),
    ("builtins", "bytes"): _Builder(_bytes),
    ("__builtin__", "bytes"): _Builder(_bytes),
}


def _as_flags(path: Path, same: Any) -> np.ndarray:
    """bools of issame."""
    try:
        flags = np.asarray(same)
    except ValueError:  # lists of unlike lengths
        flags = np.empty(0)
    if flags.ndim != 1 or not len(flags) or flags.dtype.kind not in "biu":
        raise DataError(f"{path}: issame is no list of bools, one for each pair.")
    if not np.isin(flags, (0, 1)).all():
        raise DataError(f"{path}: issame holds numbers other than 0 and 1.")
    return flags.astype(bool)


def _as_bytes(path: Path, number: int, image: Any) -> bytes:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        return image.tobytes()
    if isinstance(image, bytes):
        return image
    raise DataError(
        f"{path}: image {number} is a {type(image).__name__}; expected bytes or a uint8 array."
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
