"""MATLAB's files of variables, as benchmarks distribute their lists (.mat, version 7 and before).

scipy reads them without running anything: they hold arrays, texts and cells of these.
"""

import io
import zlib
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from Utils.errors import DataError, UserError, first_line
from Utils.files import reading

# What scipy raises for damaged files: it has one class of its own, and uses it rarely.
_DAMAGE = (
    *(MatReadError, OSError, EOFError, ValueError, TypeError, IndexError, KeyError),
    *(UnboundLocalError, OverflowError, MemoryError, zlib.error),
)


def read_matlab(path: str | Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Some variables of a .mat file, as `scipy.io.loadmat` returns them.

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
        found = scipy.io.loadmat(io.BytesIO(content), variable_names=names)
    except NotImplementedError:  # of version 7.3 in all but its first words
        raise raises(f"{path} is no MATLAB file of version 7 or before.") from None
    except _DAMAGE as error:
        raise raises(
            f"{path} is no MATLAB file, or is damaged ({first_line(error)}); fetch it again."
        ) from None
    if missing := [name for name in names if name not in found]:
        raise raises(
            f"{path} has no variable {missing[0]}; expected {' and '.join(names)}, as the "
            f"benchmark distributes them."
        )
    return {name: found[name] for name in names}


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
    if not _is_vector(values) or not (np.mod(values, 1) == 0).all():
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
