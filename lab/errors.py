"""The one exception that a user's mistake raises."""

from collections.abc import Sequence


class UsageError(ValueError):
    """A mistake its user can mend: shown as one sentence with the value, the reason and the remedy, no traceback."""


def closest(name: str, known: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """At most three of the known names, those most like this one first; the higher `cutoff`, the more alike."""
    from difflib import get_close_matches

    return get_close_matches(name, list(known), n=3, cutoff=cutoff)


def nearest(name: str, known: Sequence[str]) -> str:
    """'did you mean a, b?' for a name that is not among the known ones; empty when nothing is close."""
    close = closest(name, known)
    return f"; did you mean {', '.join(close)}?" if close else ""
