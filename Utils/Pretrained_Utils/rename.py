"""Renaming of tensors: pure functions on a table that says how a code base names its modules.

A `Layout` pairs their name of each module with this project's. Tensors inside a module (weight,
bias, running_mean, ...) have the same names everywhere, so a name is a module and a leaf. Values
never change; only some 1×1 convolutions are matrices elsewhere, and change their shape.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# How many units each stage has; the family says what a stage is.
Counts = tuple[int, ...]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How one code base names the modules of one family of networks.

    family: ResNetIR, MobileFaceNet or ResNet.
    fixed: their modules outside the units -> ours.
    unit: their modules inside a unit -> ours; a network need not have all of them.
    units: from the counts, (their name, our name) of every unit in order.
    counts: what their code can build, smaller networks first.
    attentions: those of `Backbone.layers.ATTENTIONS` that they have; empty: any.
    variant: the family's settings that their networks share, besides attention and
        normalisation; None: any.
    matrices: our 1×1 convolutions whose weights they keep as matrices, without the last two axes.
    """

    family: str
    fixed: Mapping[str, str]
    unit: Mapping[str, str]
    units: Callable[[Counts], list[tuple[str, str]]]
    counts: tuple[Counts, ...]
    attentions: tuple[str, ...] = ()
    variant: Mapping[str, Any] | None = field(default_factory=dict)
    matrices: tuple[str, ...] = ()


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor of real numbers, as weights are."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_nested or value.is_quantized or value.is_complex())
    )


def module_names(layout: Layout, counts: Counts) -> dict[str, str]:
    """Their name -> our name of every module that a network of these counts may have."""
    names = dict(layout.fixed)
    for theirs, ours in layout.units(counts):
        for their_part, our_part in layout.unit.items():
            names[f"{theirs}.{their_part}"] = f"{ours}.{our_part}"
    return names


def module_of(key: str) -> str:
    """The module of a tensor's name."""
    return key.rpartition(".")[0]


def to_ours(state: State, layout: Layout, counts: Counts) -> State:
    """Rename their tensors to ours; those of modules that the layout does not know are left out."""
    names = module_names(layout, counts)
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if module not in names:
            continue
        ours = names[module]
        if ours in layout.matrices and leaf == "weight" and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[f"{ours}.{leaf}"] = tensor
    return renamed


def to_theirs(state: State, layout: Layout, counts: Counts) -> State:
    """The inverse of `to_ours`. Raises KeyError for a module for which they have no name."""
    names = {ours: theirs for theirs, ours in module_names(layout, counts).items()}
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        if module in layout.matrices and leaf == "weight":
            tensor = tensor[:, :, 0, 0]
        renamed[f"{names[module]}.{leaf}"] = tensor
    return renamed
