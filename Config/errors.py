"""The errors that are the user's to mend, and the names that they quote."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What the user can mend: a script tells it in one paragraph, without a traceback.

    Anything else that is raised is a bug in the code, and keeps its traceback.
    """


class ConfigError(UserError, ValueError):
    """A setting has a value that can't be used."""

    def __init__(self, name: str, value: object, why: str) -> None:
        super().__init__(f"setting {name} is {value!r}: {why}")


def shortened(name: object, length: int = 80) -> str:
    """The name's first characters: what a file calls its parts may be of any length."""
    text = str(name)
    return text if len(text) <= length else f"{text[:length]}..."


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """The known name most like `name`, upper and lower case alike; None where none is like it."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
