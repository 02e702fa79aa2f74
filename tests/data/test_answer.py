"""What the answer of a text is, which patterns can find one, and what ends it under a chat template."""

import re
import threading
import time

import pytest
from transformers import AutoTokenizer

from lab import config
from lab.config import instantiate
from lab.data import Chat, Pair, Text
from lab.data import answer as module
from lab.data.answer import check_answer_pattern, closing, end_token, extract_answer, question_and_answer
from lab.data.encode import encode
from lab.errors import UsageError
from lab.model.hub import shipped

ENDLESS = r"((?:a+)+)!"  # each a more doubles the search of a run of a's without a mark


def test_the_answer_is_the_last_match_with_plain_spaces():
    pattern = r"Answer:\s*(.+)"
    assert extract_answer("Answer: 1\nso\nAnswer:  1 /\t2 \n", pattern) == "1 / 2"
    assert extract_answer("no idea", pattern) is None


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [
        (r"Answer:(?: (\d+))?", "Answer: 4. Answer:", "4"),  # the group takes no part in the last match
        (r"Answer:(?: (\d+))?", "Answer: none", None),
        (r"(\d*)", "it is 42.", "42"),  # matches the empty text behind every character too
        (r"Answer:(.*)", "Answer: ", None),
        (r"#### (.+)$", "7\n#### 3 apples", "3 apples"),
        (r"(?i:answer): (?P<value>\S+)", "ANSWER: π", "π"),
    ],
)
def test_an_empty_match_is_no_answer(pattern, text, answer):
    check_answer_pattern(pattern)
    assert extract_answer(text, pattern) == answer


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        ("Answer: (.+", "missing ), unterminated subpattern at position 8"),
        ("Answer: *+(", "no regular expression"),
        ("(?P<a>x)(?P=b)", "unknown group name"),
        ("x{99999999999}(y)", "no regular expression"),
        ("", "has no groups"),
        ("Answer: .+", "has no groups"),
        ("(?:Answer): .+", "has no groups"),
        ("(Answer|Result): (.+)", "has 2 groups"),
        (r"(\d+)/(\d+)", r"data.answer_pattern=(\d+)/(\d+) has 2 groups"),  # as it was given, backslash by backslash
    ],
)
def test_a_pattern_that_finds_no_one_answer_is_refused(pattern, part):
    with pytest.raises(UsageError) as error:
        check_answer_pattern(pattern)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


MADE = {
    "probability_qa": (),
    "probability_qa_short": (),
    "stdlib_instruct": (),
    "jsonl": ("data.path=pairs.jsonl",),
    "parquet": ("data.path=pairs.parquet",),
    "hub": ("data.path=owner/name",),
    "alpaca": (),
}
RUNNING = {
    "text": ("data.path=text.txt",),
    "jsonl": ("data.path=pairs.jsonl", "data.text_field=text"),
    "parquet": ("data.path=pairs.parquet", "data.text_field=text"),
    "hub": ("data.path=owner/name", "data.text_field=text"),
    "fineweb_edu": (),
    "stdlib_docs": (),
    "stdlib_code": (),
    "stdlib_text": (),
    "planted": (),
}


@pytest.mark.parametrize("name", MADE)
def test_every_data_set_refuses_such_a_pattern_before_it_reads(name):
    chosen = config.compose(f"data={name}", *MADE[name], "data.answer_pattern='Answer: (.+'").data
    with pytest.raises(UsageError, match="is no regular expression"):
        instantiate.make(chosen).check()


@pytest.mark.parametrize("name", RUNNING)
def test_running_text_has_no_answer(name):
    chosen = config.compose(f"data={name}", *RUNNING[name], "data.answer_pattern='Answer: (.+)'").data
    with pytest.raises(UsageError, match=r"data.answer_pattern=Answer: \(.\+\) needs pairs or messages"):
        instantiate.make(chosen).check()


@pytest.mark.parametrize("name", ["probability_qa", "stdlib_instruct"])
def test_generated_pairs_refuse_a_template_before_anything_heavy(name):
    chosen = config.compose(f"data={name}", "data.template=nothing").data
    with pytest.raises(UsageError, match=r"has no \{prompt\}"):
        instantiate.make(chosen).check()


