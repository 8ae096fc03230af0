"""Sweeps: several values of some settings, each combination of them a run.

One `--sweep "name=value,value"` a setting. Where the setting itself is several numbers, as
milestones are, its values have semicolons between them: `--sweep "milestones=2,3;3"`. A switch's
values are on and off: `--sweep "use_amp=on,off"`.
"""

import argparse
import itertools
import typing
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from Config.config import Config
from Config.errors import ConfigError, nearest_name
from Config.fields import READERS

# What changes where a run is kept, how it is watched or how fast it goes, but not what is trained:
# runs that differ in nothing else are the same run.
NO_PART_OF_A_RUN = frozenset(
    {"resume", "save_dir", "save_freq", "num_workers", "use_visdom", "visdom_server", "visdom_port"}
)
SWITCH = {"on": True, "off": False}

Variation = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """axes: the settings that vary, with their values. runs: each combination, the last setting's
    values in turn first, with the whole settings of its run."""

    axes: dict[str, tuple[Any, ...]]
    runs: list[tuple[Variation, Config]]


def parse_axes(texts: Sequence[str], names: Collection[str]) -> dict[str, tuple[Any, ...]]:
    """The settings and values of `--sweep` texts.

    names: the settings that there are to sweep. Raises ConfigError for a text that is not
    `name=value,value`, a name that is none of them or comes twice, and a value that can't be read
    or comes twice.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError("sweep", text, "it must be a setting and its values, name=A,B.")
        _check_name(text, name, names)
        if name in axes:
            raise ConfigError("sweep", text, f"{name} is swept twice; put all its values in one.")
        axes[name] = _parse_values(name, values)
    return axes


def combinations(axes: dict[str, tuple[Any, ...]]) -> list[Variation]:
    """The product of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def same_run(config: Config, other: Config) -> bool:
    """Whether two runs train the same: they differ in `NO_PART_OF_A_RUN` at most."""
    ours, theirs = config.to_dict(), other.to_dict()
    return all(ours[name] == theirs[name] for name in ours.keys() - NO_PART_OF_A_RUN)


def _check_name(text: str, name: str, names: Collection[str]) -> None:
    if name in NO_PART_OF_A_RUN or name == "para_adj_mode":
        raise ConfigError("sweep", text, f"{name} does not change what a run comes to.")
    if name not in names:
        nearest = nearest_name(name, names)
        hint = f"; did you mean {nearest!r}?" if nearest else "; see --help."
        raise ConfigError("sweep", text, f"there is no setting {name!r} of training{hint}")


def _parse_values(name: str, text: str) -> tuple[Any, ...]:
    kind = typing.get_type_hints(Config)[name]
    separator = ";" if typing.get_origin(kind) is tuple else ","
    values = tuple(_parse_value(name, kind, part.strip()) for part in text.split(separator))
    for value in values:
        if values.count(value) > 1:
            raise ConfigError(name, value, "it is in the sweep twice; give seeds for repetitions.")
    return values


def _parse_value(name: str, kind: Any, text: str) -> Any:
    if kind is bool:
        if text.lower() not in SWITCH:
            raise ConfigError(name, text, "a switch is swept with the values on and off.")
        return SWITCH[text.lower()]
    try:
        return READERS[kind](text)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(name, text, f"{error}.") from None
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(name, text, f"it must be {wanted}.") from None
