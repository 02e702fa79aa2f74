"""The one exception that a user's mistake raises."""


class UsageError(ValueError):
    """A mistake its user can mend: shown as one sentence with the value, the reason and the remedy, no traceback."""


def nearest(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """'did you mean a, b?' for a name that is not among the known ones; empty when nothing is close."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
