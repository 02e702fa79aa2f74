"""Special tokens, and the texts of users that spell their names: a name in a text is never the token."""

import re
from itertools import pairwise
from typing import Any

NONCHARACTERS = range(0xFDD0, 0x110000)  # from U+FDD0 on, which Unicode keeps for marks inside programs


class SpecialTokens:
    """The special tokens of a tokenizer, and where a text must be cut so that none of it is read as one of them.

    A tokenizer finds a token's name wherever it stands. Cut behind its first character and tokenised piece by piece, a
    name is text like any other. A chat template may move, trim or drop what it is given, so the cuts travel through it
    as marks: a character that the texts do not hold. A name of a single character cannot be cut and stays a token.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.added_tokens_decoder
        special = {token.content: token_id for token_id, token in added.items() if token.special}
        named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.ids = frozenset({**special, **named}.values())
        self.names = frozenset({**special, **named})
        long = [name for name in self.names if len(name) > 1]
        self._longest = max(map(len, long), default=0)
        self._starts = {name[:n] for name in long for n in range(1, len(name)) if name[:n].strip()}
        self._ends = {name[n:] for name in long for n in range(1, len(name)) if name[n:].strip()}
        self._insides = {name[1:-1] for name in long}
        # A name that is looked for in normalised text may be found in another case.
        flags = re.IGNORECASE if any(token.normalized for token in added.values() if token.special) else re.NOFLAG
        self._name = re.compile(_pattern(long), re.DOTALL | flags)

    def split(self, text: str) -> list[str]:
        """The pieces of a user's text, none of which holds a name; the text itself where it holds none."""
        mark = unused(text)
        return self.cut(self.mark(text, mark), mark)

    def mark(self, text: str, mark: str) -> str:
        """A user's text with marks inside every name, and at an end that what comes before or behind may make one."""
        marked = self._name.sub(rf"\g<0>{mark}", text)
        sizes = range(1, min(self._longest, len(text) + 1))
        is_inside = 0 < len(text) < self._longest and any(text in inside for inside in self._insides)
        if is_inside or any(text[:n] in self._ends for n in sizes):
            marked = mark + marked
        if any(text[-n:] in self._starts for n in sizes):
            marked += mark
        return marked

    def cut(self, marked: str, mark: str) -> list[str]:
        """The pieces of a text that marks made and a template moved, without the marks: cut where one is in a name."""
        parts = marked.split(mark)
        text, at, borders = "".join(parts), 0, [0]
        if len(parts) > 1:
            seconds = [(match.end(), next(filter(None, match.groups()))) for match in self._name.finditer(text)]
            names = [(second - 1, second + len(rest)) for second, rest in seconds]
            for part in parts[:-1]:
                at += len(part)
                if at > borders[-1] and any(start < at < end for start, end in names):
                    borders.append(at)
        return [text[start:end] for start, end in pairwise([*borders, len(text)])]


def unused(*texts: str) -> str:
    """A character that is in none of the texts."""
    return next(char for char in map(chr, NONCHARACTERS) if not any(char in text for text in texts))


def _pattern(names: list[str]) -> str:
    """Matches the first character of a name, the rest ahead as the last group: names that overlap are all found."""
    rests: dict[str, list[str]] = {}
    for name in sorted(names, key=len, reverse=True):
        rests.setdefault(name[0], []).append(re.escape(name[1:]))
    return "|".join(f"{re.escape(first)}(?=({'|'.join(rest)}))" for first, rest in rests.items()) or r"(?!)"
