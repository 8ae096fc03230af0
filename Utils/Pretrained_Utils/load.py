"""Backbones from checkpoint files. Nothing in a file is ever executed."""

from pathlib import Path
from typing import Any

from torch import nn

from Backbone import build_backbone
from Config import Config
from Utils.errors import CheckpointError
from Utils.Training_Utils.checkpoint import FORMAT, read

SHOWN_KEYS = 5


def load_backbone(path: str | Path, name: str | None = None) -> nn.Module:
    """Read the backbone of a checkpoint that Train.py wrote.

    path: the file. name: the backbone that it must be; None takes whatever it is.

    Returns it in evaluation mode on the CPU, with its `preprocessing`. Raises CheckpointError for
    a file that can't be read, that is no such checkpoint, or that holds another backbone.
    """
    state = read(path)
    if not (isinstance(state, dict) and state.get("format") == FORMAT):
        raise CheckpointError(f"checkpoint {path} was not written by Train.py. {_contents(state)}")
    config = Config.from_dict(state["settings"])
    if name is not None and name != config.backbone:
        raise CheckpointError(f"checkpoint {path} holds a {config.backbone}, not a {name}.")
    backbone = build_backbone(config.backbone, config.feature_dim, config.input_size)
    try:
        backbone.load_state_dict(state["backbone"])
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {path} does not fit {config.backbone}: {str(error).splitlines()[-1]}"
        ) from None
    return backbone.eval()


def _contents(state: Any) -> str:
    if not isinstance(state, dict):
        return f"It holds a {type(state).__name__}."
    return f"It holds: {', '.join(map(str, list(state)[:SHOWN_KEYS]))}, ..."
