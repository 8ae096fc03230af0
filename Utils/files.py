"""Writing files completely or not at all; reading tensors without running any code."""

import copy
import errno
import io
import json
import os
import pickle
import re
import shlex
import shutil
import struct
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from Utils.errors import CheckpointError, DataError, RunError, UserError, first_line
from Utils.file_kinds import other_kind
from Utils.pickle_checks import UnsafePickleError, check_checkpoint

_SHOWN = 3  # functions and classes that an error names

# Python that keeps the tensors of a file, in dictionaries or in modules.
_SAVE_WEIGHTS = (
    "import torch; "
    'f = lambda v: v.state_dict() if hasattr(v, "state_dict") else v; '
    'd = f(torch.load({source}, "cpu", weights_only=False)); '
    'torch.save({{k: f(v) for k, v in d.items() if hasattr(f(v), "keys") or torch.is_tensor(v)}}, '
    "{target})"
)

# What `torch.load` raises for files that are truncated or are not checkpoints.
_READ_ERRORS = (
    *(RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, OSError),
    *(zipfile.BadZipFile, struct.error, AssertionError, SafetensorError),
)

_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")  # in JSON

# What `os.replace` raises on file systems that do not rename over an existing file.
_NO_REPLACE = (
    *(errno.EEXIST, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP),
)

# What `atomic_path` calls its files: .NAME.SUFFIX.XXXXXXXX.SUFFIX, the X's by mkstemp.
_TEMPORARY = re.compile(r"\..*(\.[^.]+)\.[a-z0-9_]{8}\1")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; renamed to it when the block ends without an error.

    Raises RunError, naming `path`, if the file can't be written. An OSError about another file,
    one that the block reads, is left as it is.
    """
    path = Path(path)
    temporary = None
    try:
        # The end of the name is enough: with all of it, the longest names would be too long.
        prefix = f".{path.name[-50:]}."
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes files private; give them the permissions any other new file would have.
        with suppress(PermissionError):  # of a file system without permissions
            temporary.chmod(0o666 & ~_umask())
        replace(temporary, path)
    except OSError as error:
        if temporary is None or error.filename in (None, str(temporary)):
            raise RunError(not_written(path, error)) from None
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def save_json(path: Path, values: Any, indent: int = 2) -> None:
    """Write values as JSON, whole or not at all. Raises RunError if that can't be done."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(values, indent=indent) + "\n")


@contextmanager
def reading(path: Path | str, what: str, raises: type[UserError] = DataError) -> Iterator[None]:
    """Turn an OSError of the block into an error that names the file.

    what: the kind of file for the error, such as "image list". raises: the class of the error.
    """
    try:
        yield
    except OSError as error:
        raise raises(f"the {what} {path} can't be read: {_reason(error)}.") from None


def read_json(path: Path | str, what: str, raises: type[UserError] = DataError) -> Any:
    """The values in a JSON file. Raises an error that names the file if it is not there or not
    JSON, or has a text with a NUL in it, which no name has; what, raises: as in `reading`."""
    with reading(path, what, raises):
        content = Path(path).read_bytes()
    if nul := _NUL.search(content):
        line = content.count(b"\n", 0, nul.start()) + 1
        raise raises(f"the {what} {path} has a NUL, \\u0000, in line {line}; take it out.")
    try:
        values = json.loads(content, object_pairs_hook=_once)
        if b"\\ud" in content.lower():  # half a character, which no file's name can have
            json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogateescape")
        return values
    except (ValueError, RecursionError) as error:
        raise raises(f"the {what} {path} is not JSON: {error}.") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError for a key that is there twice: programs differ
    in which value they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {key[:80]!r} is there twice in one object")
    return found


def not_by_link(path: str, flags: int) -> int:
    """An opener for `open`: OSError for a symbolic link, or for a pipe that nobody reads. A run's
    folder may be somebody else's, and what is appended to its files must not reach others."""
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags, 0o666)


def remove_temporaries(folder: Path) -> None:
    """Remove the files in a folder that `atomic_path` was writing in a process that was killed."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError, naming `path`, if a library can't write tensors: a disk or quota is full.

    For blocks that do nothing but write: PyTorch raises a RuntimeError, which may be anything.
    """
    try:
        yield
    except RunError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(not_written(path, error)) from None


def not_written(path: Path | str, error: BaseException) -> str:
    """The error's text for a file, or a folder of them, that could not be written."""
    return (
        f"{path} can't be written ({_reason(error)}); is the disk full? What was there before "
        f"is whole."
    )


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless it exists. Raises RunError if it can't be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"the folder {folder} can't be made: {_reason(error)}.") from None


