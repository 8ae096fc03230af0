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
from functools import partial
from typing import Any, Literal

from Config.errors import ConfigError, nearest_name

# The scripts, by what they do: Train.py, the evaluation script of each benchmark, and
# `python -m Utils.Evaluation_Utils` for any other verification set.
Script = Literal["training", "lfw", "agedb", "cfp", "any_set", "megaface", "tinyface", "ijb"]
TRAINING: tuple[Script, ...] = ("training",)
VERIFICATION: tuple[Script, ...] = ("lfw", "agedb", "cfp", "any_set")
EVALUATION: tuple[Script, ...] = (*VERIFICATION, "megaface", "tinyface", "ijb")
ALL_SCRIPTS: tuple[Script, ...] = (*TRAINING, *EVALUATION)

# How each bound of a field compares a number with it.
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "at_least": operator.ge,
    "above": operator.gt,
    "at_most": operator.le,
    "below": operator.lt,
}


def _optional_float(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _row(number: type, text: str) -> tuple:
    return tuple(number(word) for word in text.split(",") if word.strip())


# For each type of a setting: the function from text to value, what the text must be, and the word
# for it in --help. A switch is two flags, or none of them; only in a sweep its value is a text.
_KINDS: dict[Any, tuple[Callable[[str], Any], str, str]] = {
    int: (int, "a whole number", "N"),
    float: (float, "a number", "X"),
    float | None: (_optional_float, "a number or none", "X"),
    str: (str, "a text", "TEXT"),
    bool: ({"on": True, "off": False}.__getitem__, "one of a switch's words, on and off", ""),
    bool | None: (
        {"on": True, "off": False, "none": None}.__getitem__,
        "one of a switch's words, on, off and none",
        "",
    ),
    tuple[int, ...]: (partial(_row, int), "whole numbers like 22,31", "N,N"),
    tuple[float, ...]: (partial(_row, float), "numbers like 1e-4,1e-6", "X,X"),
}

SWITCHES = (bool, bool | None)


@dataclass(frozen=True)
class Setting:
    """One setting, with everything that its field says about it.

    kind: the type of its value; `str` where it is one of a few `words`. group: the heading that it
    stands under. scripts: those that take it as a flag. changes_run: whether runs that differ in
    it alone are different runs. prefix: values that begin with it are allowed beside the words.
    bounds: {"at_least": 1} holds for each number of the value.
    """

    name: str
    kind: Any
    words: tuple[str, ...]
    prefix: str
    default: Any
    help: str
    group: str
    scripts: tuple[Script, ...]
    changes_run: bool
    bounds: dict[str, float]

    @property
    def metavar(self) -> str:
        """The word that stands for the value in --help."""
        return "WORD" if self.words else _KINDS[self.kind][2]

    @property
    def wanted(self) -> str:
        """A description of the texts that are allowed, for errors."""
        return _KINDS[self.kind][1]

    def read(self, text: str) -> Any:
        """The value that a text stands for; raises ArgumentTypeError where it stands for none."""
        try:
            return _KINDS[self.kind][0](text)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"{text!r} is not {self.wanted}") from None

    def check(self, value: Any) -> None:
        """Raise ConfigError unless the value is an allowed word, finite and within the bounds."""
        known = value in self.words or (self.prefix and value.startswith(self.prefix))
        if self.words and not known:
            named = [word for word in self.words if word]
            nearest = nearest_name(value, named)
            hint = f"did you mean {nearest!r}? Allowed" if nearest else "allowed"
            raise ConfigError(self.name, value, f"{hint}: {', '.join(named)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(self.name, value, "it must be a finite number.")
        numbers = value if isinstance(value, tuple) else () if value is None else (value,)
        for number in numbers:
            if not all(_COMPARE[name](number, bound) for name, bound in self.bounds.items()):
                which = "each number" if isinstance(value, tuple) else "it"
                limits = (f"{name.replace('_', ' ')} {b}" for name, b in self.bounds.items())
                raise ConfigError(self.name, value, f"{which} must be {' and '.join(limits)}.")


def written(value: Any) -> str:
    """A setting's value as a user types it: the inverse of `Setting.read`."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return "none" if value is None else str(value)


def group(title: str, scripts: tuple[Script, ...] = TRAINING) -> Callable[..., Any]:
    """Begin a group of settings: returns the function that makes its fields.

        setting = group("Devices")
        num_workers: int = setting(2, "processes that decode images", at_least=0)

    title: the group's heading in --help. scripts: those that take its settings as flags.

    The function takes a field's default and its help text, any of the bounds `at_least`, `above`,
    `at_most`, `below`, and `scripts`, `changes_run` and `prefix` (see `Setting`) where they differ
    from the group's, True and none. A field's allowed words are its type, a `Literal`.
    """

    def setting(
        default: Any,
        help: str,
        scripts: tuple[Script, ...] = scripts,
        changes_run: bool = True,
        prefix: str = "",
        **bounds: float,
    ) -> Any:
        metadata = {"help": help, "group": title, "scripts": scripts}
        metadata |= {"changes_run": changes_run, "prefix": prefix, "bounds": bounds}
        return dataclasses.field(default=default, metadata=metadata)

    return setting


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
