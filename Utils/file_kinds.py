"""What a file is that is not what its user took it for: a web page, an archive, an ONNX model."""

import os
import shlex
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# What Python's readers of archives raise for damaged ones; MemoryError for a size that can't be.
ARCHIVE_ERRORS = (
    *(OSError, EOFError, ValueError, OverflowError, MemoryError, LookupError, struct.error),
    *(zipfile.BadZipFile, zlib.error, tarfile.TarError, NotImplementedError, RuntimeError),
)


def other_kind(path: Path) -> str:
    """What a file is that is no checkpoint, and what to do; "" for none of these."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with `git lfs pull`."
    if not any(start):
        return (
            "it is empty, or begins with zeros as a file does that was not written to its end, "
            "before a power cut for example; fetch it again."
        )
    if start.lstrip().startswith(b"<"):
        return "it is a web page, so what was downloaded is not the file; fetch it again."
    if is_onnx(path):
        return (
            "it is a network in ONNX, which can only be evaluated: the evaluation scripts take it "
            "as --checkpoint. Here, give the weights that it was made of."
        )
    if _is_exported(path):
        return (
            "it is an exported PyTorch program (.pt2), not read here; give the weights that it "
            "was made of."
        )
    for module, is_one in (("tarfile", tarfile.is_tarfile), ("zipfile", _is_zip)):
        if _holds(is_one, path):
            folder = path.with_name(path.name.partition(".")[0] + "_unpacked")
            command = shlex.join(["python", "-m", module, "-e", str(path), str(folder)])
            return f"it is an archive; unpack it and give the file in it: `{command}`."
    return ""


def _holds(is_one: Callable[[Path], bool], path: Path) -> bool:
    try:
        return is_one(path)
    except ARCHIVE_ERRORS:
        return False


def zip_names(path: Path) -> list[str]:
    """The names in a zip; none of them for another file, or a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except ARCHIVE_ERRORS:
        return []


def _is_exported(path: Path) -> bool:
    """Whether `torch.export.save` wrote this."""
    return any(name.endswith("/archive_format") for name in zip_names(path))


def _is_zip(path: Path) -> bool:
    """Whether this is a .zip, and not one of PyTorch's own."""
    return not any(name.endswith("/data.pkl") for name in zip_names(path) or ["/data.pkl"])


def is_onnx(path: Path) -> bool:
    """Whether this is an ONNX file, whole or not, whatever its name."""
    return _holds(_has_graph, path)


def _has_graph(path: Path) -> bool:
    """Whether this is a protobuf message with ONNX's first field, a version, and its graph."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if _varint(file) != 8 or not 0 < _varint(file) < 100:
            return False
        while (tag := _varint(file)) and tag & 7 in (0, 2) and tag >> 3 <= 40:
            value = _varint(file)  # a number, or the length of what follows
            if tag >> 3 == 7:
                return True
            if tag & 7 == 2:
                file.seek(min(value, size), os.SEEK_CUR)
    return False


def _varint(file: BinaryIO) -> int:
    """A number of protobuf, 7 bits a byte; 0 at the end of the file."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        value |= (byte[0] & 127) << shift if byte else 0
        if not byte or byte[0] < 128:
            break
    return value