def _reason(error: BaseException) -> str:
    """The system's words for an OSError, without its number and without temporary names."""
    return getattr(error, "strerror", None) or first_line(error)


def replace(source: Path, target: Path) -> None:
    """Rename a file; another of the new name is replaced, at once where the file system can do
    that. Raises OSError, and both are as they were."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in _NO_REPLACE or not os.path.lexists(target):
            raise
        aside = target.with_name(f".{target.name}.old")
        aside.unlink(missing_ok=True)
        os.rename(target, aside)
        try:
            os.rename(source, target)
        except OSError:
            os.rename(aside, target)
            raise
        aside.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, replacing it at once; a copy where links fail.

    Raises RunError if neither can be done.
    """
    temporary = target.with_name(f".{target.name}.link")
    with writing(target):
        temporary.unlink(missing_ok=True)
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        replace(temporary, target)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_tensors(path: str | Path, lazily: bool = False) -> dict[str, Any]:
    """Read any file of tensors and plain values on the CPU.

    lazily: leave tensors on the disk until they are used, for a caller who needs few of them.
    Raises CheckpointError if the file is missing, truncated, no checkpoint, or needs code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} is not a file.")
    with refusing_code(path):
        check_checkpoint(path)
        mapped = lazily and zipfile.is_zipfile(path)  # older files can't be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


@contextmanager
def refusing_code(path: Path) -> Iterator[None]:
    """Raise CheckpointError, which says why, for what `torch.load` raises in reading a file."""
    try:
        yield
    except pickle.UnpicklingError as error:
        why = other_kind(path) or _refusal(path, error)
        raise CheckpointError(f"checkpoint {path} can't be read: {why}") from None
    except UnsafePickleError as error:
        raise CheckpointError(
            f"checkpoint {path} can't be read: {error}, with which no network is saved; refused."
        ) from None
    except MemoryError:
        why = other_kind(path) or (
            "it asks for more memory than there is: it is damaged, or needs a larger machine."
        )
        raise CheckpointError(f"checkpoint {path} can't be read: {why}") from None
    except _READ_ERRORS as error:
        why = other_kind(path) or _damage(error)
        raise CheckpointError(f"checkpoint {path} can't be read: {why}") from None


def unsafe_names(path: Path) -> list[str]:
    """The functions and classes, beyond those of tensors, that a file's pickle names.

    Nothing in it is run. Empty for a file of another format, or a damaged one.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a damaged file raises many kinds; reading it will report them
        return []


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write a file of tensors and plain values, whole or not at all.

    Tensors of a GPU are written as the CPU's, so that machines without one can read them. The file
    is on the disk before it has its name: otherwise, after a power cut, it might be empty.
    Raises RunError if that can't be done.
    """
    with (
        writing(path),
        atomic_path(path) as temporary,
        _Remembering(temporary, "w") as raw,
        io.BufferedWriter(raw) as file,
    ):
        try:
            torch.save(_on_cpu(state), file)
        except RuntimeError as error:
            raise (raw.error or error) from None
        file.flush()
        sync(file.fileno())


class _Remembering(io.FileIO):
    """A file that keeps why it could not be written: PyTorch does not always say it."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def sync(descriptor: int) -> None:
    """Have a file, or the names in a folder, on the disk. Raises OSError if the disk fails; file
    systems that can't do it are left alone."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EROFS):
            raise


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        copied = copy.copy(value)  # a module's state_dict keeps its versions
        copied.update((key, _on_cpu(entry)) for key, entry in value.items())
        return copied
    return [_on_cpu(entry) for entry in value] if isinstance(value, list) else value


def _refusal(path: Path, error: pickle.UnpicklingError) -> str:
    """Why the unpickler stopped; PyTorch's own text is about its options."""
    # Files from before PyTorch 1.6 are no archives; the unpickler then names what it met first.
    names = unsafe_names(path) or re.findall(r"GLOBAL (\S+)", str(error))
    if not names:
        return "it is not a checkpoint, or a damaged one; nothing in it was run. Fetch it again."
    shown = ", ".join(name[:80] for name in names[:_SHOWN]) + (", ..." if names[_SHOWN:] else "")
    target = path.with_name(f"{path.stem}_weights.pt")
    code = _SAVE_WEIGHTS.format(source=json.dumps(str(path)), target=json.dumps(str(target)))
    return (
        f"it needs code to be read ({shown}); nothing in it was run. If you trust it, save its "
        f"tensors alone where the program that wrote it is installed, which runs that code: "
        f"`python -c {shlex.quote(code)}`."
    )


def _damage(error: Exception) -> str:
    return f"it is truncated or not a checkpoint. Fetch it again. ({first_line(error)})"
