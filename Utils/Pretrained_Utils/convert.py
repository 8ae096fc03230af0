"""Turn a weights file of any known lineage into another kind of file.

    python -m Utils.Pretrained_Utils.convert SOURCE network.pt
    python -m Utils.Pretrained_Utils.convert SOURCE network.safetensors
    python -m Utils.Pretrained_Utils.convert SOURCE theirs.pth --to insightface
    python -m Utils.Pretrained_Utils.convert SOURCE FOLDER --to hub

Without --to the target describes its own network, and loads anywhere in this project. Values and
dtypes are kept bit for bit; only names change. `--to hub` makes a folder for the Hugging Face hub,
with a model card of the figures that evaluation scripts wrote.
"""

import re
from pathlib import Path
from typing import Any

from Backbone import describe_backbone
from Backbone.mobilefacenet import REPEATS
from Backbone.resnet import UNITS as RESNET_UNITS
from Backbone.resnet_ir import BOTTLENECK_UNITS, UNITS
from Backbone.vit import SIZES as VIT_SIZES
from Utils.errors import CheckpointError, run_script
from Utils.Pretrained_Utils.contents import State, open_contents
from Utils.Pretrained_Utils.files import (
    SAFETENSORS,
    Description,
    writable_target,
    write_backbone,
)
from Utils.Pretrained_Utils.hub.card import UNKNOWN_LICENSE
from Utils.Pretrained_Utils.hub.write import hub_target, write_hub_folder
from Utils.Pretrained_Utils.lineages import (
    LINEAGES,
    Lineage,
    find_lineage,
    reading_flags,
)
from Utils.Pretrained_Utils.lineages.layouts import Counts, Layout
from Utils.Pretrained_Utils.lineages.recognise import examine, matches, most_likely, to_theirs
from Utils.Pretrained_Utils.load import build, describe, read_weights

HUB = "hub"
TARGETS = ("quasarlight", "insightface", "face_evolve")
SUFFIXES = (".pt", ".pth", ".ckpt", SAFETENSORS)


def main() -> None:
    """Read the flags, convert, and print what was made."""
    parser = reading_flags(__doc__)
    parser.add_argument(
        "target", type=Path, help=f"ends in {', '.join(SUFFIXES)}; of hub: a new folder"
    )
    parser.add_argument(
        "--to",
        choices=(*TARGETS, HUB),
        help="with the tensor names of that lineage; hub: a folder for the Hugging Face hub",
    )
    parser.add_argument(
        "--part", default="", help="keys and prefix of the network, in a file with several"
    )
    parser.add_argument(
        "--results",
        nargs="+",
        type=Path,
        default=[],
        help="of hub: evaluations' JSON files, or folders of them, for the model card; without it, "
        "those in the folder of its evaluations in Results",
    )
    parser.add_argument(
        "--license", default=UNKNOWN_LICENSE, help="of hub: the licence's short name at the hub"
    )
    flags = parser.parse_args()
    hub = flags.to == HUB
    target = hub_target(flags.target) if hub else writable_target(flags.target, SUFFIXES)
    weights = read_weights(
        flags.source, flags.lineage, flags.weights, flags.channel_order, flags.part
    )
    backbone = build(weights, flags.channel_order, flags.input_mean, flags.input_scale)
    print(f"read     {weights.path}: {describe(backbone)}")
    if hub:
        print(*write_hub_folder(target, weights, backbone, flags.results, flags.license), sep="\n")
        return
    architecture = describe_backbone(backbone)
    if not flags.to:
        write_backbone(
            target, weights.state, Description(architecture, weights.description.lineage)
        )
        print(f"written  {target}: {len(weights.state)} tensors, this project's names")
        return
    lineage = find_lineage(flags.to)
    theirs = rename_for(weights.state, architecture, lineage)
    write_backbone(target, theirs, None)
    print(f"written  {target}: {len(weights.state)} tensors, {lineage.title}'s names")
    for note in usage_notes(architecture, lineage):
        print(f"note     {note}")
    likely = most_likely(matches(theirs), open_contents(theirs)[0], target.name)
    if len({row.input() for row, _ in likely}) > 1:
        print(f"note     to read it here again, give --lineage {lineage.key}")


