"""The user's own prompts, asked in the form in which the data asks its own."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lab.config import Evaluate
from lab.data import Pair, Text
from lab.data.encode import prompt_ids
from lab.model.hub import shipped
from lab.training import answers
from lab.training.answers import Answers


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(shipped("base"))


def asked(tokenizer, val, prompts, monkeypatch):
    """(token ids that generation starts from, samples shown) where a model always says ` yes`."""
    seen = []
    yes = torch.tensor(tokenizer(" yes", add_special_tokens=False)["input_ids"])

    def complete(net, ids, *rest):
        seen.extend(ids)
        return [yes] * len(ids)

    monkeypatch.setattr(answers, "complete", complete)
    monkeypatch.setattr(answers, "room_for_prompt", lambda net, longest, key: None)
    corpus = SimpleNamespace(splits=SimpleNamespace(train=val, val=val, test=()), eos_id=0, pad_id=1)
    settings = Evaluate(num_samples=2, sample_tokens=8, max_new_tokens=8, accuracy=False, prompts=prompts)
    shown = Answers(SimpleNamespace(template="auto"), corpus, tokenizer, settings, torch.device("cpu")).samples(None)
    return [ids.tolist() for ids in seen], shown


def test_a_prompt_of_the_users_stands_in_the_datas_template(tokenizer, monkeypatch):
    ids, shown = asked(tokenizer, [Pair("p", "r")], ["2 + 2?", "a<|endoftext|>b"], monkeypatch)
    expected = prompt_ids([Pair("2 + 2?", ""), Pair("a<|endoftext|>b", "")], tokenizer, "auto")
    assert ids == [each.tolist() for each in expected]
    assert shown[0] == ("<|endoftext|>Question: 2 + 2?\n\nAnswer:\n", " yes")
    assert [each.count(tokenizer.eos_token_id) for each in ids] == [1, 1]


def test_beside_running_text_it_is_the_beginning_of_a_text(tokenizer, monkeypatch):
    long = "import this and that " * 50
    ids, shown = asked(tokenizer, [Text("t")], [long, "a<|endoftext|>b"], monkeypatch)
    assert ids[0] == [0, *tokenizer(long, add_special_tokens=False)["input_ids"]]
    assert shown[1] == ("<|endoftext|>a<|endoftext|>b", " yes")
    assert ids[1].count(tokenizer.eos_token_id) == 1


def test_without_any_the_first_of_the_validation_side_are_asked(tokenizer, monkeypatch):
    _, shown = asked(tokenizer, [Pair("p", "r"), Pair("q", "s"), Pair("never", "t")], [], monkeypatch)
    assert [prompt for prompt, _ in shown] == [f"<|endoftext|>Question: {each}\n\nAnswer:\n" for each in "pq"]
