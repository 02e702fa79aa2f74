"""From records to labels: every token predicted once, prompts masked, bytes exact."""

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from lab.config import CONF, instantiate
from lab.data import Chat, Pair, Text
from lab.data.encode import IGNORED, encode, preview, prompt_ids
from lab.data.tokens import bytes_of
from lab.errors import UsageError
from lab.model.hub import shipped

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["Ein Wörtchen π 🙂 of the text.\n", "plain ascii " * 40, "", "é", "def f(x):\n    return x ** 2\n" * 30]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(shipped("base"))


@pytest.fixture(scope="module")
def chat():
    tokenizer = AutoTokenizer.from_pretrained(shipped("base"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def encoded(records, tokenizer, template="auto", max_length=64):
    return encode(records, tokenizer, template=template, max_length=max_length, side_name="train")


def prompt_of(record, tokenizer, template="auto"):
    [ids] = prompt_ids([record], tokenizer, template)
    return tokenizer.decode(ids)


def predicted(sample, tokenizer):
    return tokenizer.decode(sample.labels[sample.labels != IGNORED])


@pytest.mark.parametrize("max_length", [2, 7, 64, 100_000])
def test_packing_predicts_every_token_but_the_first_exactly_once(tokenizer, max_length):
    out = encoded([Text(text) for text in WORDS], tokenizer, None, max_length)
    stream = [0]
    for text in WORDS:
        stream += [*tokenizer(text, add_special_tokens=False)["input_ids"], 0]
    labels = torch.cat([sample.labels[1:] for sample in out.samples])
    assert labels.tolist() == stream[1:]
    for sample in out.samples:
        assert 2 <= len(sample.input_ids) <= max_length
        assert sample.labels[0] == IGNORED
        assert torch.equal(sample.labels[1:], sample.input_ids[1:])
        assert sample.input_ids.dtype == sample.labels.dtype == torch.int64
    for before, after in zip(out.samples, out.samples[1:], strict=False):
        assert after.input_ids[0] == before.input_ids[-1]
    assert out.num_labels == len(stream) - 1
    assert out.truncated == out.unlabelled == 0


@pytest.mark.parametrize("max_length", [2, 7, 64])
def test_bytes_of_packed_text_are_exact(tokenizer, max_length):
    out = encoded([Text(text) for text in WORDS], tokenizer, None, max_length)
    assert sum(sample.num_bytes for sample in out.samples) == sum(len(text.encode()) for text in WORDS)


def test_bytes_of_a_character_in_several_tokens_count_once(tokenizer):
    ids = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    assert encoded([Text("🙂")], tokenizer, None).samples[0].num_bytes == 4
    assert bytes_of("aπ🙂b", torch.tensor([1, 2, 3, 3, 4]).numpy()).tolist() == [1, 2, 4, 0, 1]


def test_a_token_that_opens_a_text_follows_the_end_token(tokenizer):
    other = AutoTokenizer.from_pretrained(shipped("base"), bos_token="<|pad|>")
    other.backend_tokenizer.post_processor = type(other.backend_tokenizer.post_processor)(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 1)]
    )
    assert other("")["input_ids"] == [1]
    [sample] = encoded([Text("a"), Text("b")], other, None).samples
    a, b = (tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in "ab")
    assert sample.input_ids.tolist() == [1, a, 0, 1, b, 0]


def test_the_prompt_is_masked_and_the_response_and_end_are_not(tokenizer):
    out = encoded([Pair("What is 2 + 2?", "It is 4 — é.")], tokenizer)
    [sample] = out.samples
    assert predicted(sample, tokenizer) == "It is 4 — é.<|endoftext|>"
    assert tokenizer.decode(sample.input_ids).startswith("<|endoftext|>Question: What is 2 + 2?\n\nAnswer:\nIt is")
    assert sample.num_bytes == len("It is 4 — é.".encode())
    masked = int((sample.labels == IGNORED).sum())
    assert out.masked_fraction == pytest.approx(masked / len(sample.labels))


def test_generation_starts_from_exactly_the_masked_tokens(tokenizer, chat):
    for each in (tokenizer, chat):
        for template in ("auto", "# {input}\n{prompt}:"):
            pair = Pair("a question", "an answer", "some input")
            [sample] = encoded([pair], each, template).samples
            [prompt] = prompt_ids([pair], each, template)
            assert sample.input_ids[sample.labels == IGNORED].tolist() == prompt.tolist()


def test_no_token_straddles_the_border_of_prompt_and_response(tokenizer):
    joint = tokenizer("return", add_special_tokens=False)["input_ids"]
    assert len(joint) == 1  # one token, were it not for the border
    [sample] = encoded([Pair("re", "turn")], tokenizer, "{prompt}").samples
    assert predicted(sample, tokenizer) == "turn<|endoftext|>"


def test_with_the_shipped_tokenizer_prompt_and_answer_have_the_ids_they_have_apart(tokenizer):
    pairs = instantiate.make(yaml.safe_load((CONF / "data" / "probability_qa.yaml").read_text())).load()
    for pair in (*pairs.train, *pairs.val):
        sample = encoded([pair], tokenizer, max_length=512).samples[0]
        parts = (f"Question: {pair.prompt}\n\nAnswer:\n", pair.response)
        prompt, response = tokenizer(list(parts), add_special_tokens=False)["input_ids"]
        assert sample.input_ids.tolist() == [0, *prompt, *response, 0]
        assert sample.labels.tolist() == [IGNORED] * (1 + len(prompt)) + [*response, 0]
        assert sample.num_bytes == len(pair.response.encode())


