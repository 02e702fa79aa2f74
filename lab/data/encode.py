"""Records as token ids with labels: packed text, masked prompts, and exact counts of bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.text import Text as Styled
from torch import Tensor

from lab.data import Record, Text, Written
from lab.data.special import SpecialTokens
from lab.data.template import Renderer, Segment
from lab.data.tokens import Ints, tokenise
from lab.errors import UsageError

IGNORED = -100  # torch's cross-entropy leaves this label out
OPENING = 50  # tokens of running text that stand for its prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a batch; labels align with input_ids (the loss shifts them), so the first is never predicted."""

    input_ids: Tensor  # (T,), int64
    labels: Tensor  # (T,), int64, -100 where not predicted
    num_bytes: int  # UTF-8 bytes of the text that the labels spell; special tokens count 0
    record: int | None = None  # which of its side's records it is; None where several are packed


@dataclass
class Encoded:
    """One side of a data set as samples, and what was lost on the way."""

    samples: list[Sample]
    num_records: int
    truncated: int  # records cut at max_length
    unlabelled: int  # records left out, since nothing in them is predicted (after the cut)
    cut_off: int  # of these, records whose answers lie wholly behind max_length
    shortened: int  # records that are kept without their end
    num_tokens: int
    num_labels: int

    @property
    def masked_fraction(self) -> float:
        """Share of tokens that are read but not predicted; 0 where there are none."""
        return 1 - self.num_labels / self.num_tokens if self.num_tokens else 0.0


def encode(
    records: Sequence[Record], tokenizer: Any, *, template: str | None, max_length: int, side_name: str
) -> Encoded:
    """Texts packed into blocks of max_length tokens, then one sample per other record, cut on the right.

    Raises UsageError where nothing at all is predicted, or the tokenizer lacks an end token or offsets.
    """
    if max_length < 2:
        raise UsageError(f"data.max_length={max_length} leaves no token to predict; use 2 or more.")
    if tokenizer.eos_token_id is None or not tokenizer.is_fast:
        raise UsageError(
            f"the tokenizer {tokenizer.name_or_path!r} has no {'offsets' if not tokenizer.is_fast else 'eos_token'}; "
            f"use a fast tokenizer with an end-of-text token (tokenizer.json)."
        )
    special = SpecialTokens(tokenizer)
    texts = [record.text for record in records if isinstance(record, Text) and not isinstance(record, Written)]
    samples = list(pack(texts, tokenizer, special, max_length)) if texts else []
    written = [[tokenizer.eos_token_id, *record.ids] for record in records if isinstance(record, Written)]
    samples += [written_sample(ids[:max_length], tokenizer) for ids in written]
    truncated = shortened = sum(len(ids) > max_length for ids in written)
    unlabelled = cut_off = 0
    renderer = Renderer(tokenizer, template, special)
    others = {i: record for i, record in enumerate(records) if not isinstance(record, Text)}
    begin = opening(tokenizer)
    heads = [[] if renderer.writes_turns(record) else begin for record in others.values()]
    rendered = [renderer.whole(record) for record in others.values()]
    for i, (ids, labels, sizes) in zip(others, encode_rendered(heads, rendered, tokenizer, special), strict=True):
        truncated += len(ids) > max_length
        if (labels[:max_length] == IGNORED).all():
            unlabelled += 1
            cut_off += bool((labels != IGNORED).any())
        else:
            shortened += len(ids) > max_length
            row = sample(ids[:max_length], labels[:max_length], sizes[:max_length])
            samples.append(replace(row, record=i))
    if records and not samples:
        raise UsageError(
            f"no token of the {side_name} side is predicted: all labels of its {len(records)} examples are masked, "
            f"{truncated} of them cut at max_length={max_length}; raise data.max_length or check the responses."
        )
    return Encoded(
        samples,
        num_records=len(records),
        truncated=truncated,
        unlabelled=unlabelled,
        cut_off=cut_off,
        shortened=shortened,
        num_tokens=sum(len(each.input_ids) for each in samples),
        num_labels=sum(int((each.labels != IGNORED).sum()) for each in samples),
    )


