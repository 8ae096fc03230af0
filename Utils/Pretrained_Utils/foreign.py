"""Networks in other code bases' files: which one, whose, and what to say if that is open."""

import re
import shlex
from pathlib import Path
from typing import Any

from Config.errors import shortened
from Utils.errors import CheckpointError
from Utils.Pretrained_Utils.contents import Contents, open_contents
from Utils.Pretrained_Utils.files import Description, Weights
from Utils.Pretrained_Utils.heads import class_weights, is_head_of
from Utils.Pretrained_Utils.lineages import LINEAGES, Lineage
from Utils.Pretrained_Utils.lineages.descriptions import color_space_of
from Utils.Pretrained_Utils.lineages.recognise import Match, matches, most_likely, nearest

SHOWN_KEYS = 5
# FaceX-Zoo's `crop_eye` trains on the upper 60 rows of 112×112; its last feature map is that of
# 64×112.
HALF_FACE = [64, 112]


def foreign_weights(
    path: Path, tree: dict[str, Any], wanted: Lineage | None, channel_order: str, part: str
) -> Weights:
    """The weights of another code base, from what its file holds."""
    contents, found = _find_network(path, tree, (wanted,) if wanted else LINEAGES, part)
    lineage, match = _choose(path, most_likely(found, contents, path.name), channel_order)
    architecture = {**match.architecture, "variant": dict(match.architecture["variant"])}
    architecture["preprocessing"] = lineage.preprocessing()
    if lineage.normalise:
        architecture["variant"]["normalise"] = True
    if lineage.key == "cvlface" and not channel_order:
        order = color_space_of(path) or lineage.channel_order
        architecture["preprocessing"]["channel_order"] = order
    if lineage.key == "facex_zoo" and architecture["input_size"] == HALF_FACE:
        raise CheckpointError(
            f"checkpoint {path} holds a network of {lineage.title} for half faces, the upper 60 "
            f"rows of a photo; that can't be read here: height and width must be multiples of 16."
        )
    head = class_weights(contents.head, architecture["feature_dim"], lineage.head_by_columns)
    description = Description(architecture, lineage.title)
    return Weights(path, description, match.state, head, lineage.head_by_columns)


def _find_network(
    path: Path, tree: dict[str, Any], rows: tuple[Lineage, ...], part: str
) -> tuple[Contents, list[tuple[Lineage, Match]]]:
    """The one place in a file with a known network, and whose it is, of these lineages."""
    places = open_contents(tree)
    found = [(place, of) for place in places if (of := matches(place.network, rows))]
    if part and found:
        chosen = [(place, of) for place, of in found if place.place == part]
        if not chosen:
            raise CheckpointError(
                f"checkpoint {path} holds no network under {shortened(part)!r}, but one under "
                f"`--part {shlex.quote(found[0][0].place)}`."
            )
        return chosen[0]
    if not found:
        raise CheckpointError(
            _other_lineage(path, places, rows) or _unknown(path, places[0], tree, rows)
        )
    if len(found) > 1 or found[0][0].extra:
        raise CheckpointError(_several(path, [place for place, _ in found]))
    return found[0]


def _choose(
    path: Path, likely: list[tuple[Lineage, Match]], channel_order: str
) -> tuple[Lineage, Match]:
    """The lineage, of several with the same tensors; where their inputs differ, the one with that
    channel order, or with the one that settings beside the file name."""
    if len({lineage.input() for lineage, _ in likely}) > 1:
        order = channel_order or color_space_of(path)
        likely = [row for row in likely if row[0].channel_order == order] or likely
    inputs = {lineage.input(): lineage for lineage, _ in likely}
    if len(inputs) == 1:
        return likely[0]
    orders = {lineage.channel_order for lineage in inputs.values()}
    flags = [f"`--lineage {lineage.key}` for {text}" for text, lineage in inputs.items()]
    if len(orders) > 1:
        flags.append("or " + " or ".join(f"`--channel_order {order}`" for order in sorted(orders)))
    raise CheckpointError(
        f"checkpoint {path} may be from {' or '.join(row.title for row, _ in likely)}: they give "
        f"the same names and shapes to the tensors of a {_kind(likely[0][1])}, but train with "
        f"another input, and nothing in the file tells which it is. Give {'; '.join(flags)}."
    )


def _several(path: Path, places: list[Contents]) -> str:
    """The error where a file has more in it than one network and its head."""
    first = places[0]
    where = " and ".join(repr(shortened(place.place)) for place in places)
    text = f"checkpoint {path} holds a network under {where}"
    if len(places) == 1:
        names = ", ".join(map(shortened, list(first.extra)[:SHOWN_KEYS]))
        text += f", and beside it {len(first.extra)} tensors that are no head's ({names})"
    target = path.with_name(f"{path.stem}_{re.sub(r'[^a-zA-Z0-9]+', '_', first.place)[:40]}.pt")
    module = "Utils.Pretrained_Utils.convert"
    command = shlex.join(["python", "-m", module, str(path), str(target), "--part", first.place])
    return text + (
        f", so what it computes does not follow. If one of them is what you want, write it to a "
        f"file of its own: `{command}`."
    )


def _other_lineage(path: Path, places: list[Contents], rows: tuple[Lineage, ...]) -> str:
    """The error where the file is of another lineage than the one asked for; else ""."""
    if rows == LINEAGES:
        return ""
    for place in places:
        if found := matches(place.network):
            likely = most_likely(found, place, path.name)
            titles = " or ".join(lineage.title for lineage, _ in likely)
            flags = " or ".join(f"`--lineage {lineage.key}`" for lineage, _ in likely)
            return (
                f"checkpoint {path} holds no network of {rows[0].title}: its tensors are those of "
                f"a {_kind(likely[0][1])} of {titles}. Give {flags} instead."
            )
    return ""


def _unknown(
    path: Path, contents: Contents, tree: dict[str, Any], rows: tuple[Lineage, ...]
) -> str:
    """The error for a file of no known network: what it holds, and which network is nearest."""
    text = (
        f"checkpoint {path} holds no network that is known here. Looked for: "
        f"{', '.join(row.title for row in rows)}. "
    )
    keys = list(contents.network) or list(map(str, tree))
    text += f"The file's first keys: {', '.join(map(shortened, keys[:SHOWN_KEYS]))}. "
    if not contents.network:
        return text + "None of them is a tensor."
    if len(contents.network) == 1 and next(iter(contents.network.values())).ndim == 2:
        return text + "That is what a head's file holds; " + _network_beside(path)
    closest = nearest(contents.network, rows)
    if closest is None:
        return text + "No known network has any tensor of these names."
    lineage, match = closest
    return text + (
        f"Nearest: {lineage.title}'s {_kind(match)}, which has names for {len(match.state)} of "
        f"{len(contents.network)} tensors, but {'; '.join(match.differences)}."
    )


def _network_beside(path: Path) -> str:
    files = [file for file in path.parent.iterdir() if is_head_of(path.name, file.name)]
    if not files:
        return "the network's is another file beside it."
    return f"the network's is `{shlex.quote(str(min(files)))}`."


def _kind(match: Match) -> str:
    return match.architecture.get("name", match.layout.family)
