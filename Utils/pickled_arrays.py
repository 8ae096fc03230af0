"""NumPy's values in a pickle, read without NumPy's own functions, which could do harm.

A pickle names `numpy.dtype`, `_reconstruct` and a few more, with plain arguments. An unpickler that
is given the stand-ins here instead makes numbers, text and arrays of them; arrays of objects become
the list of what the pickle itself made.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

# The types of values that are plain numbers or text, of at most some bytes each.
_PLAIN = frozenset("biufcSU")


class PickledDtype:
    """numpy.dtype. code: as NumPy writes it, with the byte order."""

    __slots__ = ("code",)

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: tuple) -> None:
        self.code = _text(state[1]).strip("|=") + self.code.lstrip("<>|=")

    def read(self, raw: Any) -> np.ndarray:
        """The values in some bytes. Raises TypeError for a type that is not plain."""
        dtype = np.dtype(self.code)
        if dtype.kind not in _PLAIN:
            raise TypeError(f"values of the type {self.code}")
        return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, dtype)


class PickledArray:
    """numpy.ndarray. values: an array once its state is set, a flat list if it was of objects."""

    __slots__ = ("values",)

    def __init__(self, *_: Any) -> None:
        self.values: np.ndarray | list = []

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, columns_first, raw = state
        if isinstance(raw, list):
            self.values = raw
        else:
            self.values = dtype.read(raw).reshape(shape, order="F" if columns_first else "C")


def scalar(dtype: PickledDtype, raw: Any) -> Any:
    """numpy.core.multiarray.scalar, as Python's own number or text."""
    return dtype.read(raw)[0].item() if isinstance(raw, bytes | bytearray | str) else raw


def from_buffer(buffer: Any, dtype: PickledDtype, shape: tuple, order: str = "C") -> PickledArray:
    """numpy.core.numeric._frombuffer, of protocol 5."""
    array = PickledArray()
    array.values = dtype.read(buffer).reshape(shape, order=order)
    return array


def _text(text: Any) -> str:
    return text.decode("ascii") if isinstance(text, bytes) else str(text)


# By the names in pickles; numpy 2 moved core to _core.
STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): PickledDtype,
    ("numpy", "ndarray"): PickledArray,
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", PickledArray),
            ("multiarray", "scalar", scalar),
            ("numeric", "_frombuffer", from_buffer),
        )
    },
}