def prompt_ids(records: Sequence[Record | str], tokenizer: Any, template: str | None) -> list[Tensor]:
    """(T,) int64 each, what generation starts from: the first tokens of the record's sample, up to the last answer.

    Of running text its first tokens, at most OPENING; a str is running text that is read in full.
    """
    special = SpecialTokens(tokenizer)
    renderer = Renderer(tokenizer, template, special)
    begin, end = opening(tokenizer), [tokenizer.eos_token_id]
    heads: list[list[int]] = []
    rows: list[list[str]] = []
    for record in records:
        if isinstance(record, Written):
            heads.append([*end, *record.ids])
            rows.append([])
        elif isinstance(record, Text | str):
            heads.append(begin or end)
            rows.append(special.split(record.text if isinstance(record, Text) else record))
        else:
            heads.append([] if renderer.writes_turns(record) else begin)
            rows.append([text for text, _ in renderer.prompt(record)])
    prompts = []
    for record, head, pieces in zip(records, heads, tokenise(rows, tokenizer, special), strict=True):
        ids = [*head, *(token for part, _ in pieces for token in part.tolist())] or end
        prompts.append(torch.tensor(ids[: 1 + OPENING] if isinstance(record, Text) else ids, dtype=torch.int64))
    return prompts


def opening(tokenizer: Any) -> list[int]:
    """The beginning-of-text token, where the tokenizer puts one in front of a text by itself."""
    first: list[int] = tokenizer("")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def pack(texts: list[str], tokenizer: Any, special: SpecialTokens, max_length: int) -> Iterator[Sample]:
    """END text END text ... END in blocks that overlap by one token, so that all but the first are predicted once.

    Where the tokenizer opens a text with a token other than END, that token follows END.
    """
    end = [tokenizer.eos_token_id]
    start = opening(tokenizer) or end
    border = np.array(end if start == end else end + start)
    parts, sizes = [np.array(start)], [np.zeros(1, np.int64)]
    for pieces in tokenise([special.split(text) for text in texts], tokenizer, special):
        for ids, num_bytes in pieces:
            parts.append(ids)
            sizes.append(num_bytes)
        parts.append(border)
        sizes.append(np.zeros(len(border), np.int64))
    stream, lengths = np.concatenate(parts), np.concatenate(sizes)
    if start != end:  # nothing follows the last text
        stream, lengths = stream[:-1], lengths[:-1]
    for at in range(0, len(stream) - 1, max_length - 1):
        block = stream[at : at + max_length]
        yield sample(block, block, lengths[at : at + max_length])


def written_sample(ids: list[int], tokenizer: Any) -> Sample:
    """The sample of text in a model's own tokens; every token but the first is predicted."""
    sizes = np.zeros(len(ids), np.int64)
    sizes[-1] = len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode())
    return sample(np.array(ids), np.array(ids), sizes)


def encode_rendered(
    heads: list[list[int]], rendered: list[list[Segment]], tokenizer: Any, special: SpecialTokens
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(ids, labels, bytes) of each record, its head masked in front; END closes what ends in an answer."""
    end, zero = np.array([tokenizer.eos_token_id]), np.zeros(1, np.int64)
    rows = tokenise([[text for text, _ in segments] for segments in rendered], tokenizer, special)
    for head, segments, pieces in zip(heads, rendered, rows, strict=True):
        parts = [(np.array(head, np.int64), np.zeros(len(head), np.int64), False)]
        parts += [(ids, sizes, predicted) for (ids, sizes), (_, predicted) in zip(pieces, segments, strict=True)]
        if segments and segments[-1][1] and not (len(parts[-1][0]) and parts[-1][0][-1] == end[0]):
            parts.append((end, zero, True))
        ids, sizes = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        mask = np.concatenate([np.full(len(part), predicted) for part, _, predicted in parts])
        if mask[:1].any():  # something must come before the first prediction
            ids, sizes, mask = np.append(end, ids), np.append(zero, sizes), np.append(False, mask)
        yield ids, np.where(mask, ids, IGNORED), sizes


def sample(ids: Ints, labels: Ints, sizes: Ints) -> Sample:
    """Tensors of one row; the first label is dropped, since nothing comes before it."""
    labels = labels.copy()
    labels[0] = IGNORED
    return Sample(torch.from_numpy(ids.copy()), torch.from_numpy(labels), int(sizes[labels != IGNORED].sum()))


def preview(sample: Sample, tokenizer: Any) -> Styled:
    """A sample as a model reads it, with what it is not asked to predict dimmed."""
    predicted = (sample.labels != IGNORED).tolist()
    ids = sample.input_ids.tolist()
    styled, start = Styled(), 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or predicted[end] != predicted[start]:
            styled.append(tokenizer.decode(ids[start:end]), style="" if predicted[start] else "dim")
            start = end
    return styled
