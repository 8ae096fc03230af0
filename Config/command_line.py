"""Flags of the same names as the settings, made from the settings' own fields."""

import argparse
import dataclasses
import difflib
import itertools
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from Config.completion import PrintCompletion
from Config.config import Config, settings_for
from Config.errors import ConfigError
from Config.fields import SWITCHES, Setting, settings_of, written
from Config.recipes import RECIPES
from Config.sweep import Sweep, combinations, parse_axes

SavedSettings = Callable[[str, str], dict[str, Any]]
PretrainedSettings = Callable[[Config], dict[str, Any]]
Tables = Mapping[str, Callable[[], str]]

_SWEEP = (
    "train a run with each of these values of a setting, as in margin=ArcFace,CosFace; given again "
    "for another setting: with each combination. Values that are several numbers have semicolons "
    "between them, milestones=2,3;3; a switch has the values on and off, use_amp=on,off. Several "
    "seeds give mean ± std in the table. A run that is finished already is not trained again"
)


class _PrintTable(argparse.Action):
    """Prints a table by its name, and ends the process. tables: the functions that make them."""

    def __init__(self, tables: Tables, **options: Any) -> None:
        super().__init__(choices=list(tables), **options)
        self._tables = tables

    def __call__(self, parser: argparse.ArgumentParser, _: Any, table: str, *__: Any) -> None:
        print(self._tables[table]())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Argparse whose errors name the nearest flag or word. settings: those with a flag."""

    def __init__(self, settings: dict[str, Setting], **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._words: list[str] = []

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        self._words = list(sys.argv[1:] if args is None else args)  # for `error`
        return super().parse_known_args(args, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # Raises the error of any other wrong setting; argparse's own has no nearest word.
        if action.dest in self._settings:
            self._settings[action.dest].check(value)
        else:
            super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            flag = next((word for word in unknown if word.startswith("--")), None)
            near = difflib.get_close_matches(flag or "", self._option_string_actions, n=1)
            if mended := self._without_blanks(unknown[0]):
                message += f". Numbers of one setting have no blanks between them: {mended}"
            elif near:
                message += f". Did you mean {near[0]}?"
            elif {word.lower() for word in unknown} & {"true", "false"}:
                message += ". A switch is turned on with --use_amp and off with --no-use_amp."
        if int(os.environ.get("RANK", "0")) > 0:  # torchrun's first process prints the message
            sys.exit(2)
        super().error(message)

    def _without_blanks(self, unknown: str) -> str:
        """How `--input_size 112 96` should be written, if the unknown word is in such a list."""
        text = " ".join(self._words)
        for name, setting in self._settings.items():
            if isinstance(setting.default, tuple):
                for found in re.finditer(rf"--{name}[ =]([\d.,e+-]+(?: [\d.,e+-]+)+)(?= |$)", text):
                    numbers = found[1].replace(",", " ").split()
                    if unknown.strip(",") in numbers:
                        return f"--{name} {','.join(numbers)}"
        return ""


def read_config(
    description: str,
    only: Collection[str] | None = None,
    argv: Sequence[str] | None = None,
    saved_settings: SavedSettings | None = None,
    pretrained_settings: PretrainedSettings | None = None,
) -> Config:
    """Build the config of a script from `Config/config.py`, a recipe and the command line.

    Recipes are settings of training, so a script that takes no `train_dataset` has no --recipe.

    description: the first lines of --help.
    only: the settings that the script takes as flags, see `settings_for`; None: all.
    argv: the arguments; None takes the process's own.
    saved_settings: called as (resume, save_dir) when `resume` is set. Returns the settings of the
    run to continue, which replace the defaults, with the checkpoint's path as `resume`. Explicit
    flags always win.
    pretrained_settings: called with the config when `pretrained` is set. Returns the settings that
    the weights decide, which replace the defaults and the recipe's.

    Raises ConfigError for a word that is not allowed. Ends the process with argparse's message,
    exit status 2, for a flag that can't be read.
    """
    settings = settings_of(Config)
    names = settings if only is None else only
    parser = make_parser(description, [s for s in settings.values() if s.name in names])
    return _build(vars(parser.parse_args(argv)), saved_settings, pretrained_settings)


def read_training(
    description: str,
    argv: Sequence[str] | None = None,
    saved_settings: SavedSettings | None = None,
    pretrained_settings: PretrainedSettings | None = None,
    tables: Tables | None = None,
) -> Config | Sweep:
    """As `read_config`, for the script that trains: with `--sweep`, the settings of all its runs.

    tables: what `--list NAME` prints, by name.

    Also raises ConfigError for a sweep that can't be read (see `parse_axes`), for one together
    with `resume`, and for a setting that is both swept and given as a flag.
    """
    names = settings_for("training")
    settings = {name: s for name, s in settings_of(Config).items() if name in names}
    parser = make_parser(description, settings.values())
    parser.add_argument("--sweep", action="append", metavar="NAME=A,B", help=_SWEEP)
    if tables:
        text = f"print what there is, with its source, and end: {', '.join(tables)}"
        parser.add_argument("--list", action=_PrintTable, tables=tables, metavar="TABLE", help=text)
    given = vars(parser.parse_args(argv))
    axes = parse_axes(given.pop("sweep", ()), settings)
    if not axes:
        return _build(given, saved_settings, pretrained_settings)
    if given.get("resume"):
        raise ConfigError(
            "resume",
            given["resume"],
            "a sweep continues its own interrupted runs: start it again with the same command, "
            "without --resume.",
        )
    for name in axes.keys() & given.keys():
        raise ConfigError(name, given[name], "it is swept; leave out one of --sweep and the flag.")
    runs = [
        (variation, _build({**given, **variation}, None, pretrained_settings))
        for variation in combinations(axes)
    ]
    return Sweep(axes, runs)


def make_parser(description: str, settings: Iterable[Setting]) -> argparse.ArgumentParser:
    """A parser with a flag for each setting, in the settings' groups; it sets only what is given.

    With `train_dataset` among the settings it also has --recipe.
    """
    by_name = {setting.name: setting for setting in settings}
    recipe = "[--recipe NAME] " if "train_dataset" in by_name else ""
    parser = _Parser(
        by_name,
        usage=f"%(prog)s {recipe}[--SETTING VALUE ...]",
        description=description,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--print_completion",
        action=PrintCompletion,
        nargs=0,
        help="print what completes these flags in bash and zsh (source it), and end",
    )
    if recipe:
        text = f"start from these settings (Config/recipes.py): {', '.join(RECIPES)}"
        parser.add_argument("--recipe", choices=list(RECIPES), help=text, metavar="NAME")
    for title, members in itertools.groupby(by_name.values(), key=lambda setting: setting.group):
        flags = parser.add_argument_group(title)
        for setting in members:
            _add_flag(flags, setting)
    return parser


def flags_of(config: Config) -> list[str]:
    """The flags with which Train.py has exactly these settings."""
    flags, settings = [], settings_of(Config)
    for name in sorted(settings_for("training")):
        value = getattr(config, name)
        if settings[name].kind not in SWITCHES:
            flags.append(f"--{name}={written(value)}")
        elif value is not None:
            flags.append(f"--{name}" if value else f"--no-{name}")
    return flags


def _add_flag(flags: argparse._ArgumentGroup, setting: Setting) -> None:
    notes = [f"one of: {', '.join(filter(None, setting.words))}"] if setting.words else []
    notes += [] if setting.default in ("", None, ()) else [f"default: {written(setting.default)}"]
    text = setting.help + (f" ({'; '.join(notes)})" if notes else "")
    text = text.replace("%", "%%")
    name = f"--{setting.name}"
    if setting.kind in SWITCHES:
        flags.add_argument(name, action=argparse.BooleanOptionalAction, help=text)
    else:
        flags.add_argument(
            name,
            type=setting.read,
            choices=setting.words or None,
            help=text,
            metavar=setting.metavar,
        )


def _build(
    given: dict[str, Any],
    saved_settings: SavedSettings | None,
    pretrained_settings: PretrainedSettings | None,
) -> Config:
    """The settings of flags, by name, over the defaults, a recipe, a run's or the weights' own."""
    given = dict(given)
    recipe = given.pop("recipe", None)
    base = dataclasses.replace(Config(), **RECIPES[recipe].settings) if recipe else Config()
    config = dataclasses.replace(base, **given)
    if not (config.resume and saved_settings):
        if not (config.pretrained and pretrained_settings):
            return config
        return dataclasses.replace(config, **{**pretrained_settings(config), **given})
    if recipe:
        raise ConfigError(
            "resume", config.resume, "the settings of the run are kept; leave --recipe out."
        )
    saved = Config.from_dict(saved_settings(config.resume, config.save_dir))
    given.pop("resume", None)  # the saved settings have the path that it stands for
    return dataclasses.replace(saved, **given)
