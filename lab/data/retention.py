"""Texts on which forgetting is measured: held out from what the shipped base was trained on."""

from collections.abc import Sequence

from lab.data import Record, Text
from lab.data.stdlib import corpus
from lab.errors import UsageError, nearest

TEXTS = {"stdlib_docs": "docs", "stdlib_code": "code"}  # name -> corpus; its validation side is read


def retention_records(name: str) -> Sequence[Record]:
    """The validation side of a named text; raises UsageError for a name that is none."""
    check_retention(name)
    return [Text(text) for [text] in corpus(TEXTS[name])["val"]]


def check_retention(name: str | None) -> None:
    """Raises UsageError for a name that `retention_records` would not know."""
    if name is not None and name not in TEXTS:
        raise UsageError(
            f"data.retention={name!r} is no known text{nearest(name, list(TEXTS))}; use {', '.join(TEXTS)} or null."
        )
