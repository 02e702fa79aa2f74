"""A data set that is tested on another one: trained on one source, judged on a second."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lab.data import DataSet, Record, Splits
from lab.data.judge import Judge, judge_of
from lab.errors import UsageError


@dataclass(frozen=True)
class TestedElsewhere:
    """Training and validation sides of one data set, and the test side of another.

    Both are written in the first's template and cut at its length, since that is what is trained, and a model's answers
    are found as the first writes them; the second's references, and how answers compare, are its own.
    """

    data: DataSet
    test: DataSet

    @property
    def name(self) -> str:
        """Of the data set that is trained on."""
        return self.data.name

    @property
    def test_name(self) -> str:
        """Of the data set that is tested on."""
        return self.test.name

    @property
    def template(self) -> str | None:
        """Of the data set that is trained on."""
        return self.data.template

    @property
    def max_length(self) -> int:
        """Tokens, of the data set that is trained on."""
        return self.data.max_length

    @property
    def retention(self) -> str | None:
        """Of the data set that is trained on."""
        return self.data.retention

    @property
    def answer_pattern(self) -> str | None:
        """Of references."""
        return self.test.answer_pattern

    @property
    def generated(self) -> bool:
        """True where both follow from their settings alone."""
        return all(getattr(each, "generated", False) for each in (self.data, self.test))

    def judge(self) -> Judge | None:
        """The test's own, which finds a model's answers where training has put them."""
        judge = judge_of(self.test)
        taught = judge_of(self.data)
        return judge if judge is None or taught is None else replace(judge, of_completions=taught.of_completions)

    def check(self) -> None:
        """Raises UsageError for what is wrong with either, as far as files and names tell."""
        _call(self.data, "check")
        with _said_of_the_test():
            _call(self.test, "check")

    def fetch(self) -> None:
        """Bring what either needs, for jobs that have no network."""
        _call(self.data, "fetch")
        with _said_of_the_test():
            _call(self.test, "fetch")

    def load(self) -> Splits:
        """Both read; the test side is the second's own or, where it has none, all it holds."""
        splits = self.data.load()
        with _said_of_the_test():
            return replace(splits, test=_test_side(self.test))


def _test_side(data: DataSet) -> Sequence[Record]:
    own: Any = getattr(data, "for_test", None)  # of a source that can be read without its other sides
    if own is not None:
        records: Sequence[Record] = own()
        return records
    splits = data.load()
    return splits.test or (*splits.train, *splits.val)


def _call(data: DataSet, name: str) -> None:
    method: Any = getattr(data, name, None)  # a user's own class may have none
    if method is not None:
        method()


@contextmanager
def _said_of_the_test() -> Iterator[None]:
    """A sentence about `data` becomes one about `data.test`, where the user wrote it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(re.sub(r"\bdata(?=[.=])", "data.test", str(error))) from error
