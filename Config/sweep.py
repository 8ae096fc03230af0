"""Sweeps: several values of some settings, each combination of them a run.

Each setting has one `--sweep "name=value,value"`. If a value consists of several numbers, as
milestones do, the values are separated by semicolons: `--sweep "milestones=2,3;3"`. A switch's
values are on and off: `--sweep "use_amp=on,off"`.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from Config.config import Config
from Config.errors import ConfigError, nearest_name
from Config.fields import Setting, settings_of

Variation = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """axes: the settings that vary, with their values. runs: each combination, in which the last
    setting varies fastest, with all settings of its run."""

    axes: dict[str, tuple]
    runs: list[tuple[Variation, Config]]


def parse_axes(texts: Sequence[str], settings: Mapping[str, Setting]) -> dict[str, tuple]:
    """The settings and values of `--sweep` texts.

    settings: those of training. Raises ConfigError for a text that is not `name=value,value`, a
    name that is none of them or comes twice, and a value that can't be read or comes twice.
    """
    axes: dict[str, tuple] = {}
    for text in texts:
        name, equals, values = (part.strip() for part in text.partition("="))
        if not equals:
            raise ConfigError("sweep", text, "it must be a setting and its values, name=A,B.")
        if name not in settings:
            nearest = nearest_name(name, settings)
            hint = f"; did you mean {nearest!r}?" if nearest else "; see --help."
            raise ConfigError("sweep", text, f"there is no setting {name!r} of training{hint}")
        if name == "para_adj_mode" or not settings[name].changes_run:
            raise ConfigError("sweep", text, f"{name} does not change what a run trains.")
        if name in axes:
            raise ConfigError("sweep", text, f"{name} is swept twice; put all its values in one.")
        axes[name] = _parse_values(settings[name], values)
    return axes


def combinations(axes: dict[str, tuple]) -> list[Variation]:
    """The product of the axes' values."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def settings_of_run(config: Config) -> dict[str, Any]:
    """The settings that change what a run trains: runs with equal ones are the same run."""
    known = settings_of(type(config))
    return {name: value for name, value in config.to_dict().items() if known[name].changes_run}


def _parse_values(setting: Setting, text: str) -> tuple:
    values = []
    for word in map(str.strip, text.split(";" if isinstance(setting.default, tuple) else ",")):
        try:
            value = setting.read(word)
        except argparse.ArgumentTypeError:
            raise ConfigError(setting.name, word, f"it must be {setting.wanted}.") from None
        if value in values:
            why = "it is in the sweep twice; give seeds for repetitions."
            raise ConfigError(setting.name, value, why)
        values.append(value)
    return tuple(values)
