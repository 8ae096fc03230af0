"""Files that are either whole or not there."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from Utils.errors import RunError, first_line

# What `atomic_path` calls its files: .NAME.SUFFIX.XXXXXXXX.SUFFIX, the X's by mkstemp.
_TEMPORARY = re.compile(r"\..*(\.[^.]+)\.[a-z0-9_]{8}\1")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed to it when the block ends without an error."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; give them the permissions any other new file would have.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def save_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write values as JSON, whole or not at all. Raises OSError where that can't be done."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=indent) + "\n")


def remove_temporaries(folder: Path) -> None:
    """Remove the files in a folder that `atomic_path` was writing in a process that was killed."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError, naming `path`, where tensors can't be written: a disk or quota is full."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's is a RuntimeError
        raise RunError(not_written(path, error)) from None


def not_written(path: Path, error: BaseException) -> str:
    """What to say where a file, or a folder of them, could not be written."""
    return (
        f"{path} can't be written ({first_line(error)}); is the disk full? What was there before "
        f"is whole."
    )


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there. Raises RunError where it can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {folder} can't be made: {error.strerror}.") from None


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, replacing it at once; a copy where links fail."""
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
