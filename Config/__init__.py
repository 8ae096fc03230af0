"""Settings: the dataclass a user edits, named recipes, flags, and checks."""

from Config.checks import training_paths, validate
from Config.command_line import read_config, read_training
from Config.config import Config
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
    "training_paths",
    "validate",
]
