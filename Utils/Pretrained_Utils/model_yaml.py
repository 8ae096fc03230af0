"""CVLface's `model.yaml`: the settings of the network beside it, of which one matters here."""

from pathlib import Path
from typing import Any

import yaml

from Backbone.preprocessing import CHANNEL_ORDERS
from Utils.errors import CheckpointError
from Utils.names import shortened

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
