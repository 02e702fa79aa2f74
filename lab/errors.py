"""Errors: of a user's mistake, and of a model that is not as planned; and near names for a wrong one."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (bidirectional overrides), lone surrogates, line breaks
HARMLESS = "\n\t\u200c\u200d"  # lines, and what joins letters and emoji


def visible(text: str) -> str:
    """Text from anywhere, for a terminal or a page: what would act there instead of being seen is escaped."""
    if text.isprintable():
        return text
    acts = {each for each in text if unicodedata.category(each) in UNSEEN and each not in HARMLESS}
    return "".join(each.encode("unicode_escape").decode() if each in acts else each for each in text)


class UsageError(ValueError):
    """A mistake its user can mend: shown as one sentence with the value, the reason and the remedy, no traceback."""

    def __str__(self) -> str:
        """The sentence, which may hold what was read from anywhere."""
        return visible(super().__str__())


class Refused(UsageError):
    """What lies there and this user may not read or write: not the same as nothing."""


def refused(path: Path, error: OSError) -> Refused:
    """The sentence for a file, or a folder of it, that the system lets this user not read or not write."""
    return Refused(
        f"{path} cannot be had here ({error.strerror}); ask its owner to share the folder (chmod -R g+rwX), or copy it "
        f"to one of your own."
    )


class Mismatch(RuntimeError):
    """What was read back from a live model or a saved folder differs from what was asked; the run stops on it."""


def closest(name: str, known: Sequence[str], cutoff: float = 0.5) -> list[str]:
    """At most three of the known names, those most like this one first; the higher `cutoff`, the more alike."""
    from difflib import get_close_matches

    return get_close_matches(name, list(known), n=3, cutoff=cutoff)


def nearest(name: str, known: Sequence[str]) -> str:
    """'did you mean a, b?' for a name that is not among the known ones; empty when nothing is close."""
    close = closest(name, known)
    return f"; did you mean {', '.join(close)}?" if close else ""
