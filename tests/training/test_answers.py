"""Answers are judged against references that have one, asked for as in training, and cut where they end."""

from types import SimpleNamespace

import pytest
import torch
from generation import small
from tensorboard.plugin_util import markdown_to_safe_html
from transformers import AutoTokenizer

from lab.config import Evaluate
from lab.data import Chat, Pair, Splits, Text
from lab.data import answer as answer_module
from lab.data.corpus import load_corpus
from lab.data.encode import encode
from lab.errors import UsageError
from lab.model.hub import shipped
from lab.training.answers import Answers, as_markdown

PATTERN = r"Answer: (.+)"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAIRS = [Pair(f"What is {i}?", f"It is so.\nAnswer: {i}") for i in range(12)]


@pytest.fixture(scope="module")
def plain():
    return AutoTokenizer.from_pretrained(shipped("base"))


@pytest.fixture(scope="module")
def chat():
    tokenizer = AutoTokenizer.from_pretrained(shipped("base"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def made(tokenizer, test, pattern=PATTERN, template="auto", max_examples=None, max_length=128, **evaluate):
    """Answers over a test side; training and validation sides are its first record."""
    data = SimpleNamespace(name="d", template=template, max_length=max_length, retention=None, answer_pattern=pattern)
    data.load = lambda: Splits(PAIRS[:1] if not test else test[:1], PAIRS[:1] if not test else test[:1], test)
    given = {"num_samples": 1, "sample_tokens": 8, "max_new_tokens": 40, "accuracy": True, "prompts": []} | evaluate
    corpus = load_corpus(data, tokenizer, max_examples)
    return Answers(data, corpus, tokenizer, Evaluate(**given), torch.device("cpu"))


def speaker(tokenizer, say):
    """A model whose `generate` follows each prompt (text) with what `say` makes of it (tokens), up to an end token."""
    net = small("llama", vocab_size=len(tokenizer))

    def generate(input_ids, attention_mask, generation_config, stopping_criteria):
        assert not stopping_criteria
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            net.asked.append(ids[mask.bool()].tolist())
            told = say(tokenizer.decode(net.asked[-1]))[: generation_config.max_new_tokens]
            stops = [i for i, token in enumerate(told) if token in generation_config.eos_token_id]
            told = told[: stops[0] + 1] if stops else told
            rows.append([*ids.tolist(), *told, *[generation_config.pad_token_id] * (100 - len(told))])
        return torch.tensor(rows)[:, : input_ids.shape[1] + generation_config.max_new_tokens]

    net.generate, net.asked = generate, []
    return net


def says(tokenizer, *texts):
    """Speaks the texts one after another, whatever it is asked, each with END behind it."""
    waiting = list(texts)
    return speaker(tokenizer, lambda prompt: [*tokenizer(waiting.pop(0), add_special_tokens=False)["input_ids"], 0])


def test_accuracy_is_over_the_references_that_have_an_answer(plain, capsys):
    texts = ("Answer: 1", "no idea [/b]", "Answer: 2", "Answer:  3", "Answer: 0")
    test = [Pair("q", text) for text in texts]
    answers = made(plain, test)
    said = " ".join(capsys.readouterr().out.split())
    assert "accuracy is over 4 of 5 test examples" in said
    assert "such as 'no idea [/b]', data.answer_pattern=Answer: (.+) finds no answer" in said
    net = says(plain, "Answer: 1\nso", "Answer: 3", "I think: 3", "So, Answer: 0")  # the second is not asked
    assert answers.accuracy(net) == {
        "test_accuracy": 2 / 4,
        "test_accuracy_low": pytest.approx(0.15004, abs=1e-5),  # Wilson's of 2 in 4, as scipy.stats.binomtest has it
        "test_accuracy_high": pytest.approx(0.84996, abs=1e-5),
        "test_answers_judged": 4,
        "test_answers_unmatched": 1,
        "test_references_unmatched": 1,
        "test_prompts_cut": 0,
    }


def test_where_every_reference_has_an_answer_nothing_is_said(plain, capsys):
    answers = made(plain, PAIRS)
    assert capsys.readouterr().out == ""
    assert answers.unmatched == 0


@pytest.mark.parametrize(
    ("pattern", "test"),
    [
        (r"Answer:\\s*(.+)", PAIRS),  # a backslash too many
        (r"#### (.+)", PAIRS),
        (PATTERN, [Pair("a", "yes" * 100)]),
        (r"(\d*)\b", [Pair("a", "so it is")]),  # matches, but nothing
        (PATTERN, [Chat((("user", "u"), ("assistant", "Answer: 1"), ("user", "v"), ("assistant", "no")))]),
    ],
)
def test_a_pattern_that_finds_no_reference_is_refused_with_an_example(chat, pattern, test):
    with pytest.raises(UsageError) as error:
        made(chat, test, pattern)
    sentence = str(error.value)
    assert f"data.answer_pattern={pattern} finds an answer in none of the {len(test)} test references" in sentence
    response = test[0].response if isinstance(test[0], Pair) else "no"
    assert repr(response[-20:])[1:-1] in sentence
    assert len(sentence) < 400


def test_a_pattern_that_nobody_asks_for_is_no_mistake(plain):
    answers = made(plain, PAIRS, r"Answer:\\s*(.+)", accuracy=False)
    assert answers.accuracy(None) == {"test_accuracy": None}
    assert made(plain, PAIRS, None).accuracy(None) == {"test_accuracy": None}


def test_a_missing_test_side_is_said(plain, capsys):
    answers = made(plain, [])
    assert "no accuracy: data.answer_pattern is set" in capsys.readouterr().out
    assert answers.accuracy(None) == {"test_accuracy": None}


def test_running_text_of_a_users_own_data_set_has_no_answer(plain):
    with pytest.raises(UsageError, match="needs pairs or messages: running text has no answer"):
        made(plain, [Text("Answer: 1")])


def test_a_pattern_of_a_users_own_data_set_is_checked_at_the_start(plain):
    with pytest.raises(UsageError, match="is no regular expression"):
        made(plain, PAIRS, "Answer: (.+")


@pytest.mark.parametrize("most", [1, 3, 5, None])
def test_the_examples_judged_are_those_whose_loss_is_measured(plain, most):
    test = [*PAIRS[:4], Pair("long " * 200, "never reached\nAnswer: 0"), *PAIRS[4:]]  # nothing of it is predicted
    answers = made(plain, test, max_examples=most)
    net = says(plain, *["Answer: 3"] * 12)
    assert answers.accuracy(net)["test_answers_judged"] == (most or 12)
    prompts = sorted(plain.decode(ids) for ids in net.asked)
    measured = [plain.decode(sample.input_ids[sample.labels == -100]) for sample in answers.corpus.test.samples]
    assert prompts == sorted(measured)


def test_of_messages_the_last_assistants_turn_is_judged(chat):
    first = (("system", "S"), ("user", "U"), ("assistant", "Answer: 1"), ("user", "V"), ("assistant", "Answer: 2"))
    answers = made(chat, [Chat(first), Chat((*first[1:3], ("user", "thanks"))), Chat((*first[1:3], *first[3:]))])
    net = speaker(chat, lambda prompt: chat("Answer: 2<|im_end|>", add_special_tokens=False)["input_ids"])
    assert answers.accuracy(net)["test_accuracy"] == 2 / 3
    header = "<|im_start|>assistant\n"
    before = [  # everything before it, and the header of the answer
        "<|im_start|>user\nU<|im_end|>\n",
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nAnswer: 1<|im_end|>\n<|im_start|>user\nV<|im_end|>\n",
    ]
    expected = [text + header for text in (*before, f"<|im_start|>system\nS<|im_end|>\n{before[1]}")]
    assert [chat.decode(ids) for ids in net.asked] == expected


TEMPLATES = {
    "chatml": CHATML,
    "words": CHATML.replace("<|im_end|>", "\n### end"),
    "words and a token": CHATML.replace("<|im_end|>", "</answer><|im_end|>"),
    "quotation marks": CHATML.replace("\n{{ m.content }}<|im_end|>", ' "{{ m.content }}"').replace("nt\n", 'nt "'),
    "nothing": CHATML.replace("<|im_end|>", ""),
}


@pytest.mark.parametrize("name", [*TEMPLATES, None])
@pytest.mark.parametrize("special", [True, False])
def test_what_training_predicts_is_the_answer_and_its_end(name, special):
    """A model that says exactly the labels of an example, and then goes on, answers with the response."""
    tokenizer = AutoTokenizer.from_pretrained(shipped("base"))
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=special)
    tokenizer.chat_template = TEMPLATES.get(name)
    pair = Pair("Say it.", 'A "b" c.\nAnswer: 7 "d"')
    answers = made(tokenizer, [pair], sample_tokens=60)
    [sample] = encode([pair], tokenizer, template="auto", max_length=128, side_name="train").samples
    trained = sample.labels[sample.labels != -100].tolist()
    junk = tokenizer("<|im_start|>user\nAnswer: 8", add_special_tokens=False)["input_ids"]
    net = speaker(tokenizer, lambda prompt: trained + junk)
    assert answers.accuracy(net)["test_accuracy"] == 1.0
    [(_, text)] = answers.samples(net)
    assert text == pair.response


def test_the_end_of_a_turn_ends_an_answer_where_another_token_ends_a_text(chat):
    """A chat model stops at its end of turn; what would follow is not its answer."""
    answers = made(chat, PAIRS[:1])
    assert answers.end_ids == [0, chat.convert_tokens_to_ids("<|im_end|>")]
    told = chat("Answer: 0<|im_end|>\n<|im_start|>user\nAnswer: 9", add_special_tokens=False)["input_ids"]
    assert answers.accuracy(speaker(chat, lambda prompt: told))["test_accuracy"] == 1.0
    assert made(chat, PAIRS[:1], template="{prompt}\n").end_ids == [0]


def test_a_reference_on_which_a_pattern_does_not_end_is_refused(plain, monkeypatch):
    monkeypatch.setattr(answer_module, "SECONDS_PER_SEARCH", 0.1)
    with pytest.raises(UsageError, match=r"data.answer_pattern=\(\(\?:a\+\)\+\)! backtracks without end"):
        made(plain, [Pair("x", "a" * 64)], r"((?:a+)+)!")


def test_an_answer_on_which_a_pattern_does_not_end_is_none(plain, monkeypatch, caplog):
    monkeypatch.setattr(answer_module, "SECONDS_PER_SEARCH", 0.1)
    answers = made(plain, [Pair("x", "aa!")], r"((?:a+)+)!", max_new_tokens=80)
    found = answers.accuracy(says(plain, "a b " + "a" * 64))
    assert (found["test_accuracy"], found["test_answers_unmatched"]) == (0.0, 1)
    assert "a search took more than 0.1 s" in caplog.text


def test_a_users_prompt_is_asked_as_training_writes_one(plain, chat):
    for tokenizer in (plain, chat):
        prompts = ["What is 2?", ""]
        answers = made(tokenizer, PAIRS, prompts=prompts)
        net = speaker(tokenizer, lambda prompt: [0])
        assert [text for _, text in answers.samples(net)] == ["", ""]
        pairs = [Pair(prompt, "Answer: 2") for prompt in prompts]
        samples = encode(pairs, tokenizer, template="auto", max_length=64, side_name="train").samples
        assert sorted(net.asked) == sorted(sample.input_ids[sample.labels == -100].tolist() for sample in samples)


def test_an_empty_prompt_begins_with_end_as_in_training():
    bare = AutoTokenizer.from_pretrained(shipped("base"))
    bare.backend_tokenizer.post_processor = type(bare.backend_tokenizer.post_processor)(single="$A")
    pair = Pair("", "Answer: 1")
    [sample] = encode([pair], bare, template="{prompt}", max_length=64, side_name="train").samples
    answers = made(bare, [pair, PAIRS[3]], template="{prompt}")
    net = speaker(bare, lambda prompt: [0])
    answers.accuracy(net)
    assert net.asked[0] == sample.input_ids[sample.labels == -100].tolist() == [0]


def test_a_prompt_that_leaves_no_room_loses_its_beginning_and_that_is_said_once(plain, capsys):
    test = [Pair("short", "Answer: 1"), Pair("long " * 40 + "end", "Answer: 1")]
    answers = made(plain, test, "Answer: (.+)", template="{prompt}:", max_new_tokens=12)
    net = small("gpt2", vocab_size=len(plain), max_position_embeddings=32)
    given = []
    generate = net.generate
    net.generate = lambda **inputs: given.append(inputs) or generate(**inputs)
    assert answers.accuracy(net)["test_prompts_cut"] == 1
    answers.accuracy(net)
    said = " ".join(capsys.readouterr().out.split())
    sentence = "1 of 2 prompts are longer than the 20 positions beside evaluate.max_new_tokens=12"
    assert said.count(sentence) == 1
    whole = plain(f"{test[1].prompt}:", add_special_tokens=False)["input_ids"]
    assert given[0]["input_ids"][1].tolist() == whole[-20:]


def test_answers_are_spelt_letter_by_letter(monkeypatch):
    """Some tokenizers tidy up blanks when they decode, which no reference has had done to it."""
    tokenizer = AutoTokenizer.from_pretrained(shipped("base"), clean_up_tokenization_spaces=True)
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    pair = Pair("Say it.", "Answer: ( 1 , 2 ) . do n't")
    assert tokenizer.decode(tokenizer(pair.response)["input_ids"], skip_special_tokens=True) != pair.response
    assert made(tokenizer, [pair]).accuracy(says(tokenizer, pair.response))["test_accuracy"] == 1.0


def test_samples_are_shown_letter_by_letter_whatever_is_in_them():
    prompt, text = "<|endoftext|>Question: 2 * 3 * 4?\n\nAnswer:\n", "# no *heading*\n\n| no | table |\n"
    html = markdown_to_safe_html(as_markdown([(prompt, text), ("second", "")]))
    assert "&lt;|endoftext|&gt;Question: 2 * 3 * 4?\n\nAnswer:" in html
    assert "# no *heading*\n\n| no | table |" in html
    assert html.count("<code>") >= 3
    assert "prompt 2" in html
