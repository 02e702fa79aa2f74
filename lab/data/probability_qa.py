"""Probability questions with short worked answers, generated and verified: what seed 000 had, made exact."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from typing import ClassVar

from lab.data import Pair, Splits
from lab.data.answer import check_answer_pattern
from lab.data.judge import check_answer_as
from lab.data.probability import KINDS
from lab.data.probability.problem import Problem, Wording
from lab.data.template import check_template
from lab.errors import UsageError

SEED = 0
SIDES = ("train", "val", "test")
# Per cent of a kind's parameter choices. Fixed, so that asking for more training examples changes no other side.
SHARES = {"train": (0, 60), "val": (60, 75), "test": (75, 100)}


@dataclass(frozen=True, kw_only=True)
class ProbabilityQA:
    """Question and worked answer, in equal parts from every kind of problem in `lab.data.probability`.

    No near-duplicates across the split, by construction: a choice of parameters belongs to one side, and so does
    a wording, so that two problems of a kind on different sides differ in their story and in their numbers. What they
    share is the method, in the sentences of the worked answer: that is what there is to learn.
    Order and sides come from SHA-256 alone, hence are the same in every Python version; a larger size only appends.
    """

    generated: ClassVar[bool] = True

    name: str
    template: str | None
    max_length: int  # tokens
    retention: str | None
    answer_pattern: str | None
    train_examples: int
    val_examples: int
    test_examples: int
    answer_as: str = "text"  # one of lab.data.judge.ANSWER_AS

    def check(self) -> None:
        """Raises UsageError where template, retention text or answer pattern cannot be used."""
        check_template(self.template)
        check_answer_pattern(self.answer_pattern)
        check_answer_as(self.answer_as)

    def load(self) -> Splits:
        """Generate and verify the records.

        Raises UsageError for a size that is out of range, ArithmeticError where a worked answer is wrong.
        """
        return Splits(
            train=records("train", self.train_examples, at_least=1),
            val=records("val", self.val_examples, at_least=1),
            test=records("test", self.test_examples, at_least=0),
        )


def records(side: str, size: int, at_least: int) -> tuple[Pair, ...]:
    """The first `size` records of a side."""
    pools = {kind.__name__: pool(kind, side) for kind in KINDS}
    available = sum(len(problems) for problems in pools.values())
    if not at_least <= size <= available:
        raise UsageError(
            f"data.{side}_examples={size}, but probability_qa can write between {at_least} and {available} distinct "
            f"{side} problems; choose a size in that range"
        )
    return tuple(problem.write(wording) for problem, wording in islice(in_rounds(pools, side), size))


def pool(kind: type[Problem], side: str) -> list[tuple[Problem, Wording]]:
    """A kind's problems on one side, each with its wording, in the order in which they are used."""
    ordered = in_order(kind)
    low, high = (len(ordered) * share // 100 for share in SHARES[side])
    wordings = kind.wordings[SIDES.index(side) :: len(SIDES)]
    return [(problem, wordings[i % len(wordings)]) for i, problem in enumerate(ordered[low:high])]


@cache
def in_order(kind: type[Problem]) -> list[Problem]:
    """All problems of a kind, in an order that says nothing about their numbers."""
    return sorted(kind.space(), key=lambda problem: _digest(kind.__name__, *vars(problem).values()))


def in_rounds(pools: dict[str, list[tuple[Problem, Wording]]], side: str) -> Iterator[tuple[Problem, Wording]]:
    """One problem of every kind per round, the kinds in a fresh order; a kind drops out when it has no more."""
    for turn in count():
        left = [name for name, problems in pools.items() if len(problems) > turn]
        if not left:
            return
        yield from (pools[name][turn] for name in sorted(left, key=lambda name: _digest(side, turn, name)))


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("/".join(map(str, (SEED, *parts))).encode()).digest()
