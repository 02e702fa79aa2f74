"""When an answer is the reference's: letter for letter, as a number, or as math-verify finds."""

from fractions import Fraction
from types import SimpleNamespace

import pytest

from lab import config
from lab.config import instantiate
from lab.data import Pair
from lab.data import judge as module
from lab.data.judge import check_answer_as, judge_of, number, same_math, same_number, same_text
from lab.errors import UsageError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9", 9),
        ("9.0", 9),
        (" 09. ", 9),
        ("+9", 9),
        ("-2", -2),
        ("\N{MINUS SIGN}2", -2),
        (".5", Fraction(1, 2)),
        ("0.1", Fraction(1, 10)),  # exactly, as no float is
        ("1,234", 1234),
        ("1,234,567.50", Fraction(2469135, 2)),
        ("1e3", 1000),
        ("2.5E-1", Fraction(1, 4)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("$5", 5),
        ("-$5.20", Fraction(-26, 5)),
        ("$-5", -5),
        ("50%", 50),
        ("50 %.", 50),
    ],
)
def test_a_text_that_is_one_number_has_its_value(text, value):
    assert number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "5 apples",
        "1 2",
        "12,34",  # no grouping of thousands
        "1,2345",
        "1.2.3",
        "--5",
        "3/0",
        "1/2/3",
        "nan",
        "inf",
        "x",
        "٣",  # a digit of another script, of which no pattern here knows the signs
        "1e9999",  # ten thousand digits
        "9" * 500,
        "1_000",
        "0x10",
    ],
)
def test_any_other_text_is_no_number(text):
    assert number(text) is None


def test_numbers_are_compared_by_value_and_words_by_their_letters():
    assert same_number("9.0", "9")
    assert same_number("1,000", "1000")
    assert same_number("6/8", "0.75")
    assert not same_number("0.333", "1/3")
    assert not same_number("nine", "9")
    assert not same_number("9", "nine")
    assert same_number("nine", "nine")
    assert not same_text("9.0", "9")


def data(pattern=r"#### (.+)", **own):
    return SimpleNamespace(answer_pattern=pattern, **own)


def test_a_judge_finds_and_compares_as_its_data_says():
    record = Pair("q", "so\n#### 1,000")
    judge = judge_of(data(answer_as="number"))
    assert judge.reference(record.response) == "1,000"
    assert judge.equal(record, judge.answer("#### 2\n#### 1000.0"), "1,000")
    assert not judge_of(data()).equal(record, "1000.0", "1,000")  # a user's own class need not say how
    assert judge_of(data(None)) is None


def test_the_judge_of_a_data_sets_own_comes_first():
    mine = object()
    assert judge_of(data(judge=lambda: mine)) is mine


@pytest.mark.parametrize("name", ["jsonl", "parquet", "hub", "probability_qa"])
def test_another_way_to_compare_is_refused_before_anything_is_read(name, tmp_path):
    path = [] if name == "probability_qa" else [f"data.path={tmp_path}"]
    (tmp_path / f"a.{name}").write_text('{"prompt": "a", "response": "b"}\n')
    chosen = config.compose(f"data={name}", "data.answer_as=numbers", *path).data
    with pytest.raises(UsageError) as error:
        instantiate.make_data(chosen).check()
    assert str(error.value) == ("data.answer_as='numbers' is no way to compare answers; did you mean number?")


def test_math_without_math_verify_is_refused_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs math-verify, .*; pip install 'lowrank-lab\[math\]'"):
        check_answer_as("math")
    check_answer_as("number")


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"$\frac{1}{2}$", r"\frac{2}{4}", True),
        ("9.0", "9", True),
        (r"\boxed{x^2 + 2x + 1}", r"(x+1)^2", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        (r"\frac{1}{3}", "0.5", False),
        ("x + 1", "x + 2", False),
        ("no idea", "3", False),
    ],
)
def test_latex_is_compared_by_what_it_means(answer, reference, same):
    pytest.importorskip("math_verify", reason="math-verify is an extra: pip install 'lowrank-lab[math]'")
    assert same_math(answer, reference) is same
