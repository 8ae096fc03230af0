"""Settings: the dataclass a user edits, named recipes, flags, and checks."""

from Config.command_line import read_config
from Config.config import Config
from Config.errors import ConfigError
from Config.recipes import RECIPES
from Config.validation import training_paths, validate

__all__ = ["RECIPES", "Config", "ConfigError", "read_config", "training_paths", "validate"]
