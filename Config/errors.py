"""The errors that are the user's mistakes, and the names that they quote."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct: a script prints it as one paragraph, without traceback.

    Every other exception is a bug in the code, and keeps its traceback.
    """


class ConfigError(UserError, ValueError):
    """A setting has a value that can't be used."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"setting {name} is {value!r}: {why}")


def shortened(name: object, length: int = 80) -> str:
    """The first characters of a name, because the names in a file may be of any length."""
    text = str(name)
    return text if len(text) <= length else f"{text[:length]}..."


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, ignoring case; None if none is similar."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
