"""Weights files: found, read without running anything in them, opened, and written.

A file is a dictionary, pickled by PyTorch or a safetensors file, or a TorchScript program.
"""

import difflib
import json
import shlex
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from Utils.errors import CheckpointError, RunError, first_line
from Utils.files import (
    atomic_path,
    read_tensors,
    reading,
    refusing_code,
    write_tensors,
    writing,
)
from Utils.Pretrained_Utils.hub.download import PREFIX as HUB
from Utils.Pretrained_Utils.hub.download import WEIGHTS as HUB_WEIGHTS
from Utils.Pretrained_Utils.hub.download import cached_name, fetch
from Utils.Pretrained_Utils.stand_ins import is_torchscript, read_torchscript, stand_ins
from Utils.run_folder import COMMON, SUFFIX, run_of

BACKBONE_FORMAT = "face-backbone-1"
SAFETENSORS = ".safetensors"
FOLDER = "Pretrained"
SUFFIXES = ("", ".pt", ".pth", ".ckpt", SAFETENSORS, ".onnx")
# The file with the network inside a folder: one of the hub, CVLface's, its own at the hub, and that
# of a run's checkpoint folders.
FOLDER_FILES = (HUB_WEIGHTS, "model.pt", "pretrained_model/model.pt", COMMON)
METADATA = "face_backbone"  # entry of a safetensors file's metadata with the description


@dataclass(frozen=True)
class Description:
    """How to build a network, and whose it is.

    architecture: `Backbone.describe_backbone`'s values. lineage: its title.
    """

    architecture: dict[str, Any]
    lineage: str


@dataclass(frozen=True)
class Weights:
    """A network's weights under this project's names, with the dtypes of the file.

    description: how to build it, and whose it is. head: class weights C×D, where the file has any.
    head_by_columns: see `lineages.Lineage`.
    """

    path: Path
    description: Description
    state: dict[str, Tensor]
    head: Tensor | None
    head_by_columns: bool = False


def find_weights(name: str | Path) -> Path:
    """The weights file of a path, or of a bare name in the folder Pretrained, with its suffix or
    without. Of a folder it is the file in it that has the network. `hf:USER/NAME` is fetched from
    the Hugging Face hub, see `hub.download`.

    Raises CheckpointError if there is none.
    """
    if str(name).startswith(HUB):
        return fetch(str(name))
    path = Path(name)
    candidates = [path]
    if path.parent == Path():  # a bare name
        candidates += [Path(FOLDER) / f"{path}{suffix}" for suffix in SUFFIXES]
    for candidate in candidates:
        for file in (candidate, *(candidate / name for name in FOLDER_FILES)):
            with reading(file, "checkpoint", CheckpointError):
                if file.is_file():
                    return file
    looked = f", and {FOLDER} has none of that name" if path.parent == Path() else ""
    raise CheckpointError(f"checkpoint {path} is not a file{looked}.{_files_like(path)}")


def default_output(checkpoint: Path) -> Path:
    """Results/<run>_<checkpoint>, where evaluations of a weights file are written: its own folder
    may be read-only."""
    name = cached_name(checkpoint)
    if checkpoint.name in (HUB_WEIGHTS, COMMON):  # one name for all; that of the folder tells more
        checkpoint = checkpoint.absolute().parent
    run = run_of(checkpoint)
    stem = checkpoint.stem if checkpoint.suffix in (*SUFFIXES, SUFFIX) else checkpoint.name
    return Path("Results") / (name or (f"{run.name}_{stem}" if run else stem))


