"""Where in a file's contents the network is: under which keys, and with which prefix to its names.

Training programs keep a network's tensors at the top of a file or in nested dictionaries, beside an
optimiser and a head, with the names of the modules around it in front (`features.module.conv1`).
`open_contents` lists every place that could hold a whole network; which one does is decided by
comparison with the known networks.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

# Keys under which files keep a network's tensors, and those of its head.
CONTAINERS = ("net_state_dict", "state_dict_backbone", "state_dict", "backbone", "model")
HEAD_CONTAINERS = ("state_dict_softmax_fc", "head", "HEAD")
# Modules around a network in training programs.
PREFIXES = ("backbone.", "model.", "net.", "encoder.", "student.", "features.")
# Modules beside a network that a program trains with it and leaves out afterwards.
HEADS = re.compile(r"(head|fc|parallel_fc|margin|classifier|loss|criterion|metric_fc|product)\.")
HEAD_PREFIX = "head."
# Put in front by DataParallel and DistributedDataParallel, and by torch.compile.
WRAPPERS = re.compile(r"(^|\.)(?:(?:module|_orig_mod)\.)+")
FEWEST = 50  # tensors of a network; the smallest known has more
DEEPEST = 4  # dictionaries in each other


@dataclass(frozen=True)
class Contents:
    """The tensors of one place in a file, by names without prefix and wrappers.

    container: the keys that lead there, joined by dots; "" for the top. prefix: that of the
    network's names. head: the tensors of the classifier, if there are any. extra: those that are
    beside the network and are no head's. keys: all keys at the top of the file.
    """

    container: str
    prefix: str
    network: State
    head: State
    extra: State
    keys: frozenset[str]

    @property
    def place(self) -> str:
        """Keys and prefix in one, for messages and for `--part`; "." for the top of the file."""
        return ".".join(filter(None, (self.container, self.prefix.rstrip(".")))) or "."


def open_contents(tree: dict[str, Any]) -> list[Contents]:
    """Every place that could hold a network, the likeliest first; there is at least one."""
    states = list(_states(tree))
    order = {key: rank for rank, key in enumerate(CONTAINERS)}
    states.sort(key=lambda item: (order.get(item[0], len(order)), -len(item[1])))
    # The first is there for messages, whatever it holds.
    states = states[:1] + [state for state in states[1:] if len(state[1]) >= FEWEST]
    first_container, first = states[0] if states else ("", {})
    likely = _usual_prefix(first)
    places = [(first_container, first, likely)]
    places += [
        (container, state, prefix)
        for container, state in states
        for prefix in _prefixes(state)
        if (container, prefix) != (first_container, likely)
    ]
    beside = open_head(tree, HEAD_CONTAINERS) if _has_head(tree) else {}
    keys = frozenset(map(str, tree))
    return [_contents(*place, beside, keys) for place in places]


def open_head(tree: dict[str, Any], containers: tuple[str, ...] = ()) -> State:
    """The tensors of a file that holds a head, by names without wrappers."""
    keys = containers or (*HEAD_CONTAINERS, *CONTAINERS)
    inside = next((tree[key] for key in keys if _has_tensors(tree.get(key))), tree)
    return _named(inside)


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of real numbers, as weights are."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )


def _states(tree: dict[Any, Any]) -> Iterator[tuple[str, State]]:
    """The dictionaries with tensors in them, with the first keys that lead to each."""
    level, seen = [("", tree)], {id(tree)}  # a dictionary may be in several, or in itself
    for _ in range(DEEPEST + 1):
        below = []
        for path, found in level:
            if state := _named(found):
                yield path, state
            for key, value in found.items():
                if isinstance(value, dict) and id(value) not in seen:
                    seen.add(id(value))
                    below.append((f"{path}.{key}" if path else str(key), value))
        level = below


def _named(tree: dict[Any, Any]) -> State:
    state = {str(key): value for key, value in tree.items() if is_plain(value)}
    bare = {WRAPPERS.sub(r"\1", name): tensor for name, tensor in state.items()}
    return bare if len(bare) == len(state) else state  # two tensors never become one


def _usual_prefix(state: State) -> str:
    """The words of PREFIXES in front of most names."""
    prefix, names = "", [name for name in state if not name.startswith(HEAD_PREFIX)]
    while True:
        heads = Counter(next((p for p in PREFIXES if n.startswith(p)), "") for n in names)
        most = max(heads, key=heads.get, default="")
        if not most:
            return prefix
        prefix += most
        names = [name.removeprefix(most) for name in names if name.startswith(most)]


def _prefixes(state: State, prefix: str = "") -> Iterator[str]:
    """ "", and everything in front of a dot that enough names begin with."""
    yield prefix
    at = len(prefix)
    words = Counter(n[at:].partition(".")[0] for n in state if n.startswith(prefix))
    for word, count in words.items():
        if count >= FEWEST and any(n.startswith(f"{prefix}{word}.") for n in state):
            yield from _prefixes(state, f"{prefix}{word}.")


def _contents(
    container: str, state: State, prefix: str, beside: State, keys: frozenset[str]
) -> Contents:
    network, head, extra = {}, dict(beside), {}
    for name, tensor in state.items():
        if prefix and name.startswith(prefix):
            network[name.removeprefix(prefix)] = tensor
        elif name.startswith(HEAD_PREFIX) or (prefix and HEADS.match(name)):
            head[name.removeprefix(HEAD_PREFIX)] = tensor
        elif prefix:
            extra[name] = tensor
        else:
            network[name] = tensor
    return Contents(container, prefix, network, head, extra, keys)


def _has_head(tree: dict[str, Any]) -> bool:
    return any(_has_tensors(tree.get(key)) for key in HEAD_CONTAINERS)


def _has_tensors(value: Any) -> bool:
    return isinstance(value, dict) and any(map(is_plain, value.values()))
