"""The shipped tokenizer, loaded as any user of transformers would."""

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from lab.assets import tokenizer as make
from lab.data.stdlib import corpus
from lab.model.hub import shipped


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(shipped("base"))


def test_it_has_4096_tokens_one_end_and_one_pad(tokenizer):
    assert len(tokenizer) == 4096
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.pad_token_id == 1
    assert tokenizer.chat_template is None
    assert tokenizer("")["input_ids"] == [0]  # texts open with the end token


@pytest.mark.parametrize("text", ["def f(x):\n\treturn  x\n", "Σ rank · (out + in) 🙂", "\x00\r\n  123,456 ", ""])
def test_decoding_gives_every_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_numbers_are_read_a_digit_at_a_time(tokenizer):
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_it_spends_a_token_on_more_than_three_bytes_of_held_out_text(tokenizer):
    texts = [text for [text] in corpus("docs")["val"]]
    tokens = sum(map(len, tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]))
    assert sum(len(text.encode()) for text in texts) / tokens > 3.0  # measured 3.53 on Python 3.11.7


def test_training_it_is_deterministic():
    texts = [text for [text] in corpus("docs")["train"][:80]]
    first, second = (Tokenizer.to_str(make.train(texts).backend_tokenizer) for _ in range(2))
    assert first == second
