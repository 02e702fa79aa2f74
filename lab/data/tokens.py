"""Text as token ids, piece by piece: each goes on where the one before it stopped, and no token reaches over both."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.data.special import SpecialTokens

Ints = NDArray[np.int64]
Piece = tuple[Ints, Ints]  # (tokens,) ids, and the bytes each stands for

BATCH = 64  # rows at a time
# Characters to read a piece behind where the text before it would share a token with it: one of them will not.
NEUTRAL = (".", "a", "0", "\n")


def tokenise(rows: Sequence[Sequence[str]], tokenizer: Any, special: SpecialTokens) -> Iterator[list[Piece]]:
    """The pieces of every row as tokens, without special tokens added; bytes sum to a piece's own where it has tokens.

    A row's first piece is tokenised as a text of its own, and every later one as what follows the piece before it: the
    text of that piece's last token goes in front, and its ids are taken off again. Where a tokenizer by itself ends a
    token at a border, the ids are therefore those of the whole text: nothing that it puts in front of a text (▁ or a
    blank: Metaspace, Prepend, add_prefix_space) comes into the middle of one, except where it does so there, too, as
    some do behind a special token. Where a token would reach over the border, the piece is read behind another
    character. Either way the tokens before a border do not depend on what follows it: a prompt's are the same alone, as
    generation reads it, and with its answer, as training does.
    """
    reader = Reader(tokenizer, special)
    for first in range(0, len(rows), BATCH):
        chunk = rows[first : first + BATCH]
        done: list[list[Piece]] = [[] for _ in chunk]
        before = [""] * len(chunk)
        for column in zip_longest(*chunk):
            live = [i for i, piece in enumerate(column) if piece is not None]
            texts = [column[i] for i in live]
            for i, text, (ids, spans) in zip(live, texts, reader.read([before[i] for i in live], texts), strict=True):
                done[i].append((ids, reader.sizes(text, ids, spans)))
                before[i] = last_token(before[i], text, spans)
        yield from done


class Reader:
    """A tokenizer that goes on with a text."""

    def __init__(self, tokenizer: Any, special: SpecialTokens) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._ids = np.array(sorted(special.ids))
        self._alone: dict[str, Piece] = {"": (np.empty(0, np.int64), np.empty((0, 2), np.int64))}

    def read(self, before: list[str], texts: list[str]) -> list[tuple[Ints, Ints]]:
        """(ids, (tokens, 2) spans in characters of the text) of each text, as it follows what is before it."""
        joint = self._encode([head + text for head, text in zip(before, texts, strict=True)])
        return [
            self._rest(head, out) or self._behind_another(head, text)
            for head, text, out in zip(before, texts, joint, strict=True)
        ]

    def _behind_another(self, head: str, text: str) -> tuple[Ints, Ints]:
        for other in NEUTRAL[::-1] if head[-1].isspace() else NEUTRAL:
            [out] = self._encode([other + text])
            if rest := self._rest(other, out):
                return rest
        [out] = self._encode([text])
        return out

    def _rest(self, head: str, out: tuple[Ints, Ints]) -> tuple[Ints, Ints] | None:
        """What follows the head's tokens; None where they are not what they are alone."""
        if head not in self._alone:
            [self._alone[head]] = self._encode([head])
        ids, spans = self._alone[head]
        count = len(ids)
        if not (np.array_equal(out[0][:count], ids) and np.array_equal(out[1][:count], spans)):
            return None
        return out[0][count:], out[1][count:] - len(head)

    def _encode(self, texts: list[str]) -> list[tuple[Ints, Ints]]:
        out = self._tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            (np.array(ids, np.int64), np.array(spans, np.int64).reshape(-1, 2))
            for ids, spans in zip(out["input_ids"], out["offset_mapping"], strict=True)
        ]

    def sizes(self, text: str, ids: Ints, spans: Ints) -> Ints:
        """(tokens,) UTF-8 bytes; a special token's name counts none, and the unknown token what it stands for."""
        sizes = bytes_of(text, spans[:, 1])
        for i in np.flatnonzero(np.isin(ids, self._ids)):
            name = text[max(0, spans[i, 0]) : spans[i, 1]]
            if name.strip() in self._special.names:
                sizes[i] -= len(name.encode())
        return sizes


def last_token(before: str, text: str, spans: Ints) -> str:
    """The text from the start of its last token on; a text without tokens adds to what was before it."""
    if not len(spans):
        return before + text
    start = int(spans[-1, 0])
    return text[min(start, len(text) - 1) :] if start >= 0 else before + text


def bytes_of(text: str, ends: Ints) -> Ints:
    """(tokens,) UTF-8 bytes first covered by each token, from where tokens end in characters; they sum to the text's.

    A character that several tokens share goes to the first of them; what a tokenizer drops goes to the last token.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    reached = np.concatenate([[0], np.cumsum(widths)])[np.maximum.accumulate(np.maximum(ends, 0))]
    if len(reached):
        reached[-1] = widths.sum()
    return np.diff(reached, prepend=0)
