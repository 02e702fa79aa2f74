"""School problems with worked answers, drawn from templates: on unseen numbers, or on unseen templates."""

import hashlib
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lab.data.judge import number
from lab.data.probability.arithmetic import evaluate
from lab.data.reasoning import ReasoningGym
from lab.errors import UsageError

UNSEEN = ("numbers", "templates")
SHARES = {"train": (0, 60), "val": (60, 75), "test": (75, 100)}  # per cent of the templates
ROUNDING = 1e-9  # of floats that are printed in full
OPERATORS = [[sign] for sign in "+-*/"]  # as one token of a side

# What a worked answer is read as. A word is a unit and is skipped, unless it is written against a number, as in 2x.
_TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?P<percent>\s*%)?(?P<symbol>[A-Za-z]\w*)?"
    r"|(?P<operator>[-+*/()=])|(?P<word>[A-Za-z_][\w'’]*)|(?P<skip>[\s$£€¥])|(?P<end>.)",
    re.DOTALL,
)


@dataclass(frozen=True, kw_only=True)
class GsmSymbolic(ReasoningGym):
    """reasoning-gym's gsm_symbolic with its worked answers; items that contradict themselves are dropped and counted.

    With `unseen=numbers` every template is on every side, and no two items of one template have the same numbers;
    with `unseen=templates` a template is on one side.
    """

    unseen: str

    def check(self) -> None:
        """Raises UsageError as any task, and for another `unseen`."""
        if self.unseen not in UNSEEN:
            raise UsageError(f"data.unseen={self.unseen!r} is none of {', '.join(UNSEEN)}.")
        super().check()

    def _settings(self) -> tuple[str, ...]:
        return (*super()._settings(), "unseen")

    def _key(self, generator: Any, index: int, item: Mapping[str, Any]) -> Hashable:
        return generator.task_indices[index], tuple(re.findall(r"\d+", item["question"]))

    def _belongs(self, generator: Any, index: int, side: str) -> bool:
        return self.unseen == "numbers" or side_of(generator.task_indices[index]) == side

    def _contradicts(self, item: Mapping[str, Any]) -> bool:
        return contradiction(item["metadata"]["answer_cot"], item["answer"]) is not None

    def _response(self, item: Mapping[str, Any]) -> str:
        return str(item["metadata"]["answer_cot"])


def side_of(template: int) -> str:
    """The side of a template, where each has one; by a hash, so the same for every seed."""
    place = int.from_bytes(hashlib.sha256(str(template).encode()).digest()[:4]) * 100 >> 32
    return next(side for side, (low, high) in SHARES.items() if low <= place < high)


def contradiction(worked: str, answer: str) -> str | None:
    """What is wrong in a worked answer, as far as its sums show; None where nothing is.

    It ends in `#### N`, which must be the answer, and each equation of numbers in it must hold: to half of the last
    decimal that is shown, where decimals are.
    """
    steps, _, end = worked.rpartition("####")
    if number(end) is None or number(end) != number(answer):
        return f"it ends in {end.strip()} and the answer is {answer}"
    for left, right in equations(steps):
        a, b = evaluate(_exact(left)), evaluate(_exact(right))
        shown = re.fullmatch(r"\d+\.(\d+)(%?)", right)
        places = len(shown[1]) + 2 * len(shown[2]) if shown else None
        room = 0.0 if places is None else 0.5 * 10.0**-places
        if abs(a - b) > room + ROUNDING * max(1.0, float(abs(a))):
            return f"{left} = {right}, and {left} is {float(a):g}"
    return None


def equations(text: str) -> list[tuple[str, str]]:
    """Neighbouring sides of the equations of numbers in a text, without units, such as ("2*4", "8"); the left computes.

    Of a side that stands in a sentence, what touches the equality sign counts.
    """
    text = re.sub(r"(?m)^\s*[-•]\s+", "", text)  # of a list
    text = re.sub(r"÷\s*(\d+/\d+)", r"/(\1)", text).replace("÷", "/")
    text = re.sub(r"(?<=[\w)%])\s*/\s*(?=[A-Za-z])[\w'’-]+", " ", text)  # of a unit: orders/day
    text = re.sub(r"\s+x\s*(?=[\d($£€¥])|×", " * ", text)
    text = re.sub(r"(?<=\d)\(", "*(", text)
    found = []
    for run in _runs(text):
        sides = " ".join(run).split("=")
        for left, right in pairwise(side.split() for side in sides):
            begin = next((i for i in range(len(left)) if _is_sum(left[i:])), len(left))
            end = next((i for i in range(len(right), 0, -1) if _is_sum(right[:i])), 0)
            whole = left[begin - 1 : begin] not in OPERATORS and right[end : end + 1] not in OPERATORS
            if whole and len(left) - begin > 1 and end:
                found.append((" ".join(left[begin:]), " ".join(right[:end])))
    return found


def _runs(text: str) -> list[list[str]]:
    """The numbers and signs of a text, cut where a sentence or an unknown does; words are units, and left out."""
    runs: list[list[str]] = [[]]
    for token in _TOKEN.finditer(text):
        if token["number"] and not token["symbol"]:
            runs[-1].append(token["number"].replace(",", "") + ("%" if token["percent"] else ""))
        elif token["operator"]:
            runs[-1].append(token["operator"])
        elif token["symbol"] or token["end"] or token.group() == "\n":
            runs.append([])
    return runs


def _is_sum(tokens: list[str]) -> bool:
    if [tokens[0]] in OPERATORS:
        return False
    try:
        evaluate(_exact(" ".join(tokens)))
    except (SyntaxError, ArithmeticError):
        return False
    return True


def _exact(text: str) -> str:
    """Decimals and percentages as fractions, which have no rounding."""

    def fraction(match: re.Match[str]) -> str:
        whole, decimals, percent = match[1], match[2] or "", match[3]
        return f"({int(whole + decimals)}/{10 ** (len(decimals) + 2 * len(percent))})"

    return re.sub(r"(\d+)(?:\.(\d+))?(%?)", fraction, text)
