"""The known name nearest to an unknown one, for errors that say what was meant."""

import difflib
from collections.abc import Iterable


def nearest_name(name: object, known: Iterable[str]) -> str | None:
    """The known name most like `name`, upper and lower case alike; None where none is like it."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None