def test_a_search_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_PER_SEARCH", 0.1)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"more than 0.1 s"):
        extract_answer("a" * 64, ENDLESS)
    assert time.monotonic() - began < 5  # 2^64 steps otherwise
    assert extract_answer("aa!", ENDLESS) == "aa"


def test_a_search_leaves_other_timers_alone():
    import signal

    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        extract_answer("Answer: 1", "(1)")
        time.sleep(0.4)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_search_works_in_any_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(extract_answer("Answer: 1", "(1)")))
    thread.start()
    thread.join()
    assert found == ["1"]


def test_the_last_assistants_turn_is_the_answer_to_all_before_it():
    turns = (("system", "S"), ("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B"), ("user", "W"))
    assert question_and_answer(Chat(turns)) == (Chat(turns[:5]), "B")
    assert question_and_answer(Chat(turns[:3])) == (Chat(turns[:3]), "A")
    assert question_and_answer(Chat(turns[:2])) is None
    assert question_and_answer(Pair("p", "r", "i")) == (Pair("p", "r", "i"), "r")
    assert question_and_answer(Text("t")) is None


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {  # name -> template, the text behind an answer, the token that ends it
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>"),
    "llama 3": (
        "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        "<|eot_id|>",
        "<|eot_id|>",
    ),
    "llama 2": (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} "
        "{{ eos_token }}{% endif %}{% endfor %}",
        " <|endoftext|>",
        "<|endoftext|>",
    ),
    "gemma": (
        "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        "<end_of_turn>",
        "<end_of_turn>",
    ),
    "blanks": (CHATML.replace("<|im_end|>", "  <|im_end|>"), "  <|im_end|>", "<|im_end|>"),
    "words": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n### end\n\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        "\n### end",
        None,
    ),
    "words and a token": (
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n</answer><|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}",
        "\n</answer><|im_end|>",
        "<|im_end|>",
    ),
    "quotation marks": (
        '{% for m in messages %}{{ m.role }}: "{{ m.content }}"\n{% endfor %}'
        '{% if add_generation_prompt %}assistant: "{% endif %}',
        '"',
        None,
    ),
    "nothing": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "",
        None,
    ),
}
ADDED = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>"]


@pytest.fixture(scope="module", params=[True, False], ids=["special", "added"])
def tokenizer(request):
    """The shipped tokenizer with the tokens of other people's templates, flagged as special or merely added."""
    made = AutoTokenizer.from_pretrained(shipped("base"))
    made.add_tokens([*ADDED, "<|eot_id|>"], special_tokens=request.param)
    made.add_tokens(["  ", "\n\n\n"])  # runs of blanks that are tokens and end nothing, as in Phi's vocabulary
    return made


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_puts_behind_an_answer_ends_it(tokenizer, name):
    """Against what training predicts: the labels behind the response's own tokens."""
    tokenizer.chat_template, behind, token = TEMPLATES[name]
    pair = Pair("a question", "the response")
    assert closing(pair, tokenizer, "auto") == behind
    ended = end_token(behind, tokenizer)
    assert (ended[0] if ended else None) == token
    [sample] = encode([pair], tokenizer, template="auto", max_length=128, side_name="train").samples
    labels = sample.labels[sample.labels != -100].tolist()
    assert re.fullmatch(
        r"\s*the response" + re.escape(behind.removesuffix("<|endoftext|>")) + re.escape("<|endoftext|>"),
        tokenizer.decode(labels),
    )
    if ended:
        before = labels[: labels.index(ended[1])]
        assert tokenizer.decode(before).strip() == "the response" + behind[: behind.index(ended[0])].rstrip()


def test_a_template_of_the_users_leaves_the_end_token_alone(tokenizer):
    tokenizer.chat_template = CHATML
    assert closing(Pair("p", "r"), tokenizer, "# {prompt}\n") == ""
    assert closing(Text("t"), tokenizer, "auto") == ""
    assert closing(Chat((("user", "p"), ("assistant", "r"))), tokenizer, "# {prompt}\n") == "<|im_end|>"
    assert end_token("", tokenizer) is None