def _files_like(path: Path) -> str:
    """A sentence on files that may be meant: those in a folder, or of nearly the same name."""
    folder = path if path.is_dir() else FOLDER if path.parent == Path() else path.parent
    found = sorted(file for file in Path(folder).glob("*") if file.suffix in SUFFIXES[1:])
    if not path.is_dir():
        close = difflib.get_close_matches(path.name, [file.name for file in found])
        found = [file for file in found if file.name in close]
    shown = ", ".join(f"`{shlex.quote(str(file))}`" for file in found[:3])
    return f" Did you mean {shown}?" if shown else ""


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a file: tensors and plain values; a safetensors file's description included.

    Tensors stay on the disk until they are used, where the format allows it: most callers need
    names and shapes, or a few tensors. Raises CheckpointError if it can't be read, or needs code
    to be read.
    """
    if _is_safetensors(path):
        return _read_safetensors(path)
    if is_torchscript(path):
        with refusing_code(path):
            contents = read_torchscript(path)
        if not contents:
            raise CheckpointError(
                f"checkpoint {path} is a TorchScript program whose weights are constants of its "
                f"code, without names; save the program before it is frozen."
            )
        return contents
    with torch.serialization.safe_globals(stand_ins(path)):
        contents = read_tensors(path, lazily=True)
    if isinstance(contents, list | tuple):
        contents = dict(enumerate(contents))
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(contents).__name__}, not a dictionary of tensors; "
            f"give the file of the network."
        )
    return contents


def writable_target(path: Path, suffixes: tuple[str, ...]) -> Path:
    """The path of a file to write. Raises RunError for another suffix, a folder, or none above."""
    if path.suffix not in suffixes:
        raise RunError(f"{path} must end in {' or '.join(suffixes)}, which says its format.")
    with reading(path, "target", RunError):
        if path.is_dir():
            raise RunError(f"{path} is a folder; name a file to write.")
        if not path.parent.is_dir():
            make = shlex.join(["mkdir", "-p", str(path.parent)])
            raise RunError(f"the folder {path.parent} does not exist; make it with `{make}`.")
    return path


def described(state: Mapping[str, Tensor], description: Description) -> dict[str, Any]:
    """The contents of a bare backbone file: all that is needed to build the network again."""
    return {
        "format": BACKBONE_FORMAT,
        "architecture": description.architecture,
        "lineage": description.lineage,
        "backbone": dict(state),
    }


def write_backbone(
    path: Path, state: Mapping[str, Tensor], description: Description | None
) -> None:
    """Write tensors with the dtypes they have; with a description as this project's bare backbone
    file, without one as a plain state_dict.

    path: `.safetensors`, or any other suffix for PyTorch's own format. Raises RunError if it
    can't be written.
    """
    # Copies: of a view the whole storage would be written, and safetensors refuses a shared one.
    state = {
        name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    if path.suffix == SAFETENSORS:
        metadata = {"format": "pt"}  # what other readers of these files look for
        if description:
            metadata[METADATA] = json.dumps(described({}, description))
        with writing(path), atomic_path(path) as temporary:
            save_file(dict(state), temporary, metadata=metadata)
        return
    contents = described(state, description) if description else dict(state)
    write_tensors(path, contents)


def check_whole(path: Path) -> None:
    """Raise CheckpointError if the bytes of a .pt file that this program wrote have changed since:
    PyTorch itself reads the zeros that a power cut or a bad disk leaves in it as weights."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        damaged = first_line(error)
    if damaged is not None:
        raise CheckpointError(
            f"checkpoint {path} is damaged: the check sum of {damaged} is wrong. Fetch it again."
        )


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as that format does, whatever its name: with the length of a JSON
    object in 8 bytes, little-endian, and the object."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError:  # `read_tensors` will report it
        return False
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # A slice of a 0-d tensor does not exist, so whole tensors, and not lazily.
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            about = (file.metadata() or {}).get(METADATA)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} can't be read: it is truncated or not a safetensors file. "
            f"Fetch it again. ({error})"
        ) from None
    return {**_description_in(path, about), "backbone": state} if about else state


def _description_in(path: Path, about: str) -> dict[str, Any]:
    """The description that `write_backbone` puts into a safetensors file's metadata."""
    try:
        description = json.loads(about)
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise CheckpointError(
            f"checkpoint {path}: its metadata entry {METADATA} is not the description of a network "
            f"that this program writes; the file is damaged."
        )
    return description
