"""What weights files name beside their tensors, read without running any of it.

PyTorch's unpickler for weights makes tensors and plain values, and stops at any other name. For the
names here it gets a stand-in: NumPy's scalars and arrays become plain values, and settings, paths
and the modules of a TorchScript program become dictionaries. Any other name is still refused.
"""

import io
import pickletools
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from Utils.file_kinds import zip_names
from Utils.files import unsafe_names
from Utils.pickle_checks import check_pickle
from Utils.pickled_arrays import STAND_INS

# Settings and paths, whose values are of no use here. Older files of Lightning's have a callback's
# class as the key of its state, too.
SETTINGS = (
    *("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities."),
    *("argparse.Namespace", "pathlib.", "easydict.", "yacs.config.", "omegaconf."),
)


class _Settings:
    """Makes an empty dictionary, whatever the arguments."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict:
        return OrderedDict()  # of the few types that the unpickler fills


def _as_it_is(value: Any, *_: Any) -> Any:
    """For a function that marks a list's type in TorchScript."""
    return value


def stand_ins(path: Path) -> list[tuple[Any, str]]:
    """For `torch.serialization.safe_globals`, in reading this file."""
    names = unsafe_names(path) or _names_in_old_format(path)
    settings = [
        (type("Settings", (_Settings,), {}), name) for name in names if name.startswith(SETTINGS)
    ]
    arrays = [(stand_in, ".".join(name)) for name, stand_in in STAND_INS.items()]
    return settings + arrays


def _names_in_old_format(path: Path) -> set[str]:
    """The names in a file from before PyTorch 1.6: four pickles in a row, then tensors."""
    try:
        with path.open("rb") as file:
            return set().union(*(_names_in(file) for _ in range(4)))
    except (
        ValueError,
        OSError,
        OverflowError,
        MemoryError,
    ):  # of another format; reading it will report it
        return set()


def _names_in(pickled: bytes | BinaryIO) -> set[str]:
    operations = pickletools.genops(pickled)
    return {name.replace(" ", ".") for code, name, _ in operations if code.name == "GLOBAL"}


# --- TorchScript ---------------------------------------------------------------------------------

_PROGRAM = "__torch__."  # before the names of a program's classes
_MARKS = ("build_intlist", "build_doublelist", "build_boollist", "restore_type_tag")


class _Module:
    """A module of a program: parameters, buffers and modules are its attributes."""


def is_torchscript(path: Path) -> bool:
    """Whether this is a TorchScript program: an archive with code."""
    return any(name.partition("/")[2] == "constants.pkl" for name in zip_names(path))


def read_torchscript(path: Path) -> dict[str, Any]:
    """The tensors of a program, by name. Its code is neither compiled nor run.

    A program's archive is a weights file with code beside it: a copy in memory without the code is
    read as one. Raises what `torch.load` raises.
    """
    copy = io.BytesIO()
    names = set()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as target:
        for member in archive.infolist():
            name, inner = member.filename, member.filename.partition("/")[2]
            if not (inner in ("data.pkl", "version", "byteorder") or inner.startswith("data/")):
                continue
            if member.compress_type != zipfile.ZIP_STORED:  # a few bytes could become gigabytes
                raise ValueError(f"{name} is compressed, which PyTorch does to code alone")
            content = archive.read(name)
            if inner == "data.pkl":
                check_pickle(io.BytesIO(content), len(content))
                names = _names_in(content)
            target.writestr(name, content)
    modules = [(type("Module", (_Module,), {}), n) for n in names if n.startswith(_PROGRAM)]
    marks = [(_as_it_is, f"torch.jit._pickle.{name}") for name in _MARKS]
    copy.seek(0)
    with torch.serialization.safe_globals(modules + marks):
        program = torch.load(copy, map_location="cpu", weights_only=True)
    return dict(_attributes(program))


def _attributes(module: Any, prefix: str = "") -> Any:
    for name, value in vars(module).items() if isinstance(module, _Module) else ():
        yield f"{prefix}{name}", value
        yield from _attributes(value, f"{prefix}{name}.")
