"""Text in its splits: the record types and the protocol every data set follows. No torch at this level."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Text:
    """Running text; every token is a label. Texts are packed end to end into blocks of `max_length`."""

    text: str


@dataclass(frozen=True)
class Written(Text):
    """Text in the very tokens a model wrote it in, which its characters need not give back; a sample of its own."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A prompt (with an optional input field) and its response; only the response is labelled."""

    prompt: str
    response: str
    input: str = ""


@dataclass(frozen=True, kw_only=True, repr=False)
class Drawn(Pair):
    """A pair that a seeded generator made, which gives the whole item back for its own scoring."""

    seed: int
    index: int

    def __repr__(self) -> str:
        return repr(Pair(self.prompt, self.response, self.input))  # its identity is its text


@dataclass(frozen=True)
class Chat:
    """Several turns, each (role, content); only the assistant's turns are labelled."""

    messages: tuple[tuple[str, str], ...]


Record = Text | Pair | Chat


def question(record: Record) -> tuple[object, ...]:
    """What a record asks: all that comes before its last answer; itself where nobody asks anything."""
    if isinstance(record, Chat):
        turns = [tuple(turn) for turn in record.messages]
        answers = [i for i, (role, _) in enumerate(turns) if role == "assistant"]
        asked = turns[: answers[-1]] if answers else turns
        return tuple(asked if any(role == "user" for role, _ in asked) else turns)
    if isinstance(record, Pair):
        return (record.prompt, record.input) if record.prompt or record.input else (record.response,)
    return (record.text,)


@dataclass(frozen=True)
class Splits:
    """The records of a data set, side by side; an empty test side means there is none."""

    train: Sequence[Record]
    val: Sequence[Record]
    test: Sequence[Record] = field(default_factory=tuple)
    dropped: int = field(default=0, kw_only=True)  # records that contradict themselves, and were left out

    def known(self, side: str) -> int:
        """How many records of `val` or `test` ask what a record of the training side asks, word for word."""
        asked = {question(record) for record in self.train}
        return sum(question(record) in asked for record in getattr(self, side))

    @property
    def sha256(self) -> str:
        """Identity of the content: of the repr of every record, in order, side by side."""
        digest = hashlib.sha256()
        for side in (self.train, self.val, self.test):
            for record in side:
                digest.update(repr(record).encode())
            digest.update(b"\x00")
        return digest.hexdigest()


class DataSet(Protocol):
    """A data set loads its splits; how they become tokens is the business of `lab.data.encode`.

    A class whose text follows from its settings alone, from no file and no hub, may say `generated: ClassVar = True`.
    """

    name: str
    template: str | None  # prompt template: `auto`, or text with {prompt}, {input} and the response behind it
    max_length: int  # tokens
    retention: str | None  # as lab.data.retention takes it
    answer_pattern: str | None  # regular expression whose one group is the answer, for accuracy

    def load(self) -> Splits:
        """Read, generate or download the records."""
        ...
