"""What files say of their own networks, checked before anything is built from it.

`check_own` looks at the entries of this project's two formats, a run's checkpoint and a bare
backbone file; `color_space` reads the one setting that matters here in CVLface's model.yaml.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from Backbone.preprocessing import CHANNEL_ORDERS
from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.files import reading
from Utils.Pretrained_Utils.contents import is_plain


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_integers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_integer, value))


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        _is_integer(entry) or isinstance(entry, float) for entry in value
    )


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and is_plain(tensor) for key, tensor in value.items()
    )


# In the words of an error: what an entry may be expected to be.
KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "a number": lambda value: _is_integer(value) or isinstance(value, float),
    "a whole number": _is_integer,
    "whole numbers": _are_integers,
    "two whole numbers": lambda value: _are_integers(value) and len(value) == 2,
    "three whole numbers": lambda value: _are_integers(value) and len(value) == 3,
    "three numbers": lambda value: _are_numbers(value) and len(value) == 3,
    "true or false": lambda value: isinstance(value, bool),
    "a dictionary": lambda value: isinstance(value, dict),
    "a dictionary of tensors": _are_tensors,
}
# What each entry must be, by name. Those with ? may be missing: a backbone has the settings of its
# own family alone.
ENTRIES = {
    "architecture": {
        "name": "text",
        "feature_dim": "a whole number",
        "input_size": "two whole numbers",
        "preprocessing": {"channel_order": "text", "mean": "a number", "scale": "a number"},
        "variant": {
            "attention?": "text",
            "shortcut?": "text",
            "middle_norm?": "true or false",
            "bottleneck?": "true or false",
            "output_affine?": "true or false",
            "normalise?": "true or false",
            "width?": "a whole number",
            "repeats?": "whole numbers",
            "patch_size?": "a whole number",
            "heads?": "a whole number",
            "mlp_ratio?": "a whole number",
            "drop_path?": "a number",
            "mask_ratio?": "a number",
            "keypoints?": "true or false",
            "settings?": "a dictionary",
        },
    },
    "backbone": "a dictionary of tensors",
    "averaged?": {"backbone": "a dictionary of tensors", "updates": "a whole number"},
    "head?": "a dictionary",
    "lineage?": "text",
}


def check_own(path: Path, contents: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the entry, if one is missing or of another type.

    Whether the values fit together is checked by `Backbone.rebuild_backbone`.
    """
    check_kinds(path, "", contents, ENTRIES)
    architecture = contents["architecture"]
    known = ENTRIES["architecture"]["preprocessing"]
    if unknown := architecture["preprocessing"].keys() - known:
        raise CheckpointError(
            f"checkpoint {path}: architecture.preprocessing has {shortened(min(unknown))}, which "
            f"this version of the program does not know."
        )
    blocks = architecture["variant"].get("repeats", [0])
    if sum(blocks) > len(contents["backbone"]):  # each has tensors; built, they could fill memory
        raise CheckpointError(
            f"checkpoint {path}: architecture.variant.repeats is {blocks}, more blocks than the "
            f"{len(contents['backbone'])} tensors of its backbone can fill; the file is damaged."
        )


def check_kinds(path: Path, where: str, values: dict[str, Any], entries: dict[str, Any]) -> None:
    """Raise CheckpointError, naming the entry, if one is missing or not what `entries` says.

    where: the names above it, each with a dot. entries: as in ENTRIES, nested like the values.
    """
    missing = [name for name in entries if name not in values and not name.endswith("?")]
    if missing:
        raise CheckpointError(
            f"checkpoint {path} lacks {', '.join(where + name for name in missing)}."
        )
    for entry, expected in entries.items():
        name = entry.removesuffix("?")
        if name not in values:
            continue
        kind = "a dictionary" if isinstance(expected, dict) else expected
        if not KINDS[kind](values[name]):
            raise CheckpointError(
                f"checkpoint {path}: {where}{name} is {_shown(values[name])}; expected {kind}. The "
                f"file is damaged, or was not written by this program."
            )
        if isinstance(expected, dict):
            check_kinds(path, f"{where}{name}.", values[name], expected)


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | int | float | list | tuple) else ""
    return text if 0 < len(text) < 60 else f"a {type(value).__name__}"


def color_space_of(path: Path) -> str:
    """The channel order that a file beside a network names, "RGB" or "BGR"; "" where none does.

    These are `<name>.yaml`, and for CVLface's folders at the hub config.json, and the settings of
    the folder pretrained_model. Raises CheckpointError as `color_space` does.
    """
    places = [path.with_suffix(".yaml")]
    if path.suffix == ".safetensors":
        places += [path.with_name("pretrained_model") / "model.yaml", path.with_name("config.json")]
    return next((order for place in places if (order := color_space(place))), "")


KEY = "color_space"
UNSET = ("", "~", "null")  # YAML's words for no value; here all values are read as text


def color_space(path: Path) -> str:
    """The channel order, "RGB" or "BGR", that a settings file names; "" where it names none, or
    if there is no such file.

    Raises CheckpointError if it can't be read as YAML, or names another order.
    """
    with reading(path, "settings file", CheckpointError):
        content = path.read_bytes() if path.is_file() else b""
    if not content:
        return ""
    import yaml  # here, because few weights have such a file and nothing else needs the package

    try:
        # Text only: a value that does not fit its own tag could raise an error of any kind.
        settings = yaml.load(content.decode(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{path} can't be read as YAML in UTF-8, and it names the colours of the network "
            f"beside it; give `--channel_order RGB` or `--channel_order BGR` instead. ({reason})"
        ) from None
    value = _find(settings)
    if value is None:
        return ""
    order = value.strip().upper() if isinstance(value, str) else ""
    if order not in CHANNEL_ORDERS:
        shown = repr(shortened(value)) if isinstance(value, str) else f"a {type(value).__name__}"
        raise CheckpointError(
            f"{path}: {KEY} is {shown}; expected {' or '.join(CHANNEL_ORDERS)}. Correct it there, "
            f"or give `--channel_order`."
        )
    return order


def _find(settings: Any) -> Any:
    """The value of the key, in the settings or in a group of them; None if it is not there."""
    groups, seen = [settings], set()
    while groups:
        group = groups.pop(0)
        if not isinstance(group, dict) or id(group) in seen:  # an alias may hold itself
            continue
        seen.add(id(group))
        value = group.get(KEY, "")
        if not isinstance(value, str) or value.lower() not in UNSET:
            return value
        groups += group.values()
    return None
