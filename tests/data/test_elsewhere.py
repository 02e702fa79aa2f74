"""Trained on one source and tested on another: data.test."""

import json
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from lab import config
from lab.config import instantiate
from lab.config.arguments import arrange
from lab.config.suggest import composed
from lab.data import Pair, Text
from lab.data.corpus import load_corpus
from lab.data.judge import judge_of
from lab.errors import UsageError
from lab.model.hub import shipped

METAMATH = [
    {"query": f"What is {i} and {i}?", "response": f"It is {2 * i}.\nThe answer is: {2 * i}", "type": "GSM_Rephrased"}
    for i in range(40)
]
GSM8K = [{"question": f"{i} plus 1,000?", "answer": f"<<{i}+1000>>\n#### {1000 + i:,}"} for i in range(1, 6)]


@pytest.fixture
def fixtures(tmp_path, monkeypatch):
    """The two sources of metamathqa in the hub's layout and under its columns, read by the same code."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for name, sides in (("metamath", {"train": METAMATH}), ("gsm8k", {"train": GSM8K[:1], "test": GSM8K})):
        (tmp_path / name).mkdir()
        for split, rows in sides.items():
            (tmp_path / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *(f"data.path={tmp_path / 'metamath'}", "data.val_fraction=0.1"),
        *(f"data.test.path={tmp_path / 'gsm8k'}", "data.test.config_name=null"),
    ]


def made(*overrides):
    return instantiate.make_data(config.compose(*overrides).data)


def test_metamathqa_is_trained_on_and_gsm8k_tests_it(fixtures):
    data = made("data=metamathqa", *fixtures)
    data.check()
    splits = data.load()
    assert (len(splits.train), len(splits.val)) == (36, 4)
    assert splits.test == [Pair(row["question"], row["answer"]) for row in GSM8K]
    assert (data.name, data.test_name) == ("metamathqa", "gsm8k")


def test_references_are_read_as_the_test_writes_them_and_answers_as_training_teaches(fixtures):
    data = made("data=metamathqa", *fixtures)
    [first, *_] = data.load().test
    judge = judge_of(data)
    assert judge.reference(first.response) == "1,001"
    assert judge.answer("So it is.\nThe answer is: 1001") == "1001"
    assert judge.answer("#### 1001") is None
    assert judge.equal(first, "1001.0", "1,001")


def test_both_names_and_the_content_of_both_are_recorded(fixtures):
    tokenizer = AutoTokenizer.from_pretrained(shipped("base"))
    data = made("data=metamathqa", *fixtures)
    recorded = load_corpus(data, tokenizer).record("metamathqa")
    assert (recorded["name"], recorded["test_name"], recorded["test_examples"]) == ("metamathqa", "gsm8k", 5)
    without = load_corpus(made("data=metamathqa", "data.test=null", *fixtures[:2]), tokenizer).record("metamathqa")
    assert (without["test_name"], without["test_examples"]) == ("metamathqa", 0)
    assert without["sha256"] != recorded["sha256"]


def test_a_source_without_a_test_side_tests_with_all_it_has(tmp_path):
    for name, count in (("train", 10), ("other", 7)):
        rows = ({"prompt": f"{name} {i}", "response": "r"} for i in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"data.path={tmp_path / 'train.jsonl'}", f"data.test.path={tmp_path / 'other.jsonl'}"]
    splits = made("data=jsonl", "data.test=jsonl", *paths).load()
    assert {pair.prompt for pair in splits.test} == {f"other {i}" for i in range(7)}
    own = made("data=jsonl", "data.test=jsonl", *paths, f"data.test.test_path={tmp_path / 'train.jsonl'}").load()
    assert {pair.prompt for pair in own.test} == {f"train {i}" for i in range(10)}


def test_any_pair_of_options_composes_and_running_text_may_be_tested_with_questions(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n\nthree\n")
    data = made("data=text", f"data.path={tmp_path / 'a.txt'}", "data.test=probability_qa", "data.test.test_examples=9")
    data.check()
    splits = data.load()
    assert isinstance(splits.train[0], Text)
    assert len(splits.test) == 9
    assert judge_of(data).reference("Answer: 3/8") == "3/8"


def test_a_mistake_of_the_test_side_is_told_under_its_own_keys(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 2)
    own = ["data=jsonl", f"data.path={tmp_path / 'a.jsonl'}", "data.test=jsonl"]
    with pytest.raises(UsageError, match=r"^data.test=jsonl needs a file; set data.test.path=FILE"):
        made(*own).check()
    with pytest.raises(UsageError, match=r"no.jsonl .* check data.test.path"):
        made(*own, "data.test.path=no.jsonl").check()
    with pytest.raises(UsageError, match=r"^data.test.max_length='x' is not a whole number"):
        made(*own, "data.test.max_length=x")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["data.test=gsm9k"], "data.test=gsm9k is no option; did you mean gsm8k?"),
        (["data.test=metamathqa"], "data.test=metamathqa is itself tested on another data set"),
        (
            ["data.test=gsm8k", "data.test.max_lenth=3"],
            "there is no key data.test.max_lenth; did you mean data.test.max",
        ),
    ],
)
def test_what_data_test_cannot_be_is_refused_in_a_sentence(overrides, sentence):
    with pytest.raises(UsageError) as error:
        composed(overrides)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(
    ("given", "hydras"),
    [
        ("data.test=gsm8k", "data@data.test=gsm8k"),
        ("+data.test=gsm8k", "data@data.test=gsm8k"),
        ("data.test=gsm8k,hub", "data@data.test=gsm8k,hub"),
        ("data.test=null", "~data@data.test"),
        ("data.test.path=x", "data.test.path=x"),
        ("data@data.test=gsm8k", "data@data.test=gsm8k"),
    ],
)
def test_the_command_line_says_it_as_any_other_key(given, hydras):
    assert arrange([given]) == [hydras]


def test_null_leaves_out_what_an_option_had_chosen():
    assert config.compose("data=metamathqa").data["test"]["name"] == "gsm8k"
    assert "test" not in config.compose("data=metamathqa", "data.test=null").data
    assert "test" not in config.compose("data.test=null").data


def test_a_saved_config_makes_the_same_data_set(fixtures, tmp_path):
    chosen = config.compose("data=metamathqa", *fixtures)
    config.save(chosen, tmp_path)
    assert instantiate.make_data(config.load_own(tmp_path).data) == instantiate.make_data(chosen.data)


@pytest.mark.slow
def test_what_is_missing_is_said_before_anything_heavy_is_imported(tmp_path):
    command = [sys.executable, "-m", "lab.train", "data.test=jsonl", "data.test.path=nowhere.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "nowhere.jsonl" in line
    assert "check data.test.path" in line
    assert not list(tmp_path.iterdir())
