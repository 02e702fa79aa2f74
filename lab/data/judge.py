"""Judges of answers: where an answer stands in a text, and when it is the reference's."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

from lab.data import Record
from lab.data.answer import extract_answer
from lab.errors import UsageError, nearest

# 1,234.5  12.  .5  1e3; an exponent has at most three digits, for with more a short text could fill the memory.
_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_NUMBER = re.compile(
    r"(?:(?P<sign>[-+−])\s*[$€£¥]?|[$€£¥]\s*(?P<inner>[-+−])?)?\s*"
    rf"(?P<top>\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|{_PLAIN})(?:\s*/\s*(?P<bottom>{_PLAIN}))?\s*%?\s*\.?",
    re.ASCII,
)
LONGEST = 400  # characters of a number


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: 9.0, 1,234, 3/4, −2, $5, 50 %; None of any other.

    A currency and a per cent sign are units: 50 % is 50. Digits in groups are grouped by three.
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None:
        return None
    top, bottom = Fraction(match["top"].replace(",", "")), Fraction(match["bottom"] or 1)
    sign = -1 if (match["sign"] or match["inner"]) in ("-", "−") else 1
    return sign * top / bottom if bottom else None


def same_text(answer: str, reference: str) -> bool:
    """True where the two are letter for letter the same."""
    return answer == reference


def same_number(answer: str, reference: str) -> bool:
    """True where both are the same number, exactly; where the reference is none, letter for letter the same."""
    value = number(reference)
    return answer == reference if value is None else number(answer) == value


def same_math(answer: str, reference: str) -> bool:
    """True where math-verify finds both, numbers or LaTeX, to be the same."""
    from math_verify import parse, verify

    return answer == reference or bool(verify(parse(_as_latex(reference)), parse(_as_latex(answer))))


def _as_latex(text: str) -> str:
    """Text in the marks by which math-verify finds LaTeX, where it has none."""
    return text if re.search(r"\$|\\\(|\\\[|\\boxed", text) else f"${text}$"


ANSWER_AS: dict[str, Callable[[str, str], bool]] = {"text": same_text, "number": same_number, "math": same_math}


def check_answer_as(answer_as: str) -> None:
    """Raises UsageError for a way to compare that is none, or that needs what is not installed."""
    if answer_as not in ANSWER_AS:
        known = ", ".join(ANSWER_AS)
        raise UsageError(
            f"data.answer_as={answer_as!r} is no way to compare answers"
            f"{nearest(answer_as, list(ANSWER_AS)) or f'; use {known}.'}"
        )
    if answer_as == "math" and find_spec("math_verify") is None:
        raise UsageError(
            "data.answer_as=math needs math-verify, which is not installed; pip install 'lowrank-lab[math]', or use "
            "data.answer_as=number."
        )


@dataclass(frozen=True)
class Judge:
    """Judge of a data set's answers: a pattern finds them, and two that are `equal` are the same.

    `equal` is given the record that was asked, the answer and the reference's.
    """

    label: str  # how answers are compared, for the record
    of_references: str  # regular expression whose one group is the answer in a reference
    of_completions: str  # and in what a model writes
    equal: Callable[[Record, str, str], bool]
    tidy: bool = True  # white space within an answer says nothing

    def reference(self, text: str) -> str | None:
        """The answer in a reference, None where there is none; raises TimeoutError for a search without end."""
        return extract_answer(text, self.of_references, self.tidy)

    def answer(self, text: str) -> str | None:
        """The answer in what a model wrote; as `reference`."""
        return extract_answer(text, self.of_completions, self.tidy)


def judge_of(data: Any) -> Judge | None:
    """The judge of a data set: its own, or by its `answer_pattern` and `answer_as`; None where it has neither."""
    own = getattr(data, "judge", None)
    if own is not None:
        made: Judge | None = own()
        return made
    if data.answer_pattern is None:
        return None
    answer_as = getattr(data, "answer_as", "text")  # a class of the user's own may have none
    check_answer_as(answer_as)
    same = ANSWER_AS[answer_as]
    return Judge(
        answer_as, data.answer_pattern, data.answer_pattern, lambda record, answer, reference: same(answer, reference)
    )
