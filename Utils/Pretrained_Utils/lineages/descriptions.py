"""What a file of this project's own formats must hold, checked before anything is made of it.

CVLface's `model.yaml`: the settings of the network beside it, of which one matters here.
"""

from pathlib import Path
from typing import Any

import yaml

from Backbone.preprocessing import CHANNEL_ORDERS
from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.rename import is_plain

ARCHITECTURE = {
    "name": "text",
    "feature_dim": "a whole number",
    "input_size": "two whole numbers",
    "variant": "a dictionary",
    "preprocessing": "a dictionary",
}
PREPROCESSING = {"channel_order": "text", "mean": "a number", "scale": "a number"}
VARIANT = {
    "attention": "text",
    "shortcut": "text",
    "middle_norm": "true or false",
    "bottleneck": "true or false",
    "output_affine": "true or false",
    "normalise": "true or false",
    "width": "a whole number",
    "repeats": "whole numbers",
}
PARTS = {
    "backbone": "a dictionary of tensors",
    "averaged": "a dictionary",
    "head": "a dictionary",
    "lineage": "text",
}
AVERAGED = {"backbone": "a dictionary of tensors", "updates": "a whole number"}


def check_own(path: Path, contents: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the entry, where one is missing or of another type.

    Whether the values go together is for `Backbone.rebuild_backbone` to say.
    """
    missing = {"architecture", "backbone"} - set(contents)
    if missing:
        raise CheckpointError(f"checkpoint {path} lacks {', '.join(sorted(missing))}.")
    _check_architecture(path, contents["architecture"])
    _check(path, "", contents, {name: kind for name, kind in PARTS.items() if name in contents})
    if "averaged" in contents:
        _check(path, "averaged.", contents["averaged"], AVERAGED)
    blocks = contents["architecture"]["variant"].get("repeats", [0])
    if sum(blocks) > len(contents["backbone"]):  # each has tensors; made, they could fill memory
        raise CheckpointError(
            f"checkpoint {path}: architecture.variant.repeats is {blocks}, more blocks than the "
            f"{len(contents['backbone'])} tensors of its backbone can fill; the file is damaged."
        )


def _check_architecture(path: str | Path, architecture: Any) -> None:
    """Raise CheckpointError unless this is made as `Backbone.describe_backbone` makes it."""
    _check(path, "", {"architecture": architecture}, {"architecture": "a dictionary"})
    _check(path, "architecture.", architecture, ARCHITECTURE)
    _check(path, "architecture.preprocessing.", architecture["preprocessing"], PREPROCESSING)
    variant = architecture["variant"]
    kinds = {name: kind for name, kind in VARIANT.items() if name in variant}
    _check(path, "architecture.variant.", variant, kinds)


def _check(path: str | Path, where: str, values: dict[str, Any], kinds: dict[str, str]) -> None:
    for name, kind in kinds.items():
        if name not in values:
            raise CheckpointError(f"checkpoint {path} lacks {where}{name}.")
        if not KINDS[kind](values[name]):
            raise CheckpointError(
                f"checkpoint {path}: {where}{name} is {_shown(values[name])}; expected {kind}. The "
                f"file is damaged, or was not written by this program."
            )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_whole, value))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and is_plain(tensor) for key, tensor in value.items()
    )


KINDS = {
    "text": lambda value: isinstance(value, str),
    "a number": lambda value: _is_whole(value) or isinstance(value, float),
    "a whole number": _is_whole,
    "whole numbers": _are_whole,
    "two whole numbers": lambda value: _are_whole(value) and len(value) == 2,
    "true or false": lambda value: isinstance(value, bool),
    "a dictionary": lambda value: isinstance(value, dict),
    "a dictionary of tensors": _are_tensors,
}


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | list | tuple) else ""
    return text if 0 < len(text) < 60 else f"a {type(value).__name__}"


KEY = "color_space"
UNSET = ("", "~", "null")  # what stands for nothing in YAML, which is read as text throughout


def color_space(path: Path) -> str:
    """The channel order, "RGB" or "BGR", that a settings file names; "" where it names none.

    Raises CheckpointError where it can't be read as YAML, or names another order.
    """
    try:
        # Text only: a value that its own tag does not fit ends in an error of any kind elsewhere.
        settings = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as YAML in UTF-8, and it says the colours of the network beside "
            f"it. ({reason})"
        ) from None
    said = _find(settings)
    if said is None:
        return ""
    order = said.strip().upper() if isinstance(said, str) else ""
    if order not in CHANNEL_ORDERS:
        shown = repr(shortened(said)) if isinstance(said, str) else f"a {type(said).__name__}"
        raise CheckpointError(
            f"{path}: {KEY} is {shown}; expected {' or '.join(CHANNEL_ORDERS)}. Mend it there."
        )
    return order


def _find(settings: Any) -> Any:
    """The value of the key, which may lie in a group of settings; None where it is nowhere."""
    groups, seen = [settings], set()
    while groups:
        group = groups.pop(0)
        if not isinstance(group, dict) or id(group) in seen:  # an alias may hold itself
            continue
        seen.add(id(group))
        said = group.get(KEY, "")
        if not isinstance(said, str) or said.lower() not in UNSET:
            return said
        groups += group.values()
    return None
