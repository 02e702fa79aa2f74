"""Records as token ids with labels: packed text, masked prompts, and exact counts of bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.text import Text as Styled
from torch import Tensor

from lab.data import Record, Text, Written
from lab.data.template import Segment, opening, render, render_prompt
from lab.errors import UsageError

__all__ = ["Encoded", "Sample", "encode", "preview", "render", "render_prompt"]

IGNORED = -100  # torch's cross-entropy leaves this label out
Ints = NDArray[np.int64]


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
    truncated: int  # records cut at max_length
    unlabelled: int  # records left out, since nothing in them is predicted (after the cut)
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
    texts = [record.text for record in records if isinstance(record, Text) and not isinstance(record, Written)]
    samples = list(packed(texts, tokenizer, max_length)) if texts else []
    written = [[tokenizer.eos_token_id, *record.ids] for record in records if isinstance(record, Written)]
    samples += [as_written(ids[:max_length], tokenizer) for ids in written]
    truncated, unlabelled = sum(len(ids) > max_length for ids in written), 0
    others = [i for i, record in enumerate(records) if not isinstance(record, Text)]
    rendered = [render(records[i], tokenizer, template) for i in others]
    for i, (ids, labels, sizes) in zip(others, joined(rendered, tokenizer), strict=True):
        truncated += len(ids) > max_length
        if (labels[:max_length] == IGNORED).all():
            unlabelled += 1
        else:
            row = sample(ids[:max_length], labels[:max_length], sizes[:max_length])
            samples.append(replace(row, record=i))
    if records and not samples:
        raise UsageError(
            f"no token of the {side_name} side is predicted: all labels of its {len(records)} examples are masked, "
            f"{truncated} of them cut at max_length={max_length}; raise data.max_length or check the responses."
        )
    return Encoded(
        samples,
        truncated,
        unlabelled,
        num_tokens=sum(len(each.input_ids) for each in samples),
        num_labels=sum(int((each.labels != IGNORED).sum()) for each in samples),
    )


def packed(texts: list[str], tokenizer: Any, max_length: int) -> Iterator[Sample]:
    """END text END text ... END in blocks that overlap by one token, so that all but the first are predicted once.

    Where the tokenizer opens a text with a token other than END, that token follows END.
    """
    end = [tokenizer.eos_token_id]
    start = [tokenizer.bos_token_id] if opening(tokenizer) else end
    border = np.array(end if start == end else end + start)
    parts, sizes = [np.array(start)], [np.zeros(1, np.int64)]
    for ids, num_bytes in tokenise(texts, tokenizer):
        parts += [ids, border]
        sizes += [num_bytes, np.zeros(len(border), np.int64)]
    stream, lengths = np.concatenate(parts), np.concatenate(sizes)
    if start != end:  # nothing follows the last text
        stream, lengths = stream[:-1], lengths[:-1]
    for at in range(0, len(stream) - 1, max_length - 1):
        block = stream[at : at + max_length]
        yield sample(block, block, lengths[at : at + max_length])


def as_written(ids: list[int], tokenizer: Any) -> Sample:
    """Every token but the first is predicted."""
    sizes = np.zeros(len(ids), np.int64)
    sizes[-1] = len(tokenizer.decode(ids[1:], skip_special_tokens=True).encode())
    return sample(np.array(ids), np.array(ids), sizes)


def joined(rendered: list[list[Segment]], tokenizer: Any) -> Iterator[tuple[Ints, Ints, Ints]]:
    """(ids, labels, bytes) of each record; segments are tokenised apart, so that no token straddles the border."""
    tokens = tokenise([text for segments in rendered for text, _ in segments], tokenizer)
    for segments in rendered:
        ids, labels, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for _, predicted in segments:
            part, num_bytes = next(tokens)
            ids.append(part)
            labels.append(part if predicted else np.full(len(part), IGNORED))
            sizes.append(num_bytes)
        end = np.array([tokenizer.eos_token_id])
        if segments and segments[-1][1] and not (len(ids[-1]) and ids[-1][-1] == end[0]):
            ids.append(end)
            labels.append(end)
            sizes.append(np.zeros(1, np.int64))
        if segments and not len(ids[1]):  # an empty prompt: something must come before the first prediction
            ids[1], labels[1], sizes[1] = end, np.array([IGNORED]), np.zeros(1, np.int64)
        yield np.concatenate(ids), np.concatenate(labels), np.concatenate(sizes)


def sample(ids: Ints, labels: Ints, sizes: Ints) -> Sample:
    """Tensors of one row; the first label is dropped, since nothing comes before it."""
    labels = labels.copy()
    labels[0] = IGNORED
    return Sample(torch.from_numpy(ids.copy()), torch.from_numpy(labels), int(sizes[labels != IGNORED].sum()))


def tokenise(texts: list[str], tokenizer: Any, batch: int = 64) -> Iterator[tuple[Ints, Ints]]:
    """(ids, bytes) of each text, without special tokens added; the bytes of a text's tokens sum to its length."""
    special = np.array(sorted(tokenizer.all_special_ids))
    for first in range(0, len(texts), batch):
        chunk = texts[first : first + batch]
        out = tokenizer(chunk, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for text, ids, offsets in zip(chunk, out["input_ids"], out["offset_mapping"], strict=True):
            tokens = np.array(ids, np.int64)
            sizes = bytes_of(text, np.array(offsets, np.int64).reshape(-1, 2)[:, 1])
            sizes[np.isin(tokens, special)] = 0
            yield tokens, sizes


def bytes_of(text: str, ends: Ints) -> Ints:
    """(tokens,) UTF-8 bytes first covered by each token, from where tokens end in characters; they sum to the text's.

    A character that several tokens share goes to the first of them; what a tokenizer drops goes to the last token.
    """
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    reached = np.concatenate([[0], np.cumsum(widths)])[np.maximum.accumulate(ends)]
    if len(reached):
        reached[-1] = widths.sum()
    return np.diff(reached, prepend=0)


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
