"""Generated tasks: every side from its own seed, no question on two, judged by their own scoring or from files."""

import json
import random
import sys
from types import ModuleType, SimpleNamespace

import pytest

from lab import config
from lab.config import instantiate
from lab.config.suggest import composed
from lab.data import Pair, reasoning
from lab.data.judge import judge_of
from lab.errors import UsageError

SMALL = ("data.train_examples=60", "data.val_examples=20", "data.test_examples=40")


class Sums:
    """Two numbers below `most`, as reasoning-gym writes a data set: an item follows from seed + index."""

    def __init__(self, seed, size, most=100):
        assert most > 1, "most must be above 1"
        self.seed, self.size, self.most = seed, size, most

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = random.Random(self.seed + index)
        a, b = rng.randrange(self.most), rng.randrange(self.most)
        return {"question": f"{a} + {b} =", "answer": str(a + b), "metadata": {"twice": [2 * a, 2 * b]}}

    def score_answer(self, answer, entry):
        """Full marks for the sum, half for its double: of the item alone, which a reference does not hold."""
        if answer.strip() == entry["answer"]:
            return 1.0
        return 0.5 if answer.strip() == str(sum(entry["metadata"]["twice"])) else 0.0


@pytest.fixture
def library(monkeypatch):
    """A library of one task in the place of reasoning-gym."""
    package, factory = ModuleType("reasoning_gym"), ModuleType("reasoning_gym.factory")
    factory.DATASETS = {"chain_sum": (Sums,), "other": (Sums,)}
    package.create_dataset = lambda name, **settings: factory.DATASETS[name][0](**settings)
    monkeypatch.setitem(sys.modules, "reasoning_gym", package)
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", factory)
    monkeypatch.setattr(reasoning, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(reasoning, "version", lambda name: "9.9")


def made(*overrides):
    return instantiate.make_data(composed(["data=reasoning_gym", *SMALL, *overrides]).data)


def sides(splits):
    return {side: [pair.prompt for pair in getattr(splits, side)] for side in ("train", "val", "test")}


def test_no_question_is_on_two_sides_or_twice_on_one(library):
    found = sides(made("data.task_config={most: 12}").load())  # 144 questions, of which 120 are wanted
    assert {side: len(questions) for side, questions in found.items()} == {"train": 60, "val": 20, "test": 40}
    assert len({question for questions in found.values() for question in questions}) == 120


def test_a_seed_gives_its_questions_and_more_training_examples_change_no_other_side(library):
    first, more = made().load(), made("data.train_examples=90").load()
    assert made().load().sha256 == first.sha256
    assert (more.val, more.test, more.train[:60]) == (first.val, first.test, first.train)
    other = made("data.seed=1").load()
    assert not set(sides(other)["test"]) & set(sides(first)["test"])  # of 10,000: 40 others by a seed beside it
    assert other.sha256 != first.sha256


def test_a_task_with_too_few_questions_is_refused_with_their_number(library):
    with pytest.raises(UsageError) as error:
        made("data.task_config={most: 5}").load()
    assert str(error.value).startswith("data.test_examples=40, but chain_sum gives 25 different questions")  # 5 times 5


def test_answers_are_judged_by_the_librarys_own_scoring_of_the_item(library):
    data = made()
    judge, pair = judge_of(data), data.load().train[7]
    assert judge.label == "reasoning-gym 9.9"
    answer = judge.answer(f" {pair.response}\n")
    assert judge.equal(pair, answer, pair.response)
    assert not judge.equal(pair, str(2 * int(pair.response)), pair.response)  # half marks
    assert not judge.equal(pair, "none", pair.response)


def test_an_answer_of_several_lines_is_given_to_the_library_as_it_is(library):
    assert judge_of(made()).answer("  1 2\n3  4 \n") == "1 2\n3  4"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.task=chain_sums"], "data.task=chain_sums is no task of reasoning-gym 9.9; did you mean chain_sum?"),
        (["data.task_config={least: 1}"], "data.task_config={'least': 1} is refused by chain_sum: "),
        (["data.task_config={most: 1}"], "data.task_config={'most': 1} is refused by chain_sum: most must be above 1"),
        (["data.train_examples=0"], "data.train_examples=0 must be at least 1."),
        (["data.train_examples=50000"], "data.train_examples=50000 must be at most 49950."),  # seeds would meet
        (["data.test_examples=-1"], "data.test_examples=-1 must be at least 0."),
        (["data.template=x"], "data.template='x' has no {prompt}"),
        (["data.answer_pattern=x"], "data.answer_pattern=x has no groups"),
    ],
)
def test_what_a_task_cannot_be_is_refused_before_it_is_drawn(library, overrides, sentence):
    with pytest.raises(UsageError) as error:
        made(*overrides).check()
    assert str(error.value).startswith(sentence)


