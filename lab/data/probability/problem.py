"""A kind of problem: its parameters, its wordings, its worked answer, and a second method that must agree.

Text is plain ASCII, as a tokenizer of code reads it best: `*` multiplies, `^` raises, `C(n, k)` counts subsets.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, Self

from lab.data import Pair
from lab.data.probability.arithmetic import verify_equalities

NUMBER = re.compile(r"-?\d+(?:/\d+)?")


class Wording(NamedTuple):
    """One story around a kind: the question, and the sentence that opens its worked answer by naming the letters."""

    question: str  # {fields} and {properties} of the problem are filled in; every parameter must show
    opening: str


class Worked(NamedTuple):
    """A worked answer: the steps behind the opening sentence, and the number they end on."""

    steps: str
    answer: Fraction


@dataclass(frozen=True)
class Problem(ABC):
    """A problem with its numbers filled in; each subclass is a kind, and its fields are the kind's parameters."""

    wordings: ClassVar[tuple[Wording, ...]]  # wording i belongs to side i mod 3 of (train, val, test)

    @classmethod
    @abstractmethod
    def space(cls) -> Iterator[Self]:
        """Every admissible choice of the parameters, each once."""

    @abstractmethod
    def solve(self) -> Worked:
        """The worked answer, as a textbook would derive it."""

    @abstractmethod
    def check(self) -> Fraction:
        """The same number from the parameters by another method: enumeration, recursion, a linear system."""

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)  # so that `str.format_map` fills wordings from fields and properties alike

    def write(self, wording: Wording) -> Pair:
        """The problem as a question with its worked answer.

        Raises ArithmeticError where the second method disagrees, where a displayed equality is false, or where the
        steps do not end on the answer: such a record must never reach a training set.
        """
        worked, second = self.solve(), self.check()
        if worked.answer != second:
            raise ArithmeticError(f"{self} is worked out as {worked.answer}, but its check gives {second}")
        text = f"{wording.opening.format_map(self)} {worked.steps}"
        verify_equalities(text)
        if NUMBER.findall(text)[-1:] != [str(worked.answer)]:
            raise ArithmeticError(f"the steps of {self} do not end on their answer {worked.answer}: {text}")
        return Pair(prompt=wording.question.format_map(self), response=f"{text}\nAnswer: {worked.answer}")


def reduced(numerator: int, denominator: int) -> str:
    """`10/45 = 2/9`, or only `7/45` where nothing cancels."""
    value = Fraction(numerator, denominator)
    return str(value) if value.denominator == denominator else f"{numerator}/{denominator} = {value}"


def power(base: Fraction | int, exponent: int) -> str:
    """`(2/3)^4`, `5^2`, or the bare base where the exponent is 1."""
    shown = str(base) if Fraction(base).denominator == 1 else f"({base})"
    return str(base) if exponent == 1 else f"{shown}^{exponent}"


def proper_fractions(largest_denominator: int) -> list[Fraction]:
    """All fractions strictly between 0 and 1 with denominators up to the given one, ascending."""
    denominators = range(2, largest_denominator + 1)
    return sorted({Fraction(a, b) for b in denominators for a in range(1, b)})
