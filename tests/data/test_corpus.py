"""What became of the text on the way to samples: said for every side that lost some, and loudly where it is much."""

from dataclasses import dataclass, field

import pytest
from jobs import run
from transformers import AutoTokenizer

from lab import config
from lab.config import instantiate
from lab.data import Chat, Pair, Splits, Text, Written
from lab.data.corpus import load_corpus
from lab.model.hub import shipped

SHORT, LONG = Pair("Why?", "So."), Pair("Why?", "So " * 100)
NEVER = Pair("Why " * 100, "So.")  # its answer lies behind the cut


@dataclass
class Data:
    """A data set of given records."""

    splits: Splits
    name: str = "given"
    template: str | None = "auto"
    max_length: int = 64
    retention: str | None = None
    answer_pattern: str | None = field(default=None)

    def load(self):
        return self.splits


@pytest.fixture(scope="module")
def tokenizer():
    made = AutoTokenizer.from_pretrained(shipped("base"))
    made.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return made


def losses(tokenizer, train, val=(SHORT,), test=()):
    return load_corpus(Data(Splits(train, val, test)), tokenizer).losses()


def test_nothing_is_said_where_nothing_is_lost(tokenizer):
    whole = [SHORT, Chat((("user", "a"), ("assistant", "b"))), Text("long " * 500), Written("a", (5, 6))]
    assert losses(tokenizer, whole, test=whole) == []


def test_every_side_says_what_it_left_out_and_what_it_cut(tokenizer):
    said = losses(tokenizer, [SHORT] * 97 + [NEVER, NEVER, LONG], val=[SHORT, LONG], test=[NEVER, SHORT])
    assert said == [
        "train: 2 of 100 examples are left out, since data.max_length=64 cuts off their whole answer, "
        "1 of 100 examples is cut at data.max_length=64; raise data.max_length",
        "WARNING: val: 1 of 2 examples is cut at data.max_length=64; raise data.max_length",
        "WARNING: test: 1 of 2 examples is left out, since data.max_length=64 cuts off their whole answer; "
        "raise data.max_length",
    ]


@pytest.mark.parametrize(("lost", "loud"), [(1, False), (2, True)])
def test_more_than_a_tenth_is_a_warning(tokenizer, lost, loud):
    [said] = losses(tokenizer, [SHORT] * (10 - lost) + [NEVER] * lost)
    assert said.startswith("WARNING: ") is loud


def test_a_question_that_training_asks_is_told_of_every_side_whatever_its_answer(tokenizer):
    chat = Chat((("user", "a"), ("assistant", "b")))
    other = Chat((("user", "a"), ("assistant", "another")))
    train = [SHORT, SHORT, chat, Text("So. " * 30), Pair("Why?", "Else.", input="here")]
    held = [Pair("Why?", "Otherwise."), Pair("Why", "So."), Pair("Why?", "So.", input="there"), Text("So.")]
    corpus = load_corpus(Data(Splits(train, held, [other, Text("So. " * 30), *held])), tokenizer)
    assert corpus.record("given")["known"] == {"val": 1, "test": 3}
    val, test = corpus.repeats()
    assert val.startswith("WARNING: val: 1 of 4 examples ask what training asks")
    assert test.startswith("WARNING: test: 3 of 6 examples ask")
    assert load_corpus(Data(Splits(train, held[1:])), tokenizer).repeats() == []
    [few] = load_corpus(Data(Splits(train, held[:1] + held[1:] * 3)), tokenizer).repeats()
    assert few.startswith("val: 1 of 10 examples ask"), "a tenth is told, and no warning"


def test_what_nobody_asks_is_compared_whole(tokenizer):
    told = [("system", "Be brief.")]
    greetings = [Chat([*told, ("assistant", text)]) for text in ("Hello.", "Hi.")]  # as lists, which have no hash
    train, held = [greetings[0], Pair("", "So.")], [greetings[1], Pair("", "Else.")]
    assert load_corpus(Data(Splits(train, held)), tokenizer).repeats() == []
    assert Splits(train, [*held, *train]).known("val") == 2
    ends = [Chat((("user", "a"), ("assistant", "b"), ("user", text))) for text in ("c", "d")]
    assert Splits(ends[:1], ends[1:]).known("val") == 1, "what comes before the last answer is the same"


def test_an_example_without_an_answer_is_not_blamed_on_the_length(tokenizer):
    silent = Chat((("user", "a " * 200), ("user", "b")))
    [said] = losses(tokenizer, [SHORT] * 20 + [silent])
    assert said == "train: 1 of 21 examples is left out, since nothing in them is an answer"


def test_a_long_written_text_is_cut(tokenizer):
    [said] = losses(tokenizer, [Written("a", (5,) * 100)])
    assert said == "WARNING: train: 1 of 1 examples is cut at data.max_length=64; raise data.max_length"


def test_a_run_says_it_at_its_start(tmp_path, capsys):
    run(tmp_path, "data.max_length=100", "schedule.max_steps=1", "schedule.max_epochs=null", "evaluate.accuracy=false")
    said = " ".join(capsys.readouterr().out.split())
    assert "WARNING: train: " in said
    assert "of 28 examples are left out, since data.max_length=100 cuts off their whole answer" in said
    assert said.index("WARNING: train: ") < said.index("WARNING: test: ")


def generated(**changes):
    return instantiate.make(config.compose("data.train_examples=28", "data.test_examples=28").data | changes)


def words(tokens=(), **changes):
    made = AutoTokenizer.from_pretrained(shipped("base"))
    made.add_tokens(list(tokens))
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_jobs_in_a_row_share_a_text_that_follows_from_its_settings():
    made = load_corpus(generated(), words())
    assert load_corpus(generated(), words()) is made, "another tokenizer object, of the same words"
    assert load_corpus(generated(), words(tokens=["<|im_start|>"])) is not made
    assert (
        load_corpus(generated(), words(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")) is not made
    )
    assert load_corpus(generated(), words(pad_token="the")).pad_id != made.pad_id
    assert load_corpus(generated(max_length=255), words()) is not made
    assert len(load_corpus(generated(), words(), 5).val.samples) == 5
    again = load_corpus(generated(), words())
    assert again is not made, "one is kept, the latest"
    assert [a.input_ids.tolist() for a in again.train.samples] == [a.input_ids.tolist() for a in made.train.samples]


def test_a_file_that_has_changed_between_two_jobs_is_read_again(tmp_path, tokenizer):
    path = tmp_path / "pairs.jsonl"
    settings = config.compose("data=jsonl", f"data.path={path}", "data.val_fraction=0.3").data
    found = []
    for response in ("one", "two"):
        path.write_text("".join(f'{{"prompt": "p{i}", "response": "{response} {i}"}}\n' for i in range(10)))
        found.append(load_corpus(instantiate.make(settings), tokenizer).splits.sha256)
    assert found[0] != found[1]
