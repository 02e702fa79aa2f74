"""Aim of a study: what it was to reach, in words that a report checks one by one. No verdict hangs on one."""

import re
from collections.abc import Container, Sequence
from dataclasses import dataclass

from lab.errors import UsageError, nearest

SWITCHES, RETURNS, RANK_FALLS = "a layer switches", "a layer returns", "rank falls"
SEEN = (SWITCHES, RETURNS, RANK_FALLS)  # in any run of any arm
_WITHIN = re.compile(r"(?P<arm>.+) within (?P<share>\d+(?:\.\d+)?) ?% of (?P<other>.+)")
_BETTER = re.compile(r"(?P<arm>.+) better than (?P<other>.+)")


@dataclass(frozen=True, kw_only=True)
class Aim:
    """One aim: of two arms, or where `arm` is None something that is to be seen."""

    words: str
    arm: str | None = None
    other: str | None = None
    share: float | None = None  # of the other arm's value, by which the arm may be worse; None: it is to be better


def parse(words: str) -> Aim:
    """The aim in words; raises UsageError for anything but the forms that the message names."""
    if words in SEEN:
        return Aim(words=words)
    for pattern in (_WITHIN, _BETTER):
        if match := pattern.fullmatch(words):
            share = match.groupdict().get("share")
            return Aim(
                words=words, arm=match["arm"], other=match["other"], share=None if share is None else float(share) / 100
            )
    raise UsageError(
        f"aims: {words!r} is none; give 'ARM within 0.5% of ARM', 'ARM better than ARM', or {', '.join(SEEN)}."
    )


def kept(aims: list[str], known: Sequence[str], left: Container[str]) -> list[str]:
    """The aims whose arms are left; raises UsageError for one of an arm that never was (`known`)."""
    own = []
    for aim in map(parse, aims):
        names = [name for name in (aim.arm, aim.other) if name is not None]
        strangers = [name for name in names if name not in known]
        if strangers:
            raise UsageError(
                f"aims: {aim.words!r} is of {strangers[0]!r}, which is no arm of the study"
                f"{nearest(strangers[0], known) or '.'}"
            )
        own += [aim.words] if all(name in left for name in names) else []
    return own
