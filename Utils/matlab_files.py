"""MATLAB's files of variables, as benchmarks distribute their lists (.mat, versions 5 to 7).

A file is 128 bytes of header, then elements: a kind, a size and as many bytes, which for an array
are elements again (flags, dimensions, name, then numbers, texts, cells or a struct's fields).
MathWorks, "MAT-File Format" (2019), describes it. Read here, not by scipy, whose reader can crash
Python on a damaged file; only sizes and kinds that agree with each other are taken.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from Utils.errors import DataError, UserError
from Utils.files import reading

_HEADER = 128
_ORDERS = {b"IM": "<", b"MI": ">"}
_ARRAY, _COMPRESSED = 14, 15
_NUMBERS = dict(zip((1, 2, 3, 4, 5, 6, 7, 9, 12, 13), "bBhHiIfdqQ", strict=True))  # kind: dtype
_TEXTS = {1: "ascii", 2: "ascii", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_CELL, _STRUCT, _CHAR = 1, 2, 4  # classes of arrays; those of numbers follow
_CLASSES = dict(zip(range(6, 16), "dfbBhHiIqQ", strict=True))
_COMPLEX = 0x800
_DEEPEST = 16  # cells in structs in cells; AgeDB-30's list has five levels


class _DamageError(Exception):
    """Why the bytes are no such file."""


def read_matlab(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some variables of a .mat file: numbers; cells, of dtype object; structs, whose fields are
    objects; and M×N characters as M strings.

    Raises DataError, naming the file, if it can't be read or has not all of them.
    """
    path = Path(path)
    with reading(path, "MATLAB file"):
        content = path.read_bytes()
    return parse_matlab(path, content, names)


def parse_matlab(
    path: Path, content: bytes, names: tuple[str, ...], raises: type[UserError] = DataError
) -> dict[str, np.ndarray]:
    """As `read_matlab`, for the bytes of a file; path: its name, for messages. raises: the class of
    the errors."""
    if content.startswith(b"MATLAB 7.3"):
        raise raises(
            f"{path} is of MATLAB's version 7.3, which is not read here; save it in MATLAB with "
            f"the option -v7."
        )
    try:
        found = _variables(content, names)
    except _DamageError as error:
        raise raises(
            f"{path} is no MATLAB file of versions 5 to 7, or is damaged ({error}); fetch it again."
        ) from None
    if missing := [name for name in names if name not in found]:
        raise raises(
            f"{path} has no variable {missing[0]}; expected {' and '.join(names)}, as the "
            f"benchmark distributes them."
        )
    return found


