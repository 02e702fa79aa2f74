"""Worked answers that contradict themselves are dropped and counted; what is tested was not seen in training."""

import re

import pytest

from lab.config import instantiate
from lab.config.suggest import composed
from lab.data import reasoning
from lab.data.gsm_symbolic import contradiction, equations, side_of
from lab.data.judge import judge_of
from lab.errors import UsageError

real = pytest.mark.skipif(
    reasoning.find_spec("reasoning_gym") is None, reason="an extra: pip install 'lowrank-lab[reasoning]'"
)


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("he gets 5*4=20 letters a week", [("5 * 4", "20")]),
        ("180 clam / 12 clam/minute = 15 minutes", [("180 / 12", "15")]),
        ("84 orders/day * 3 = 252 orders/day", [("84 * 3", "252")]),
        ("golf balls:64 * 0.75=48", [("64 * 0.75", "48")]),
        ("There are 100 questions x 20/100 = 20 chemistry questions.", [("100 * 20 / 100", "20")]),
        ("- 73 plants × €3 per plant = €219", [("73 * 3", "219")]),
        ("it takes her 10÷1/2=20 minutes", [("10 / ( 1 / 2 )", "20")]),
        ("6 yards * (3 feet / 1 yards) = 18 feet", [("6 * ( 3 / 1 )", "18")]),
        ("4+2(20)=44.0 minutes", [("4 + 2 * ( 20 )", "44.0")]),
        ("50% * 50% = 25%", [("50% * 50%", "25%")]),
        ("$400,000 x 8/100 = $32,000.", [("400000 * 8 / 100", "32000")]),
        ("of the 12, 444 eggs which is 444/12 = 37 dozen", [("444 / 12", "37")]),
        ("5 + 6 = 7 + 4 = 11", [("5 + 6", "7 + 4"), ("7 + 4", "11")]),
        ("there are 160 - 76 signatures. 130 - 87 = 43 of 50", [("130 - 87", "43")]),
        ("5 dozen = 60 eggs", []),  # of units, and no sum
        ("71 + 24 + T = 95 + T = 196", []),  # a side with an unknown says nothing of numbers
        ("T + 140 = 196, and 2x+140=198, so x=29", []),
        ("y = x + 140", []),
    ],
)
def test_an_equation_is_read_without_its_units_and_an_unknown_is_none(text, pairs):
    assert equations(text) == pairs


@pytest.mark.parametrize(
    ("worked", "answer", "wrong"),
    [
        ("15-10=5 people\n5*4=20\n#### 20", "20", None),
        ("She needs 42 / 12 = 3 trays.\n#### 3", "3", "42 / 12 = 3, and 42 / 12 is 3.5"),
        ("So it is.\n#### 8.0", "8", None),
        ("2 + 2 = 4\n#### 4", "5", "it ends in 4 and the answer is 5"),
        ("2 + 2 = 4", "4", "it ends in 2 + 2 = 4 and the answer is 4"),
        ("6 x 0.6666666666666666 = 4.0\n#### 4", "4", None),  # floats as they are printed
        ("10 / 3 = 3.33\n#### 3", "3", None),  # rounded as it is shown
        ("10 / 3 = 3.34\n#### 3", "3", "10 / 3 = 3.34, and 10 / 3 is 3.33333"),
        ("1/3 = 33.3%\n#### 3", "3", None),
        ("17*0.5=8 tubes\n#### 8", "8", "17 * 0.5 = 8, and 17 * 0.5 is 8.5"),
        ("0.1 + 0.2 = 0.3\n#### 0.3", "0.3", None),  # which no sum of floats is
        ("3 / 0 = 1\n#### 1", "1", None),  # no number, so no statement about one
    ],
)
def test_a_worked_answer_contradicts_itself_where_a_sum_or_its_end_is_wrong(worked, answer, wrong):
    assert contradiction(worked, answer) == wrong


def test_every_template_has_one_side_for_ever():
    sides = [side_of(template) for template in range(100)]
    assert {side: sides.count(side) for side in ("train", "val", "test")} == {"train": 67, "val": 12, "test": 21}


def test_another_kind_of_unseen_is_refused():
    with pytest.raises(UsageError, match=r"data.unseen='words' is none of numbers, templates"):
        made("data.unseen=words").check()


def made(*overrides):
    small = ("data.train_examples=400", "data.val_examples=40", "data.test_examples=100")
    return instantiate.make_data(composed(["data=gsm_symbolic", *small, *overrides]).data)


@pytest.fixture(scope="module")
def drawn():
    """Both kinds, drawn once."""
    return {unseen: made(f"data.unseen={unseen}").load() for unseen in ("numbers", "templates")}


def templates(data, pairs):
    """The template of each pair, from the library's own list."""
    generators = {}
    for pair in pairs:
        side = data._side_of(pair.seed)
        generators.setdefault(side, data._generator(side))
        yield generators[side].task_indices[pair.index]


@real
@pytest.mark.parametrize("unseen", ["numbers", "templates"])
def test_worked_answers_end_in_the_answer_that_the_library_scores(drawn, unseen):
    splits, data = drawn[unseen], made(f"data.unseen={unseen}")
    judge = judge_of(data)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [400, 40, 100]
    for pair in (*splits.train, *splits.val, *splits.test):
        assert judge.equal(pair, judge.reference(pair.response), judge.reference(pair.response))
        assert contradiction(pair.response, judge.reference(pair.response)) is None
    assert not judge.equal(splits.test[0], "-17", "")


@real
def test_what_contradicts_itself_is_dropped_and_counted(drawn):
    for splits in drawn.values():
        assert 0 < splits.dropped < 60  # about 3 in 100 drawn


@real
def test_unseen_templates_share_none_with_training_and_unseen_numbers_share_all_but_the_numbers(drawn):
    data = made()
    found = {
        unseen: {side: set(templates(data, getattr(splits, side))) for side in ("train", "val", "test")}
        for unseen, splits in drawn.items()
    }
    apart = found["templates"]
    assert not apart["train"] & apart["test"]
    assert not apart["val"] & (apart["train"] | apart["test"])
    assert len(apart["test"]) > 10
    assert len(found["numbers"]["test"] & found["numbers"]["train"]) > 40
    splits = drawn["numbers"]
    keys = [
        (template, tuple(re.findall(r"\d+", pair.prompt)))
        for side in ("train", "val", "test")
        for pair, template in zip(getattr(splits, side), templates(data, getattr(splits, side)), strict=True)
    ]
    assert len(set(keys)) == len(keys) == 540
