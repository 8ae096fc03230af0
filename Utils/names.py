"""Names in errors: the known one nearest to an unknown one, and long ones cut short."""

import difflib
from collections.abc import Iterable


def shortened(name: object, length: int = 80) -> str:
    """The name's first characters: what a file calls its parts may be of any length."""
    text = str(name)
    return text if len(text) <= length else f"{text[:length]}..."


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """The known name most like `name`, upper and lower case alike; None where none is like it."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
