"""The error of a setting."""


class ConfigError(ValueError):
    """A setting has a value that can't be used."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"setting {name} is {value!r}: {why}")