def test_the_input_field_stands_behind_the_prompt(tokenizer):
    assert "Sort.\n\n3 1 2\n\nAnswer:" in prompt_of(Pair("Sort.", "1 2 3", "3 1 2"), tokenizer)
    assert prompt_of(Pair("{input}", "", "x"), tokenizer, "{prompt}/{input}").endswith("{input}/x")


def test_truncation_cuts_the_right_side_and_is_counted(tokenizer):
    out = encoded([Pair("short", "long " * 100), Pair("short", "short")], tokenizer, max_length=32)
    assert out.truncated == 1
    assert [len(sample.input_ids) == 32 for sample in out.samples] == [True, False]
    assert "<|endoftext|>" not in predicted(out.samples[0], tokenizer)
    assert out.samples[0].num_bytes == len(predicted(out.samples[0], tokenizer))


def test_an_example_without_labels_is_left_out_and_counted(tokenizer):
    out = encoded([Pair("long " * 100, "never reached"), Pair("short", "kept")], tokenizer, max_length=32)
    assert (len(out.samples), out.unlabelled, out.truncated) == (1, 1, 1)


def test_all_labels_masked_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(
        UsageError, match=r"train side.*2 examples.*2 of them cut at max_length=16; raise data.max_length"
    ):
        encoded([Pair("long " * 100, "x")] * 2, tokenizer, max_length=16)
    with pytest.raises(UsageError, match="no token to predict"):
        encoded([Text("a")], tokenizer, max_length=1)


def test_an_empty_side_has_no_samples(tokenizer):
    out = encoded([], tokenizer)
    assert (out.samples, out.masked_fraction) == ([], 0.0)


def test_an_empty_prompt_still_predicts_the_whole_response(tokenizer, chat):
    plain = AutoTokenizer.from_pretrained(shipped("base"))
    plain.backend_tokenizer.post_processor = type(plain.backend_tokenizer.post_processor)(single="$A")
    [sample] = encoded([Pair("", "return")], plain, "{prompt}").samples
    assert predicted(sample, plain) == "return<|endoftext|>"


def test_a_chat_is_predicted_in_the_assistants_turns_only(chat):
    record = Chat((("system", "S"), ("user", "U1"), ("assistant", "A1"), ("user", "U2"), ("assistant", "A2")))
    [sample] = encoded([record], chat).samples
    assert predicted(sample, chat) == "A1<|im_end|>A2<|im_end|><|endoftext|>"
    assert sample.num_bytes == 4
    assert prompt_of(record, chat).endswith("U2<|im_end|>\n<|im_start|>assistant\n")


def test_auto_takes_the_chat_template_and_text_overrides_it(chat):
    pair = Pair("U", "A", "I")
    assert prompt_of(pair, chat) == "<|im_start|>user\nU\n\nI<|im_end|>\n<|im_start|>assistant\n"
    assert "im_start" not in prompt_of(pair, chat, "{prompt} {input}")


def test_messages_without_a_chat_template_are_refused(tokenizer):
    with pytest.raises(UsageError, match=r"no chat template; choose a chat model, or use data.prompt_field"):
        encoded([Chat((("user", "U"), ("assistant", "A")))], tokenizer)


def test_roles_the_chat_template_refuses_are_named(chat):
    chat.chat_template = "{{ raise_exception('roles must alternate') }}"
    try:
        with pytest.raises(UsageError, match=r"roles user, assistant .*roles must alternate"):
            encoded([Chat((("user", "U"), ("assistant", "A")))], chat)
    finally:
        chat.chat_template = CHATML


def test_a_chat_template_that_rewrites_turns_is_refused(chat):
    chat.chat_template = "{{ messages | length }}" + CHATML
    try:
        with pytest.raises(UsageError, match="renders a turn differently once others follow"):
            encoded([Chat((("user", "U"), ("assistant", "A"), ("user", "V")))], chat)
    finally:
        chat.chat_template = CHATML


@pytest.mark.parametrize(
    ("template", "pair", "part"),
    [
        ("Q: {question}", Pair("p", "r"), "has no {prompt}"),
        ("{prompt} {response}", Pair("p", "r"), "always stands behind"),
        ("Q: {prompt}", Pair("p", "r", "context"), "would be lost"),
    ],
)
def test_a_template_that_loses_something_is_refused(tokenizer, template, pair, part):
    with pytest.raises(UsageError) as error:
        encoded([pair], tokenizer, template)
    assert part in str(error.value)


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer):
    other = AutoTokenizer.from_pretrained(shipped("base"))
    other.eos_token = None
    with pytest.raises(UsageError, match="has no eos_token"):
        encoded([Text("a")], other)


def test_the_preview_dims_what_is_not_predicted(tokenizer):
    [sample] = encoded([Pair("Why?", "Because.")], tokenizer).samples
    styled = preview(sample, tokenizer)
    assert styled.plain == tokenizer.decode(sample.input_ids)
    [span] = [span for span in styled.spans if span.style == "dim"]
    assert styled.plain[span.start : span.end].endswith("Why?\n\nAnswer:\n")
