"""Weights files: found, read without running anything in them, opened, and written.

A file is a dictionary, pickled by PyTorch or a safetensors file. The network's tensors are at the
top of it or under one of a few keys, with a prefix before their names or none: `open_contents`
finds them, and those of a head.
"""

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from Utils.errors import CheckpointError, RunError
from Utils.files import atomic_path, read_tensors, reading, unsafe_names, writing
from Utils.run_folder import COMMON

BACKBONE_FORMAT = "face-backbone-1"
SAFETENSORS = ".safetensors"
FOLDER = "Pretrained"
SUFFIXES = ("", ".pt", ".pth", ".ckpt", SAFETENSORS)
# The file with the network inside a folder: CVLface's, and that of a run's checkpoint folders.
FOLDER_FILES = ("model.pt", COMMON)
LIGHTNING = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.")
METADATA = "face_backbone"  # entry of a safetensors file's metadata with the description
# Keys under which files keep a network's tensors, and those of its head.
CONTAINERS = ("net_state_dict", "state_dict_backbone", "state_dict", "backbone", "model")
HEAD_CONTAINERS = ("state_dict_softmax_fc", "head")
# Longer ones first: the first that fits counts.
PREFIXES = ("model.net.", "backbone.", "model.", "net.")
HEAD_PREFIX = "head."
# Put in front by DataParallel and DistributedDataParallel, and by torch.compile.
WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Description:
    """How to build a network, and whose it is.

    architecture: `Backbone.describe_backbone`'s values. lineage: its title.
    """

    architecture: dict[str, Any]
    lineage: str


def find_weights(name: str | Path) -> Path:
    """The weights file of a path, or of a bare name in the folder Pretrained, with its suffix or
    without. Of a folder it is the file in it that has the network.

    Raises CheckpointError if there is none.
    """
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
    raise CheckpointError(f"checkpoint {path} is not a file{looked}.")


def read_file(path: Path) -> dict[str, Any]:
    """The contents of a file: tensors and plain values; a safetensors file's description included.

    Tensors stay on the disk until they are used, where the format allows it: most callers need
    names and shapes, or a few tensors. Raises CheckpointError if it can't be read, or needs code
    to be read.
    """
    if _is_safetensors(path):
        return _read_safetensors(path)
    with torch.serialization.safe_globals(_stand_ins(path)):
        contents = read_tensors(path, lazily=True)
    if not isinstance(contents, dict):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(contents).__name__}, not a dictionary of tensors."
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
            raise RunError(f"the folder {path.parent} does not exist; make it first.")
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
    with writing(path), atomic_path(path) as temporary:
        torch.save(contents, temporary)


def _stand_ins(path: Path) -> list[tuple[type, str]]:
    """Empty classes in place of those that Lightning's checkpoints name beside their tensors.

    Older ones have a callback's class as the key of its state, or settings and enumerations of
    Lightning's own classes. With a stand-in for the name the file can be read, and neither
    Lightning nor anything in the file is run.
    """
    names = unsafe_names(path)
    return [(type("StandIn", (_StandIn,), {}), n) for n in names if n.startswith(LIGHTNING)]


class _StandIn:
    """Makes an empty dictionary, whatever the arguments."""

    def __new__(cls, *_: Any, **__: Any) -> OrderedDict:
        return OrderedDict()  # of the few types that the unpickler fills


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
            f"checkpoint {path} can't be read: it is truncated or not a safetensors file. ({error})"
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


@dataclass(frozen=True)
class Contents:
    """The tensors of a file, by names without prefix.

    container: the key under which the network's were, "" for the top. prefix: that of their names.
    head: the tensors of the classifier, if there are any.
    """

    container: str
    prefix: str
    network: State
    head: State


def open_contents(tree: dict[str, Any]) -> Contents:
    """Find the network's tensors in a file's contents, and remove wrappers and prefix from names.

    The prefix is that of most tensors. Tensors with neither it nor a head's stay in `network` under
    their own names, so that a comparison with a known network shows them as extra.
    """
    container, state = _tensors(tree, CONTAINERS)
    head_container, head = _tensors(tree, HEAD_CONTAINERS)
    if not head_container:
        head = {}
    prefix = _prefix(state)
    if not prefix:
        return Contents(container, "", state, head)
    head |= {k.removeprefix(HEAD_PREFIX): v for k, v in state.items() if k.startswith(HEAD_PREFIX)}
    network = {k.removeprefix(prefix): v for k, v in state.items() if not k.startswith(HEAD_PREFIX)}
    return Contents(container, prefix, network, head)


def _prefix(state: State) -> str:
    """The prefix that most tensors have, those of a head aside; "" where most have none."""
    found = Counter(
        next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        for key in state
        if not key.startswith(HEAD_PREFIX)
    )
    return max(found, key=found.get, default="")


def open_head(tree: dict[str, Any]) -> State:
    """The tensors of a file that holds a head, by names without wrappers."""
    return _tensors(tree, (*HEAD_CONTAINERS, *CONTAINERS))[1]


def _tensors(tree: dict[str, Any], containers: tuple[str, ...]) -> tuple[str, State]:
    """The first of these keys under which there are tensors, "" for none; and the tensors there, or
    else at the top, by names without wrappers."""
    container = next((key for key in containers if _has_tensors(tree.get(key))), "")
    state = tree[container] if container else tree
    return container, {
        WRAPPERS.sub(r"\1", str(key)): value for key, value in state.items() if is_plain(value)
    }


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(is_plain, value.values()))


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of real numbers, as weights are."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )
