"""What would crash Python in reading a pickle, found by its opcodes before it is read.

Python hashes a tuple in a tuple by recursion without a limit, so that a key of a dictionary made of
100,000 tuples in each other ends the process; and its unpickler in C allocates a memo up to the
largest index in the pickle.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import BinaryIO

import torch

DEEPEST = 100  # tuples in each other; what datasets and networks are saved with has less than ten

_OLD_PICKLES = 5  # in a file from before PyTorch 1.6, one after the other
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}  # of so many values
_SETS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_CALLS = {"REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}


class UnsafePickleError(ValueError):
    """Why a pickle is not read."""


def check_checkpoint(path: Path) -> None:
    """Check the pickles in a file of PyTorch's.

    Raises UnsafePickleError as `check_pickle` does, UnpicklingError for a damaged pickle, and what
    PyTorch raises for a damaged file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if file.read(4) == b"PK\3\4":
            # As `torch.load` finds it: another program may find another member of that name.
            reader = torch._C.PyTorchFileReader(str(path))
            pickles = [io.BytesIO(reader.get_record("data.pkl"))]
        else:
            file.seek(0)
            pickles = [file] * _OLD_PICKLES
        try:
            for pickled in pickles:
                check_pickle(pickled, size)
        except UnsafePickleError:
            raise
        except (ValueError, LookupError, OverflowError, MemoryError) as error:
            raise pickle.UnpicklingError(str(error)) from None  # MemoryError: of a text's length


def check_pickle(file: BinaryIO, size: int) -> None:
    """Read over one pickle, from where the file is to its end. size: bytes of all of the file.

    Raises UnsafePickleError for tuples that are too deep and for a memo that no pickle of that size
    can need; ValueError, IndexError or KeyError for one that is damaged.
    """
    depths: list[int] = []  # of the tuples on the unpickler's stack; 0: another value
    marks: list[int] = []
    memo: dict[int, int] = {}
    for opcode, argument, position in pickletools.genops(file):
        name = opcode.name
        if name == "MARK":
            marks.append(len(depths))
        elif name in _TUPLES or name == "TUPLE":
            start = marks.pop() if name == "TUPLE" else len(depths) - _TUPLES[name]
            depth = 1 + max(depths[start:], default=0)
            if depth > DEEPEST:
                raise UnsafePickleError(
                    f"byte {position}: more than {DEEPEST} tuples in each other"
                )
            depths[start:] = [depth]
        elif name in _SETS or name == "MEMOIZE":
            index = len(memo) if argument is None else argument
            if index > size:
                raise UnsafePickleError(
                    f"byte {position}: a pickle of {size} bytes counts {index} objects"
                )
            memo[index] = depths[-1]
        elif name in _GETS:
            depths.append(memo[argument])
        elif name == "DUP":
            depths.append(depths[-1])
        elif name == "POP" and marks and marks[-1] == len(depths):
            marks.pop()
        else:
            _replace(opcode, depths, marks)


def _replace(opcode: pickletools.OpcodeInfo, depths: list[int], marks: list[int]) -> None:
    """What any other opcode takes off the stack, and puts there: a call may return its argument."""
    before, start = opcode.stack_before, len(depths)
    if pickletools.markobject in before:
        start = marks.pop()
        before = before[: before.index(pickletools.markobject)]
    start = max(start - len(before), 0)
    depth = max(depths[start:], default=0) if opcode.name in _CALLS else 0
    depths[start:] = [depth] * len(opcode.stack_after)
