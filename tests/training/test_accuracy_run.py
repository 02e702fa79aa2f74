"""Accuracy of a run: of the base before step 0 and of what was trained, on pairs and on messages."""

import json

import pytest
import torch
from generation import by_argmax
from jobs import SMALL
from scipy.stats import binomtest

from lab import config, record
from lab.config import instantiate
from lab.data.answer import extract_answer
from lab.data.corpus import load_corpus
from lab.data.encode import prompt_ids
from lab.launch import job
from lab.training import base_loss as module

# Every question has the one answer 7, so thirty steps teach it; it is written in two ways that are one number.
SETTINGS = (
    *(setting for setting in SMALL if not setting.startswith(("data.", "schedule.max_epochs"))),
    *("method=full", "optim.lr=1e-2", "schedule.max_steps=30", "schedule.eval_every_n_steps=30"),
    *("data=jsonl", "data.val_fraction=0.2", "data.max_length=64", "data.answer_as=number"),
    "data.answer_pattern='#### (.+)'",
)
SIDES = {"path": "train", "test_path": "test"}


def rows(kind, count, answer):
    for i in range(count):
        question, response = f"What is {i} less {i}, plus 7?", f"#### {answer}"
        yield (
            {"prompt": question, "response": response}
            if kind == "pairs"
            else {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": response}]}
        )


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_model(place):
    """The smallest model with a chat template, whose marks are words of its tokenizer."""
    model = instantiate.make(config.compose("model=micro").model)
    tokenizer, net = model.tokenizer(), model.load(torch.float32, 0)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHATML
    net.resize_token_embeddings(len(tokenizer))
    net.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def run(folder, kind, *more):
    folder.mkdir(exist_ok=True)
    if kind == "messages" and not any(setting.startswith("model=") for setting in more):
        place = folder.parent / "chat"
        more = ("model=pretrained", f"model.name_or_path={chat_model(place) if not place.exists() else place}", *more)
    for name, count, answer in (("train", 40, "7"), ("test", 25, "7.0")):
        lines = (json.dumps(row) + "\n" for row in rows(kind, count, answer))
        (folder.parent / f"{kind}_{name}.jsonl").write_text("".join(lines))
    fields = [f"data.{key}={folder.parent / f'{kind}_{side}.jsonl'}" for key, side in SIDES.items()]
    fields += ["data.messages_field=messages"] if kind == "messages" else []
    given = [*SETTINGS, *fields, *more]
    job.launch(config.compose(*given), folder, choices={}, overrides=given, alone=False)
    return record.read(folder)


@pytest.fixture(scope="module", params=["pairs", "messages"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    return request.param, folder, run(folder, request.param)


def test_accuracy_moves_from_the_bases_to_what_was_learned(trained):
    _, _, result = trained
    assert result.metrics["base_test_accuracy"] == 0.0
    assert result.metrics["test_accuracy"] == 1.0  # 7 is 7.0
    assert result.metrics["test_answers_judged"] == 25
    assert not result.failed_measures


def test_each_share_has_its_binomial_interval(trained):
    _, _, result = trained
    for name, right in (("base_test_accuracy", 0), ("test_accuracy", 25)):
        ends = binomtest(right, 25).proportion_ci(method="wilson")
        found = [result.metrics[f"{name}_{end}"] for end in ("low", "high")]
        assert found == pytest.approx([ends.low, ends.high], abs=1e-12)


def test_the_bases_accuracy_is_that_of_the_weights_it_holds(trained, tmp_path):
    """On a base that has learned the task, against greedy decoding without `generate`, cache or padding."""
    kind, folder, _ = trained
    on_it = ["model=pretrained", f"model.name_or_path={folder / 'model'}", "schedule.max_steps=1"]
    result = run(tmp_path / "run", kind, *on_it)
    settings = config.load_own(tmp_path / "run")
    model, data = instantiate.make(settings.model), instantiate.make_data(settings.data)
    net, tokenizer = model.load(torch.float32, settings.seed).eval(), model.tokenizer()
    prompts = prompt_ids(load_corpus(data, tokenizer).splits.test, tokenizer, data.template)
    ends = [tokenizer.eos_token_id, *(tokenizer.get_vocab()[end] for end in ["<|im_end|>"] if kind == "messages")]
    told = [tokenizer.decode(by_argmax(net, ids, ends, 8)) for ids in prompts]
    right = sum(extract_answer(text, data.answer_pattern) in ("7", "7.0") for text in told)
    assert right > 20
    assert result.metrics["base_test_accuracy"] == right / 25


def test_the_bases_accuracy_is_computed_once_for_all_jobs_of_a_study(trained, monkeypatch):
    kind, folder, result = trained
    asked = []
    count = module.Answers.count
    monkeypatch.setattr(module.Answers, "count", lambda self, net: asked.append(1) or count(self, net))
    again = run(folder.parent / "again", kind, "optim.lr=2e-2", "schedule.max_steps=2")
    assert len(asked) == 1  # at the end
    assert again.metrics["base_test_accuracy"] == result.metrics["base_test_accuracy"]
    other = run(folder.parent / "other", kind, "schedule.max_steps=2", "evaluate.max_new_tokens=9")
    assert len(asked) == 3  # of nine tokens nobody had asked
    assert other.metrics["base_test_accuracy"] == 0.0


@pytest.mark.parametrize("setting", ["evaluate.accuracy=false", "evaluate.test=false", "data.answer_pattern=null"])
def test_where_nothing_is_judged_the_base_is_not_asked(tmp_path, monkeypatch, setting):
    monkeypatch.setattr("lab.run.host.base_answers", lambda *_: pytest.fail("nobody asked for answers"))
    result = run(tmp_path / "run", "pairs", "schedule.max_steps=1", setting)
    assert "base_test_accuracy" not in result.metrics
    assert not result.failed_measures


def test_a_base_that_cannot_answer_costs_an_entry_and_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.run.host.base_answers", lambda *_: 1 / 0)
    result = run(tmp_path / "run", "pairs", "schedule.max_steps=1")
    assert result.status == "completed"
    assert result.failed_measures == {"base_test_accuracy": "ZeroDivisionError: division by zero"}
    assert result.metrics["test_accuracy"] is not None


def test_the_console_tells_both_with_their_intervals(tmp_path, capsys):
    run(tmp_path / "run", "pairs", "schedule.max_steps=30", "seed=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "test accuracy 0.0 % (0.0 to 13.3 %)" in said  # 25 questions
    assert "test_accuracy 100.0 % (86.7 to 100.0 %)" in said