def _variables(content: bytes, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    order = _ORDERS.get(content[_HEADER - 2 : _HEADER])
    if order is None or struct.unpack_from(f"{order}H", content, _HEADER - 4)[0] != 0x100:
        raise _DamageError("it does not begin as one does")
    found: dict[str, np.ndarray] = {}
    for kind, data in _elements(content[_HEADER:], order):
        if kind == _COMPRESSED:
            try:
                data = zlib.decompress(data)
            except zlib.error as error:
                raise _DamageError(f"zlib: {error}") from None
            inside = list(_elements(data, order))
            if len(inside) != 1:
                raise _DamageError(f"{len(inside)} elements compressed as one")
            ((kind, data),) = inside
        if kind != _ARRAY:
            raise _DamageError(f"an element of kind {kind} where a variable was expected")
        if data:
            array = _Array(data, order)
            if array.name in names:
                if array.name in found:
                    raise _DamageError(f"two variables {array.name}")
                found[array.name] = array.values()
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """(kind, content) of each element."""
    place = 0
    while place < len(data):
        if place + 8 > len(data):
            raise _DamageError("it ends within an element")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start = place + 8
        if kind > 0xFFFF:  # a small one has its size in the kind, and its content in the size
            kind, size, start = kind & 0xFFFF, kind >> 16, place + 4
            place += 8
            if size > 4:
                raise _DamageError(f"a small element of {size} bytes")
        else:
            place = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if start + size > len(data):
            raise _DamageError("it ends within an element")
        yield kind, data[start : start + size]


def _numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    dtype = np.dtype(order + _NUMBERS[kind]) if kind in _NUMBERS else None
    if dtype is None or len(data) % dtype.itemsize:
        raise _DamageError(f"{len(data)} bytes of kind {kind} where numbers were expected")
    return np.frombuffer(data, dtype)


class _Array:
    """A variable, a cell or a field; its values are made of `data` when they are asked for."""

    def __init__(self, data: bytes, order: str, depth: int = 0) -> None:
        self.order, self.depth = order, depth
        self.elements = _elements(data, order)
        head = [self._next() for _ in range(3)]
        flags, shape = (_numbers(*element, order) for element in head[:2])
        if head[0][0] != 6 or len(flags) != 2 or flags[0] > 0xFFFF:
            raise _DamageError("an array's flags are not flags")
        if head[1][0] not in (5, 6) or len(shape) < 2 or shape.min() < 0:
            raise _DamageError("an array's dimensions are no whole numbers")
        self.flags, self.kind = int(flags[0]), int(flags[0]) & 0xFF
        self.shape = tuple(shape.tolist())
        self.count = math.prod(self.shape)
        self.name = self._text(*head[2])

    def _next(self) -> tuple[int, bytes]:
        element = next(self.elements, None)
        if element is None:
            raise _DamageError("an array ends too early")
        return element

    def _text(self, kind: int, data: bytes) -> str:
        codec = _TEXTS.get(kind, "")
        if codec in ("utf-16", "utf-32"):
            codec += "-le" if self.order == "<" else "-be"
        try:
            return data.decode(codec)
        except (UnicodeError, LookupError):
            raise _DamageError(f"{len(data)} bytes of kind {kind} are no text") from None

    def values(self) -> np.ndarray:
        if self.kind == _CELL:
            found = self._nested(1)[:, 0]
        elif self.kind == _STRUCT:
            found = self._fields()
        elif self.kind == _CHAR:
            found = self._strings()
        elif self.kind in _CLASSES and not self.flags & _COMPLEX:
            stored = _numbers(*self._next(), self.order)
            # MATLAB stores numbers in the smallest type that holds them.
            with np.errstate(invalid="ignore", over="ignore"):
                found = stored.astype(_CLASSES[self.kind])
            if not np.array_equal(found, stored, equal_nan=True):
                raise _DamageError("numbers beyond their type")
        else:
            raise _DamageError(f"an array of class {self.kind}, which no list has")
        if next(self.elements, None) is not None:
            raise _DamageError("an array goes on after its end")
        if self.kind == _CHAR:
            return found
        if len(found) != self.count:
            raise _DamageError(f"{len(found)} values in an array of {self.count}")
        return found.reshape(self.shape, order="F")

    def _nested(self, fields: int) -> np.ndarray:
        """count×fields arrays."""
        elements = list(self.elements)
        if len(elements) != self.count * fields or self.depth == _DEEPEST:
            raise _DamageError(f"{len(elements)} arrays in one of {self.count} × {fields}")
        found = np.empty(len(elements), object)
        for row, (kind, data) in enumerate(elements):
            if kind != _ARRAY:
                raise _DamageError(f"an element of kind {kind} where an array was expected")
            empty = np.empty((0, 0))
            found[row] = _Array(data, self.order, self.depth + 1).values() if data else empty
        return found.reshape(-1, fields)

    def _fields(self) -> np.ndarray:
        """count structs."""
        width = _numbers(*self._next(), self.order)
        if len(width) != 1 or width[0] < 1:
            raise _DamageError("a struct without the width of its names")
        kind, text = self._next()
        size = int(width[0])
        parts = [text[at : at + size].partition(b"\0") for at in range(0, len(text), size)]
        names = [self._text(kind, name) for name, _, _ in parts]
        if not names or "" in names or not all(end for _, end, _ in parts):
            raise _DamageError("a struct without names of its fields")
        if len({*names}) < len(names):
            raise _DamageError("a struct with two fields of one name")
        nested = self._nested(len(names))
        found = np.empty(len(nested), [(name, object) for name in names])
        for column, name in enumerate(names):
            found[name] = nested[:, column]
        return found

    def _strings(self) -> np.ndarray:
        """The rows of a matrix of characters."""
        text = self._text(*self._next())
        rows = self.shape[0]
        units = len(text.encode("utf-16-le")) // 2  # in which MATLAB counts
        if len(self.shape) != 2 or self.count not in (len(text), units if rows == 1 else -1):
            raise _DamageError(f"{len(text)} characters in an array of {self.count}")
        return np.array([text[row::rows] for row in range(rows)], str)


def texts_of(path: str | Path, name: str, cells: np.ndarray) -> list[str]:
    """The texts in a variable that is an N×1 or 1×N cell array of texts.

    Raises DataError, naming the file and the variable, for anything else.
    """
    if not isinstance(cells, np.ndarray) or cells.dtype != object or not _is_vector(cells):
        raise _unexpected(path, name, cells, "an N×1 cell array of names")
    texts = []
    for number, cell in enumerate(cells.ravel(), 1):
        if not isinstance(cell, np.ndarray) or cell.dtype.kind != "U" or cell.size != 1:
            raise DataError(f"{path}: the variable {name} holds no name in cell {number}.")
        texts.append(str(cell.item()).strip())
    return texts


def whole_numbers_of(path: str | Path, name: str, values: np.ndarray) -> np.ndarray:
    """The int64 numbers in a variable that is N×1 or 1×N whole numbers of any type.

    Raises DataError, naming the file and the variable, for anything else.
    """
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iuf":
        raise _unexpected(path, name, values, "N×1 whole numbers")
    if not _is_vector(values) or not ((np.mod(values, 1) == 0) & (abs(values) < 2**53)).all():
        raise _unexpected(path, name, values, "N×1 whole numbers")
    return values.ravel().astype(np.int64)


def _is_vector(values: np.ndarray) -> bool:
    return values.ndim == 2 and 1 in values.shape and values.size > 0


def _unexpected(path: str | Path, name: str, values: object, expected: str) -> DataError:
    kind = type(values).__name__
    if isinstance(values, np.ndarray):
        kind = {"O": "a cell array", "U": "text", "V": "a struct"}.get(values.dtype.kind, "numbers")
        kind += f" of {'×'.join(map(str, values.shape))}"
    return DataError(f"{path}: the variable {name} is {kind}; expected {expected}.")
