"""Where in a file the tensors of a network and of its head lie, and what is before their names.

Files are pickled dictionaries; the tensors are at the top of it or under one of a few keys.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from Utils.Pretrained_Utils.rename import State, is_plain

# Keys under which files keep a network's tensors, and those of its head.
CONTAINERS = ("net_state_dict", "state_dict_backbone", "state_dict", "backbone", "model")
HEAD_CONTAINERS = ("state_dict_softmax_fc", "head")
# Longer ones first: the first that fits counts.
PREFIXES = ("model.net.", "backbone.", "model.", "net.")
HEAD_PREFIX = "head."
# Put in front by DataParallel and DistributedDataParallel, and by torch.compile.
WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")


@dataclass(frozen=True)
class Contents:
    """container: the key under which the tensors lay, "" at the top. prefix: taken off their names.
    head: the tensors of the classifier, where there are any."""

    container: str
    prefix: str
    network: State
    head: State


def open_contents(tree: dict[str, Any]) -> Contents:
    """Find the network's tensors in what a file holds, and take wrappers and prefixes off.

    The prefix is that of most tensors. What has neither it nor that of a head stays with the
    network, as it is: whoever compares it with one sees that there is more.
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
    """The tensors of a file that holds a head, without wrappers."""
    return _tensors(tree, (*HEAD_CONTAINERS, *CONTAINERS))[1]


def _tensors(tree: dict[str, Any], containers: tuple[str, ...]) -> tuple[str, State]:
    """The first of these keys under which there are tensors, and them, without wrappers; those at
    the top where it is none."""
    container = next((key for key in containers if _has_tensors(tree.get(key))), "")
    state = tree[container] if container else tree
    return container, {
        WRAPPERS.sub(r"\1", str(key)): value for key, value in state.items() if is_plain(value)
    }


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(is_plain, value.values()))
