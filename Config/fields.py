"""What a field of `Config/config.py` says about its setting, and how text becomes its value."""

import argparse
import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from Config.errors import ConfigError, nearest_name

# The scripts, by what they do: Train.py, the evaluation script of each benchmark, and
# `python -m Utils.Evaluation_Utils` for any other verification set.
Script = Literal["training", "lfw", "agedb", "cfp", "any_set", "megaface"]
TRAINING: tuple[Script, ...] = ("training",)
VERIFICATION: tuple[Script, ...] = ("lfw", "agedb", "cfp", "any_set")
EVALUATION: tuple[Script, ...] = (*VERIFICATION, "megaface")
ALL_SCRIPTS: tuple[Script, ...] = (*TRAINING, *EVALUATION)

# How a bound's words compare a value with it.
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "at least": operator.ge,
    "above": operator.gt,
    "at most": operator.le,
    "below": operator.lt,
}


@dataclass(frozen=True)
class Setting:
    """One setting: everything that is known about it, all of it from its field.

    kind: the type of its value; `str` where it is one of a few `words`. group: the heading that it
    stands under. scripts: those that take it as a flag. changes_run: whether runs that differ in
    it alone are different runs. bounds: each ("at least", 1) holds for each number of the value.
    """

    name: str
    kind: Any
    words: tuple[str, ...]
    default: Any
    help: str
    group: str
    scripts: tuple[Script, ...]
    changes_run: bool
    bounds: tuple[tuple[str, float], ...]

    @property
    def read(self) -> Callable[[str], Any]:
        """From a text to the value; raises ValueError or ArgumentTypeError for any other text."""
        return _READERS[self.kind]

    @property
    def metavar(self) -> str:
        """What stands for the value in --help."""
        return "WORD" if self.words else _METAVARS.get(self.kind, "X")

    def check(self, value: Any) -> None:
        """Raise ConfigError unless the value is an allowed word, finite and within the bounds."""
        if self.words and value not in self.words:
            named = [word for word in self.words if word]
            nearest = nearest_name(value, named)
            hint = f"did you mean {nearest!r}? Allowed" if nearest else "allowed"
            raise ConfigError(self.name, value, f"{hint}: {', '.join(named)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(self.name, value, "it must be a finite number.")
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        for number in numbers:
            if not all(_COMPARE[word](number, bound) for word, bound in self.bounds):
                which = "each number" if isinstance(value, tuple) else "it"
                limits = " and ".join(f"{word} {bound}" for word, bound in self.bounds)
                raise ConfigError(self.name, value, f"{which} must be {limits}.")


# The heading that the next settings stand under, and the scripts that take them.
_heading: tuple[str, tuple[Script, ...]] = ("Settings", TRAINING)


def group(title: str, scripts: tuple[Script, ...] = TRAINING) -> None:
    """Begin a group of settings in the body of a config class; it ends where the next begins.

    title: its heading in --help. scripts: those that take its settings, where a setting does not
    say otherwise.
    """
    global _heading
    _heading = title, scripts


def setting(
    default: Any,
    help: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    scripts: tuple[Script, ...] | None = None,
    changes_run: bool = True,
) -> Any:
    """A field of a config class; see `Setting`. Its allowed words are its type, a `Literal`."""
    bounds = (("at least", at_least), ("above", above), ("at most", at_most), ("below", below))
    title, scripts_of_group = _heading
    metadata = {
        "help": help,
        "group": title,
        "scripts": scripts_of_group if scripts is None else scripts,
        "changes_run": changes_run,
        "bounds": tuple((word, bound) for word, bound in bounds if bound is not None),
    }
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def settings_of(config_class: type) -> types.MappingProxyType[str, Setting]:
    """The settings of a config class by name, in its order."""
    hints = typing.get_type_hints(config_class)
    found = {}
    for field in dataclasses.fields(config_class):
        kind = hints[field.name]
        words = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        found[field.name] = Setting(
            name=field.name,
            kind=str if words else kind,
            words=words,
            default=field.default,
            **field.metadata,
        )
    return types.MappingProxyType(found)


def _read_row(number: type, text: str) -> tuple:
    try:
        return tuple(number(word) for word in text.split(",") if word.strip())
    except ValueError:
        wanted = "whole numbers like 22,31" if number is int else "numbers like 1e-4,1e-6"
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None


def _read_optional_float(text: str) -> float | None:
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor none") from None


# By a setting's type: how its text is read, and what stands for it in --help.
_READERS: dict[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    tuple[int, ...]: functools.partial(_read_row, int),
    tuple[float, ...]: functools.partial(_read_row, float),
    float | None: _read_optional_float,
}
_METAVARS = {int: "N", float: "X", str: "TEXT", tuple[int, ...]: "N,N", tuple[float, ...]: "X,X"}