def test_without_the_library_the_sentence_says_both_ways_to_the_task(monkeypatch):
    monkeypatch.setattr(reasoning, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as error:
        made().check()
    sentence = str(error.value)
    assert sentence.startswith("data=reasoning_gym needs reasoning-gym, which is not installed; pip install ")
    assert "'lowrank-lab[reasoning]'" in sentence
    assert "python -m lab.fetch reasoning_gym data.folder=DIR" in sentence


def test_a_library_without_what_it_needs_is_named_with_what_is_missing(monkeypatch):
    monkeypatch.setattr(reasoning, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # its import raises ImportError
    with pytest.raises(UsageError, match=r"needs reasoning-gym, which cannot be imported \(.*reasoning_gym.*\); pip"):
        made().check()


@pytest.fixture
def written(library, tmp_path, monkeypatch):
    """A task in files, on a machine that then has no reasoning-gym."""
    place = tmp_path / "sums"
    made(f"data.folder={place}").fetch()
    splits = made().load()
    monkeypatch.setattr(reasoning, "find_spec", lambda name: None)
    return place, splits


def test_a_task_from_files_is_the_same_task_without_the_library(written):
    place, splits = written
    data = made(f"data.folder={place}")
    data.check()
    assert sides(data.load()) == sides(splits)
    assert data.load().sha256 == splits.sha256


def test_the_answers_of_a_task_from_files_are_compared_as_numbers(written):
    place, _ = written
    pair = Pair("4 + 5 =", "9")
    for judge in (
        judge_of(made(f"data.folder={place}")),
        judge_of(
            instantiate.make_data(
                config.compose("data=jsonl", "data.answer_as=number", r"data.answer_pattern='(?s)(.+)'").data
            )
        ),
    ):
        assert judge.equal(pair, judge.answer("9.0\n"), judge.reference("9"))
        assert not judge.equal(pair, judge.answer("9 or so"), "9")


def test_the_files_of_a_task_are_jsonl_that_any_run_reads(written):
    place, splits = written
    paths = [f"data.path={place}/train.jsonl", f"data.val_path={place}/val.jsonl", f"data.test_path={place}/test.jsonl"]
    plain = instantiate.make_data(config.compose("data=jsonl", *paths).data).load()
    assert sides(plain) == sides(splits)
    assert plain.sha256 == splits.sha256


def test_a_run_writes_the_folder_that_is_not_there_yet(library, tmp_path):
    data = made(f"data.folder={tmp_path / 'new'}")
    data.check()
    assert data.load().sha256 == made().load().sha256
    assert (tmp_path / "new" / "task.json").is_file()


def test_a_folder_is_written_once_and_a_second_fetch_leaves_it(written):
    place, _ = written
    before = {file.name: file.stat().st_mtime_ns for file in place.iterdir()}
    made(f"data.folder={place}").fetch()  # without the library: nothing is generated
    assert {file.name: file.stat().st_mtime_ns for file in place.iterdir()} == before
    assert sorted(before) == ["task.json", "test.jsonl", "train.jsonl", "val.jsonl"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.seed=3"], "was written with data.seed=0, and 3 is asked for"),
        (["data.task=other"], "was written with data.task=chain_sum, and other is asked for"),
        (["data.task_config={most: 7}"], "was written with data.task_config=None, and {'most': 7} is asked for"),
        (["data.test_examples=41"], "was written with data.test_examples=40, and 41 is asked for"),
    ],
)
def test_a_folder_of_another_task_is_refused(written, overrides, sentence):
    place, _ = written
    with pytest.raises(UsageError) as error:
        made(f"data.folder={place}", *overrides).check()
    assert sentence in str(error.value)


def test_a_folder_that_is_not_there_or_was_changed_is_refused_with_the_remedy(written):
    place, _ = written
    with pytest.raises(UsageError, match=r"needs reasoning-gym, .* python -m lab.fetch reasoning_gym data.folder=DIR"):
        made(f"data.folder={place.parent / 'nowhere'}").check()
    lines = (place / "test.jsonl").read_text().splitlines()
    (place / "test.jsonl").write_text("\n".join([json.dumps({"prompt": "1", "response": "2"}), *lines[1:]]) + "\n")
    with pytest.raises(UsageError, match=r"does not hold what was generated"):
        made(f"data.folder={place}").load()
    (place / "test.jsonl").write_text("{")
    with pytest.raises(UsageError, match=r"test.jsonl, line 1 is not JSON"):
        made(f"data.folder={place}").load()
    (place / "task.json").write_text("{")
    with pytest.raises(UsageError, match=r"task.json cannot be read"):
        made(f"data.folder={place}").check()


real = pytest.mark.skipif(
    reasoning.find_spec("reasoning_gym") is None, reason="an extra: pip install 'lowrank-lab[reasoning]'"
)


@real
def test_sums_of_the_real_library_are_right_and_nine_is_nine_point_nought():
    data = made("data.task_config={min_terms: 2, max_terms: 3, max_digits: 2}")
    data.check()
    splits = data.load()
    judge = judge_of(data)
    for pair in (*splits.train, *splits.val, *splits.test):
        expression = pair.prompt.partition(": ")[2].rstrip(" =")
        assert eval(expression) == int(pair.response)  # + and − of whole numbers, written by the library
        assert judge.equal(pair, f"{pair.response}.0", pair.response)
        assert not judge.equal(pair, str(int(pair.response) + 1), pair.response)


@real
@pytest.mark.parametrize("task", ["gcd", "basic_arithmetic", "spell_backward", "mini_sudoku", "leg_counting"])
def test_any_task_of_the_library_gives_its_own_answers_full_marks(task):
    data = made(f"data.task={task}", "data.train_examples=8", "data.val_examples=2", "data.test_examples=4")
    judge = judge_of(data)
    for pair in data.load().train:
        assert judge.equal(pair, judge.answer(pair.response), judge.reference(pair.response))


@pytest.mark.parametrize(("text", "what"), [("null", "null"), ("[]", "a list"), ("3", "a number")])
def test_an_account_that_is_no_object_is_refused(text, what, tmp_path):
    (tmp_path / reasoning.ACCOUNT).write_text(text)
    with pytest.raises(UsageError, match=f"cannot be read .it holds {what}, no object"):
        made(f"data.folder={tmp_path}").check()
