"""Flags of the same names as the settings, made from the dataclass itself."""

import argparse
import dataclasses
import difflib
import os
import sys
import typing
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from Config.config import Config
from Config.errors import ConfigError
from Config.fields import METAVARS, READERS
from Config.recipes import RECIPES
from Config.sweep import Sweep, combinations, parse_axes

SavedSettings = Callable[[str, str], dict[str, Any]]
PretrainedSettings = Callable[[Config], dict[str, Any]]

_SWEEP = (
    "train with each of these values of a setting, as in margin=ArcFace,CosFace; given again for "
    "another setting: all combinations. Of settings that are several numbers: milestones=2,3;3. Of "
    "switches: use_amp=on,off. Several seeds give mean ± std. Finished runs are not done again"
)


class _Parser(argparse.ArgumentParser):
    """Argparse with the nearest known flag in the error for an unknown one."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            flag = next((word for word in unknown if word.startswith("--")), None)
            near = difflib.get_close_matches(flag or "", self._option_string_actions, n=1)
            if near:
                message += f". Did you mean {near[0]}?"
            elif {word.lower() for word in unknown} & {"true", "false"}:
                message += ". A switch is turned on with --use_amp and off with --no-use_amp."
        if int(os.environ.get("RANK", "0")) > 0:  # the first process of torchrun says it
            sys.exit(2)
        super().error(message)


def read_config(
    description: str,
    only: Collection[str] | None = None,
    exclude: Collection[str] = (),
    argv: Sequence[str] | None = None,
    saved_settings: SavedSettings | None = None,
    pretrained_settings: PretrainedSettings | None = None,
) -> Config:
    """Build the config of a script from `Config/config.py`, a recipe and the command line.

    Recipes are settings of training, so a script that takes no `train_dataset` has no --recipe.

    description: what --help says first.
    only, exclude: the settings that the script takes as flags; without `only`, all.
    argv: the arguments; None takes the process's own.
    saved_settings: called as (resume, save_dir) when `resume` is set; gives the settings of the
    run to continue, which then hold instead of the defaults, and as its `resume` the path of the
    checkpoint. Explicit flags always win.
    pretrained_settings: called with the config when `pretrained` is set; gives the settings that
    the weights decide, which then hold instead of the defaults and the recipe's.

    Ends the process with argparse's message, exit status 2, for a flag that can't be read.
    """
    names = _names(only, exclude)
    given = vars(_flags(description, names).parse_args(argv))
    return _build(given, saved_settings, pretrained_settings)


def read_training(
    description: str,
    exclude: Collection[str] = (),
    argv: Sequence[str] | None = None,
    saved_settings: SavedSettings | None = None,
    pretrained_settings: PretrainedSettings | None = None,
) -> Config | Sweep:
    """As `read_config`, for the script that trains: with `--sweep`, the settings of all its runs.

    Raises ConfigError, besides, for a sweep that can't be (see `parse_axes`), that is to resume, or
    of a setting that has a flag of its own.
    """
    names = _names(None, exclude)
    parser = _flags(description, names)
    parser.add_argument("--sweep", action="append", metavar="NAME=A,B", help=_SWEEP)
    given = vars(parser.parse_args(argv))
    axes = parse_axes(given.pop("sweep", ()), names)
    if not axes:
        return _build(given, saved_settings, pretrained_settings)
    if given.get("resume"):
        raise ConfigError(
            "resume",
            given["resume"],
            "a sweep goes on with its own interrupted runs: start it again as it was, without "
            "--resume.",
        )
    for name in axes.keys() & given.keys():
        raise ConfigError(name, given[name], "it is swept; leave out one of --sweep and the flag.")
    return Sweep(
        axes,
        [(v, _build({**given, **v}, None, pretrained_settings)) for v in combinations(axes)],
    )


def _names(only: Collection[str] | None, exclude: Collection[str]) -> list[str]:
    names = [f.name for f in dataclasses.fields(Config)]
    return [n for n in names if (only is None or n in only) and n not in exclude]


def _build(
    given: dict[str, Any],
    saved_settings: SavedSettings | None,
    pretrained_settings: PretrainedSettings | None,
) -> Config:
    """The settings that flags, by name, make of the defaults, a recipe, a run or weights."""
    given = dict(given)
    recipe = given.pop("recipe", None)
    base = dataclasses.replace(Config(), **RECIPES[recipe]) if recipe else Config()
    config = dataclasses.replace(base, **given)
    if not (config.resume and saved_settings):
        if not (config.pretrained and pretrained_settings):
            return config
        return dataclasses.replace(config, **{**pretrained_settings(config), **given})
    if recipe:
        raise ConfigError("resume", config.resume, "the run's settings hold; leave --recipe out.")
    saved = Config.from_dict(saved_settings(config.resume, config.save_dir))
    given.pop("resume", None)  # what it means is among the saved settings, as a path
    return dataclasses.replace(saved, **given)


def _flags(description: str, names: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if "train_dataset" in names:
        text = "start from these settings (Config/recipes.py)"
        parser.add_argument("--recipe", choices=sorted(RECIPES), help=text)
    types = typing.get_type_hints(Config)
    fields = {f.name: f for f in dataclasses.fields(Config)}
    for name in names:
        _add_flag(parser, fields[name], types[name])
    return parser


def _add_flag(parser: argparse.ArgumentParser, f: dataclasses.Field, kind: Any) -> None:
    default = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
    shown = "" if default in ("", None) else f" (default: {default})"
    text = (f.metadata["help"] + shown).replace("%", "%%")
    if kind is bool:
        parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, help=text)
        return
    parser.add_argument(f"--{f.name}", type=READERS[kind], help=text, metavar=METAVARS[kind])