def rename_for(state: State, architecture: dict[str, Any], lineage: Lineage) -> State:
    """A network's tensors under a lineage's names.

    architecture: `Backbone.describe_backbone`'s values. Raises CheckpointError if that lineage
    has no such network.
    """
    reasons = []
    for layout in lineage.layouts:
        counts = layout_counts(layout, architecture)
        if counts is None:
            continue
        try:
            theirs = to_theirs(state, layout, counts)
        except KeyError as error:
            reasons.append(f"it has no {error.args[0]}")
            continue
        match = examine(theirs, layout, counts)
        if match.differences:
            reasons += match.differences
        elif match.architecture["input_size"] != list(architecture["input_size"]):
            # A fully connected layer shows only how many positions the last map has.
            reasons.append(
                f"their files do not say the input size, and this one would be read as for "
                f"{_size(match.architecture)} images and not for {_size(architecture)}"
            )
        else:
            return theirs
    why = "; ".join(dict.fromkeys(reasons)) or "it has none of this family and depth"
    able = ", ".join(row.key for row in LINEAGES if row.key in TARGETS)
    raise CheckpointError(
        f"{architecture['name']} with settings {architecture['variant']} is not a network that "
        f"{lineage.title} can build: {why}. Targets are {able}."
    )


def layout_counts(layout: Layout, architecture: dict[str, Any]) -> Counts | None:
    """An architecture's numbers of units by stage; None if the layout has no such network."""
    name, variant = architecture["name"], architecture["variant"]
    resnet = re.fullmatch(r"(?:SE)?ResNet(\d+)(_IR)?", name)
    if name == "MobileFaceNet":
        family, counts = name, tuple(variant.get("repeats", REPEATS))
    elif resnet and resnet[2]:
        table = BOTTLENECK_UNITS if variant.get("bottleneck") else UNITS
        family, counts = "ResNetIR", table[int(resnet[1])]
    elif resnet:
        family, counts = "ResNet", RESNET_UNITS[int(resnet[1])]
    elif name.startswith("ViT_"):
        size, _, encoding = name.removeprefix("ViT_").partition("_")
        family, counts = encoding or "ViT", (VIT_SIZES[size][1],)
    else:  # a family of which no lineage has weights
        return None
    return counts if family == layout.family and counts in layout.counts else None


def usage_notes(architecture: dict[str, Any], lineage: Lineage) -> list[str]:
    """How the lineage's code differs from what this network expects, a line each."""
    notes = []
    theirs, ours = lineage.preprocessing(), architecture["preprocessing"]
    for name, what in (
        ("channel_order", "channels as"),
        ("mean", "pixels less"),
        ("scale", "pixels divided by"),
    ):
        if theirs[name] != ours[name]:
            notes.append(f"their code feeds {what} {theirs[name]}, these weights want {ours[name]}")
    if architecture["variant"].get("normalise", False) != lineage.normalise:
        notes.append("the embedding's length differs: normalised in only one of the two")
    if list(architecture["input_size"]) != [112, 112]:
        notes.append(
            f"these weights are for {_size(architecture)} images; their code has 112×112 written in"
        )
    usual = 128 if (lineage.key, architecture["name"]) == ("quasarlight", "MobileFaceNet") else 512
    if architecture["feature_dim"] != usual:
        notes.append(f"the embedding has {architecture['feature_dim']} values, theirs {usual}")
    return notes


def _size(architecture: dict[str, Any]) -> str:
    return "×".join(map(str, architecture["input_size"]))


if __name__ == "__main__":
    run_script(main)
