"""The generated data set as a whole: sizes, split, exactness, and what happens to a wrong worked answer."""

import re
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path

import pytest
import yaml

from lab.data import Pair
from lab.data import probability_qa as module
from lab.data.probability import KINDS, TOPICS
from lab.data.probability.conditional import BothGivenOne
from lab.data.probability.problem import Worked
from lab.data.probability_qa import SIDES, ProbabilityQA, in_rounds, pool
from lab.errors import UsageError

YAML = yaml.safe_load((Path(__file__).parents[2] / "conf/data/probability_qa.yaml").read_text())
DEFAULT = ProbabilityQA(**{key: value for key, value in YAML.items() if key != "_target_"})


@pytest.fixture(scope="module")
def splits():
    return DEFAULT.load()


@pytest.fixture(scope="module")
def sides(splits):
    return {side: getattr(splits, side) for side in SIDES}


def test_the_yaml_names_the_class_and_the_sizes_of_the_issue(splits):
    assert YAML["_target_"] == f"{ProbabilityQA.__module__}.{ProbabilityQA.__qualname__}"
    assert (len(splits.train), len(splits.val), len(splits.test)) == (81, 100, 200)


def test_there_are_nine_topics_and_at_least_25_kinds():
    assert len(TOPICS) == 9
    assert len({kind.__name__ for kind in KINDS}) == len(KINDS) >= 25


def test_every_kind_occurs_on_every_side():
    sizes = {"train": DEFAULT.train_examples, "val": DEFAULT.val_examples, "test": DEFAULT.test_examples}
    for side, size in sizes.items():
        pools = {kind.__name__: pool(kind, side) for kind in KINDS}
        drawn = {type(problem) for (problem, _), _ in zip(in_rounds(pools, side), range(size), strict=False)}
        assert drawn == set(KINDS)


def test_the_content_is_the_one_that_studies_on_disk_were_run_on(splits):
    # A guard: when this changes, recorded runs on `probability_qa` no longer compare with new ones.
    assert splits.sha256 == "0351e022ccce6a0a40c65ede294345bfe71e783a725e598352df5753e972d53c"


def test_every_answer_is_extracted_as_one_exact_number(sides):
    for record in (record for records in sides.values() for record in records):
        found = re.findall(DEFAULT.answer_pattern, record.response)
        assert len(found) == 1
        assert str(Fraction(found[0])) == found[0]  # parses, and is in lowest terms
        assert record.response.endswith(f"\nAnswer: {found[0]}")


def test_worked_answers_are_short_plain_text(sides):
    for record in (record for records in sides.values() for record in records):
        assert isinstance(record, Pair)
        assert len(record.response.split()) <= 120
        assert len(record.prompt) + len(record.response) <= 1000  # well inside max_length tokens
        assert (record.prompt + record.response).isascii()
        assert not re.search(r"[{}]|Fraction|  ", record.prompt + record.response)  # nothing left unformatted


def test_no_prompt_occurs_twice(sides):
    prompts = [record.prompt for records in sides.values() for record in records]
    assert len(set(prompts)) == len(prompts)


def test_the_wording_shows_every_parameter():
    for kind, side in product(KINDS, SIDES):
        problems = pool(kind, side)
        assert len({wording.question.format_map(problem) for problem, wording in problems}) == len(problems)


def test_sides_share_neither_numbers_nor_stories():
    for kind in KINDS:
        assert len(set(kind.space())) == len(list(kind.space()))
        for one, other in combinations(SIDES, 2):
            numbers = [{problem for problem, _ in pool(kind, side)} for side in (one, other)]
            stories = [{wording for _, wording in pool(kind, side)} for side in (one, other)]
            assert numbers[0].isdisjoint(numbers[1])
            assert stories[0].isdisjoint(stories[1])


def test_no_prompt_recurs_on_another_side_with_other_numbers_and_names(sides):
    normal = {side: {normalised(record.prompt) for record in records} for side, records in sides.items()}
    for one, other in combinations(SIDES, 2):
        assert normal[one].isdisjoint(normal[other])


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        # Raw question and answer: the rule against near-duplicates asks for less than 0.8; the largest is 0.33.
        (lambda record: f"{record.prompt} {record.response}", 0.5),
        # Questions with numbers and names removed, so that new numbers cannot disguise an old story: largest 0.09.
        (lambda record: normalised(record.prompt), 0.25),
    ],
)
def test_sides_hold_no_near_duplicates(sides, text, limit):
    shingles = {side: [five_grams(text(record)) for record in records] for side, records in sides.items()}
    for one, other in combinations(SIDES, 2):
        for a, b in product(shingles[one], shingles[other]):
            assert len(a & b) < limit * len(a | b)


def test_more_training_examples_change_nothing_else(splits):
    larger = replace(DEFAULT, train_examples=300).load()
    assert larger.train[:81] == splits.train
    assert (larger.val, larger.test) == (splits.val, splits.test)
    assert len({record.prompt for record in larger.train}) == 300


def test_at_least_2000_training_examples_can_be_had():
    assert sum(len(pool(kind, "train")) for kind in KINDS) >= 2000


@pytest.mark.parametrize("change", [{"train_examples": 0}, {"val_examples": -1}, {"test_examples": 10**6}])
def test_a_size_out_of_range_is_refused_with_what_is_possible(change):
    side = next(iter(change)).removesuffix("_examples")
    available = sum(len(pool(kind, side)) for kind in KINDS)
    with pytest.raises(UsageError, match=rf"data\.{side}_examples={next(iter(change.values()))}, .* and {available} "):
        replace(DEFAULT, **change).load()


class WrongAnswer(BothGivenOne):
    """Its derivation ends on a number that is off by a little."""

    def solve(self):
        steps, answer = super().solve()
        wrong = answer + Fraction(1, 1000)
        return Worked(steps.replace(str(answer), str(wrong)), wrong)


class WrongStep(BothGivenOne):
    """Its answer is right, an equality on the way is not."""

    def solve(self):
        steps, answer = super().solve()
        return Worked(steps.replace("2) = ", "2) = 1"), answer)


class OtherEnding(BothGivenOne):
    """Its steps do not arrive at its answer."""

    def solve(self):
        steps, answer = super().solve()
        return Worked(steps + " There are 3 cases.", answer)


@pytest.mark.parametrize(
    ("broken", "reason"), [(WrongAnswer, "check gives"), (WrongStep, "is false"), (OtherEnding, "do not end on")]
)
def test_generation_stops_at_a_wrong_worked_answer(monkeypatch, broken, reason):
    monkeypatch.setattr(module, "KINDS", (*KINDS, broken))
    with pytest.raises(ArithmeticError, match=reason):
        DEFAULT.load()


def normalised(text: str) -> str:
    """Without what a copy would change: numbers become #, and capitalised words inside sentences become @."""
    return re.sub(r"(?<=[a-z,] )[A-Z]\w*", "@", re.sub(r"\d+(?:/\d+)?", "#", text)).lower()


def five_grams(text: str) -> frozenset[tuple[str, ...]]:
    words = text.lower().split()
    return frozenset(tuple(words[i : i + 5]) for i in range(len(words) - 4))
