"""What the config.json of a hub's folder says of the network beside it.

Two kinds of them describe a network that can be built here: this project's, and timm's. Any other
is left alone: the network is then recognised by its tensors, as in a file without one.
"""

import json
from pathlib import Path
from typing import Any

import torch

from Backbone import PREFIX as TIMM
from Backbone.timm_network import settings_problem
from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.files import reading
from Utils.Pretrained_Utils.files import BACKBONE_FORMAT
from Utils.Pretrained_Utils.hub.download import CONFIG, SUFFIX
from Utils.Pretrained_Utils.lineages.descriptions import check_kinds

_LARGEST = 1 << 20  # bytes; they have some hundreds
_OURS = {"format": "text", "architecture": "a dictionary", "lineage": "text"}
_TIMMS = {
    "architecture": "text",
    "num_classes?": "a whole number",
    "model_args?": "a dictionary",
    "pretrained_cfg": {
        "mean": "three numbers",
        "std": "three numbers",
        "input_size": "three whole numbers",
        "num_classes?": "a whole number",
    },
}


def with_config(path: Path, contents: dict[str, Any]) -> dict[str, Any]:
    """The contents of a .safetensors file, as a bare backbone file has them if the config.json
    beside it describes the network; otherwise as they are.

    Raises CheckpointError for a config.json that can't be read, that describes no network that can
    be built, or that says something else than the file itself.
    """
    config = path.with_name(CONFIG)
    if path.suffix != SUFFIX or not config.is_file():
        return contents
    values = _read(config)
    if values.get("format") == BACKBONE_FORMAT:
        return _ours(config, values, path, contents)
    if isinstance(values.get("pretrained_cfg"), dict):
        return _timms(config, values, contents)
    return contents


def _read(config: Path) -> dict[str, Any]:
    with reading(config, "settings file", CheckpointError), config.open("rb") as file:
        content = file.read(_LARGEST + 1)
    try:
        values = json.loads(content) if len(content) <= _LARGEST else None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{config} is not JSON: {error}.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{config} is no JSON object of at most 1 MB; expected settings.")
    return values


def _ours(
    config: Path, values: dict[str, Any], path: Path, contents: dict[str, Any]
) -> dict[str, Any]:
    check_kinds(config, "", values, _OURS)
    about = {name: values[name] for name in _OURS}
    if "format" not in contents:  # another program wrote the file again, without its metadata
        return {**about, "backbone": contents}
    for name in ("format", "architecture"):
        if contents.get(name) != about[name]:
            raise CheckpointError(
                f"{config} describes another network than {path.name} beside it does in its "
                f"metadata: they differ in {name}. Fetch both again, or remove one's description."
            )
    return contents


def _timms(config: Path, values: dict[str, Any], contents: dict[str, Any]) -> dict[str, Any]:
    """A network that timm saved, as the module `Backbone.timm_network.TimmNetwork` holds it."""
    check_kinds(config, "", values, _TIMMS)
    given, settings = values["pretrained_cfg"], values.get("model_args", {})
    if problem := settings_problem(settings):
        raise CheckpointError(f"{config}: model_args can't be used: {problem}.")
    feature_dim = values.get("num_classes", given.get("num_classes", 0))
    channels, *size = given["input_size"]
    if feature_dim < 1 or channels != 3:
        raise CheckpointError(
            f"{config} describes a network of timm with {channels} channels of input and "
            f"num_classes {feature_dim}; expected 3, and the size of the embedding."
        )
    constants = {name: torch.tensor(given[name]).view(1, -1, 1, 1) for name in ("mean", "std")}
    return {
        "format": BACKBONE_FORMAT,
        "architecture": {
            "name": TIMM + shortened(values["architecture"], 100),
            "feature_dim": feature_dim,
            "input_size": size,
            "variant": {"settings": settings} if settings else {},
            "preprocessing": {"channel_order": "RGB", "mean": 0.0, "scale": 255.0},
        },
        "lineage": "timm's folder",
        "backbone": {**{f"network.{name}": t for name, t in contents.items()}, **constants},
    }
