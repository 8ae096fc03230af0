"""Settings, and everything that reads or checks them.

config.py        every setting, by itself: the file to edit
recipes.py       named sets of settings, for --recipe
fields.py        what a setting's field says, and how text becomes its value
command_line.py  the flags, made from the fields
completion.py    Tab completion of the flags, in bash and zsh
checks.py        what depends on several settings, or on the machine
sweep.py         several values of some settings, from --sweep
errors.py        the errors that are the user's mistakes
"""

from Config.checks import training_paths, validate
from Config.command_line import read_config, read_training
from Config.config import Config, settings_for
from Config.errors import ConfigError
from Config.recipes import RECIPES
from Config.sweep import Sweep

__all__ = [
    "RECIPES",
    "Config",
    "ConfigError",
    "Sweep",
    "read_config",
    "read_training",
    "settings_for",
    "training_paths",
    "validate",
]
