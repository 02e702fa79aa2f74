"""Corpus of a run: the samples of every side, read, rendered and encoded from a data set's text."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lab.data import DataSet, Record, Splits, retention
from lab.data.encode import Encoded, Sample, encode
from lab.errors import UsageError

_latest: dict[tuple[str, ...], "Corpus"] = {}  # of this process: one, that of its last generated data set
LOUD = 0.1  # share of a side's examples whose loss is a warning


@dataclass
class Corpus:
    """The samples of every side, and what became of the text on the way."""

    splits: Splits
    train: Encoded
    val: Encoded
    test: Encoded
    retention: list[Sample]
    retention_name: str | None
    test_name: str  # of the data set whose test side it is
    retention_sha256: str | None
    pad_id: int
    eos_id: int
    max_length: int

    @property
    def test_records(self) -> list[Record]:
        """The records of the test side whose loss is measured, in order; running text has none."""
        return [self.splits.test[sample.record] for sample in self.test.samples if sample.record is not None]

    @cached_property
    def known(self) -> dict[str, int]:
        """How many examples of each held-out side ask what training asks."""
        return {side: self.splits.known(side) for side in ("val", "test")}

    def samples(self, side: str) -> list[Sample]:
        """The samples of `train`, `val`, `test` or `retention`."""
        found: list[Sample] = self.retention if side == "retention" else getattr(self, side).samples
        return found

    def record(self, name: str) -> dict[str, Any]:
        """The `data` field of a RunRecord."""
        return {
            "name": name,
            "test_name": self.test_name,
            "sha256": self.splits.sha256,
            "train_examples": len(self.train.samples),
            "val_examples": len(self.val.samples),
            "test_examples": len(self.test.samples),
            "truncated": self.train.truncated + self.val.truncated + self.test.truncated,
            "unlabelled": self.train.unlabelled + self.val.unlabelled + self.test.unlabelled,
            "masked_fraction": self.train.masked_fraction,
            "known": self.known,
            "val_bytes": sum(sample.num_bytes for sample in self.val.samples),
            "retention": self.retention_name,
            "dropped": self.splits.dropped,
            "retention_sha256": self.retention_sha256,
        }

    def repeats(self) -> list[str]:
        """A sentence for every held-out side that asks what training asks, word for word; a warning over a tenth."""
        counts = ((side, known, len(getattr(self.splits, side))) for side, known in self.known.items())
        return [
            f"{'WARNING: ' if known > LOUD * total else ''}{side}: {known:,} of {total:,} examples ask what training "
            "asks, word for word: a low loss and a right answer may be memory"
            for side, known, total in counts
            if known
        ]

    def losses(self) -> list[str]:
        """A sentence for every side that lost examples or their ends on the way, a warning where it is over a tenth."""
        dropped = self.splits.dropped
        told = f"{dropped:,} examples contradict themselves and were dropped, others drawn instead"
        return ([told] if dropped else []) + [
            sentence
            for side in ("train", "val", "test")
            if (sentence := _lost_sentence(getattr(self, side), side, self.max_length)) is not None
        ]


def load_corpus(data: DataSet, tokenizer: Any, max_examples: int | None = None) -> Corpus:
    """Read, render and encode the data set; raises UsageError where a side a run needs is empty.

    With `max_examples`, a held-out side keeps at most so many of its samples, evenly spread. Text that follows from a
    data set's settings alone (its class says `generated = True`) is made once for jobs in a row, which share it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    own = data.retention not in (None, *retention.STDLIB)  # which may change between two jobs
    if backend is None or own or not getattr(data, "generated", False):
        return _read(data, tokenizer, max_examples)
    words = (backend.to_str(), repr(tokenizer.chat_template), repr(tokenizer.special_tokens_map))
    key = (type(data).__qualname__, repr(data), *words, repr(max_examples))
    if key not in _latest:
        made = _read(data, tokenizer, max_examples)
        _latest.clear()
        _latest[key] = made
    return _latest[key]


def _read(data: DataSet, tokenizer: Any, max_examples: int | None) -> Corpus:
    splits = data.load()
    sides = {}
    for side in ("train", "val", "test"):
        records = getattr(splits, side)
        if not records and side != "test":
            raise UsageError(f"data {data.name} has an empty {side} side; give it text, or a val_fraction above 0.")
        sides[side] = encode(records, tokenizer, template=data.template, max_length=data.max_length, side_name=side)
        if side != "train":
            sides[side].samples = _subsample(sides[side].samples, max_examples)
    retained: Splits = Splits((), (), retention.texts(data.retention) if data.retention else ())
    kept = encode(retained.test, tokenizer, template=None, max_length=256, side_name="retention").samples
    return Corpus(
        splits=splits,
        retention=_subsample(kept, max_examples),
        retention_sha256=retained.sha256 if data.retention else None,
        retention_name=data.retention,
        test_name=getattr(data, "test_name", data.name),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        max_length=data.max_length,
        **sides,
    )


def _lost_sentence(side: Encoded, name: str, max_length: int) -> str | None:
    """A sentence on the examples that a side lost or cut; None where every one is whole."""
    without = side.unlabelled - side.cut_off
    parts = [
        f"{count:,} of {side.num_records:,} examples {'is' if count == 1 else 'are'} {what}"
        for count, what in (
            (side.cut_off, f"left out, since data.max_length={max_length} cuts off their whole answer"),
            (without, "left out, since nothing in them is an answer"),
            (side.shortened, f"cut at data.max_length={max_length}"),
        )
        if count
    ]
    if not parts:
        return None
    lost = side.unlabelled + side.shortened
    loud = "WARNING: " if lost > LOUD * side.num_records else ""
    remedy = "; raise data.max_length" if side.cut_off or side.shortened else ""
    return f"{loud}{name}: {', '.join(parts)}{remedy}"


def _subsample(samples: list[Sample], most: int | None) -> list[Sample]:
    if most is None or len(samples) <= most:
        return samples
    return [samples[i * len(samples) // most] for i in range(most)]
