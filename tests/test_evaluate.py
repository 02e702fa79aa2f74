"""A run under lm-evaluation-harness: on a task from a local file, offline, into its record."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from in_process import call
from jobs import run
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import config, record
from lab import evaluate as module
from lab.errors import UsageError
from lab.evaluate import check_installed, evaluate, main
from lab.launch import job
from lab.report.run import load_run

harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="an extra: pip install 'lowrank-lab[lm-eval]'")
ROWS = [{"question": f"What is {i} and {i}?", "answer": f" It is {2 * i}."} for i in range(6)]
TASK = """
task: my_sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: perplexity, aggregation: perplexity, higher_is_better: false}}]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "sums.yaml").write_text(TASK.format(file=folder / "sums.jsonl"))
    return str(folder / "sums.yaml")


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, tmp_path_factory):
    """A run on a base in a folder, for stock libraries to read."""
    folder = tmp_path_factory.mktemp(request.param)
    base = folder / "base"
    run(folder / "made", "method=full", "schedule.max_steps=1", "evaluate.accuracy=false")
    (folder / "made" / "model").rename(base)
    given = ("model=pretrained", f"model.name_or_path={base}", f"method={request.param}", "evaluate.accuracy=false")
    extra = ("init=svd",) if request.param == "lora" else ()
    run(folder / "run", *given, *extra)
    return base, folder / "run", request.param


def perplexity(net, tokenizer):
    """exp of minus the mean log-probability of an answer, token by token, in plain transformers."""
    total = 0.0
    for row in ROWS:
        asked, whole = tokenizer(row["question"])["input_ids"], tokenizer(row["question"] + row["answer"])["input_ids"]
        with torch.no_grad():
            logits = net(torch.tensor([whole])).logits[0].log_softmax(-1)
        total += sum(float(logits[i - 1, whole[i]]) for i in range(len(asked), len(whole)))
    return math.exp(-total / len(ROWS))


@harness
def test_the_harness_measures_the_weights_that_the_run_exported(trained, task, tmp_path, monkeypatch):
    base, folder, method = trained
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    found = evaluate(folder, [task])
    tokenizer = AutoTokenizer.from_pretrained(base)
    if method == "lora":
        stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder / "adapter")
    else:
        stock = AutoModelForCausalLM.from_pretrained(folder / "model")
    expected = perplexity(stock.eval(), tokenizer)
    # sums of some ten float32 log-probabilities, batched and padded by the harness: 1e-4 is a hundred roundings
    assert found["my_sums"]["measures"]["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert perplexity(AutoModelForCausalLM.from_pretrained(base).eval(), tokenizer) != pytest.approx(expected, rel=1e-2)


@harness
def test_what_was_measured_is_kept_in_the_record_and_shown(trained, task, tmp_path, monkeypatch):
    _, folder, _ = trained
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    before = record.read(folder)
    said = call(main, str(folder), "--tasks", task, "--limit", "4", cwd=tmp_path)
    assert said.code == 0
    kept = record.read(folder).evaluations["my_sums"]
    assert (kept["examples"], kept["limit"], kept["num_fewshot"], kept["step"]) == (4, 4, 0, before.steps)
    assert set(kept["measures"]) == {"perplexity"}
    assert f"my_sums: perplexity {kept['measures']['perplexity']:.4f} over 4 examples" in said.out
    assert load_run(folder).evaluations == {"my_sums perplexity": kept["measures"]["perplexity"]}
    after = record.read(folder)
    after.evaluations = before.evaluations
    assert after == before


@harness
def test_a_run_that_trains_on_drops_what_its_older_weights_were_worth(task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    run(folder, "evaluate.accuracy=false")
    (folder / "checkpoints" / "last.ckpt").unlink()  # as if it had been stopped after the one before
    result = record.read(folder)
    result.status = "interrupted"
    record.write(folder, result)
    assert evaluate(folder, [task], limit=2)["my_sums"]["step"] == 6
    assert record.read(folder).evaluations
    job.launch(config.load_own(folder), folder, choices={}, overrides=[], alone=False)
    result = record.read(folder)
    assert (result.status, result.steps, result.evaluations) == ("completed", 8, {})


def test_without_the_harness_a_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"not installed; pip install 'lowrank-lab\[lm-eval\]'"):
        check_installed()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tasks", ","], "--tasks names no task"),
        (["--tasks", "nowhere.yaml"], "--tasks nowhere.yaml: there is no such file."),
        (["--tasks", "gsm8k", "--limit", "0"], "--limit must be at least 1; got 0."),
        (["--tasks", "gsm8k", "--num-fewshot", "-1"], "--num-fewshot must be at least 0; got -1."),
        (["--tasks", "gsm8k", "--batch-size", "0"], "--batch-size must be at least 1; got 0."),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_heavy(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(module, "tasks_of", lambda tasks: pytest.fail("the harness was asked"))
    assert call(main, "run", *arguments, cwd=tmp_path).sentence.startswith(sentence)


MISTAKES = {  # in a task's YAML: what is written -> what the sentence gives as the reason
    "an unknown key": ("doc_to_txt: a", "unexpected keyword argument 'doc_to_txt'"),
    "an unknown kind": ("output_type: generate", "invalid output_type 'generate'"),
    "a split that the data has not": ("test_split: tst", "KeyError 'tst'"),
    "a metric that is none": ("metric_list: [{metric: exact_mach}]", "KeyError"),
    "a column that the data has not": ('doc_to_text: "{{nothing}}"', "'nothing' is undefined"),
    "a template that is none": ('doc_to_text: "{{question"', "unexpected end of template"),
    "no YAML": ("task: [x", "while parsing a flow sequence"),
    "a function that is not there": ("doc_to_text: !function asked.nothing", "'nothing'"),
    "a module that is not there": ("doc_to_text: !function nothing.asked", "'nothing'"),
    "data that is none": ("dataset_kwargs: {data_files: {test: half.jsonl}}", "JSON"),
}


@harness
@pytest.mark.parametrize(("written", "reason"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_a_task_of_ones_own_is_one_sentence(written, reason, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "asked.py").write_text("")
    (tmp_path / "half.jsonl").write_text('{"question": "What')
    whole = Path(task).read_text()
    (tmp_path / "mine.yaml").write_text(f"{_without(whole, written)}\n{written}\n")
    sentence = call(main, ".", "--tasks", "mine.yaml", cwd=tmp_path).err.strip().splitlines()[-1]
    assert sentence.startswith("--tasks mine.yaml cannot be read (")
    assert reason in sentence


def _without(text, written):
    """A YAML text without the line of the key that is written anew."""
    return "\n".join(line for line in text.splitlines() if line.split(":")[0] != written.split(":")[0])


@harness
@pytest.mark.parametrize("raised", ["RuntimeError('mine')", "KeyError('mine')", "FileNotFoundError('mine')"])
def test_an_error_in_a_function_of_the_task_keeps_its_traceback(raised, task, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "asked.py").write_text(f"def question(doc):\n    raise {raised}\n")
    written = "doc_to_text: !function asked.question"
    (tmp_path / "mine.yaml").write_text(f"{_without(Path(task).read_text(), written)}\n{written}\n")
    with pytest.raises(Exception, match="mine") as caught:
        call(main, ".", "--tasks", "mine.yaml", cwd=tmp_path)
    assert not isinstance(caught.value, UsageError)
    assert str(caught.traceback[-1].path) == str(tmp_path / "asked.py")


@harness
def test_an_error_of_the_harness_on_a_task_of_its_own_keeps_its_traceback(monkeypatch):
    from lm_eval.tasks import TaskManager

    def broken(self, tasks):
        raise ValueError("a bug")

    monkeypatch.setattr(TaskManager, "load", broken)
    with pytest.raises(ValueError, match=r"^a bug$"):
        module.tasks_of(["gsm8k"])


@harness
def test_a_task_that_is_none_or_cannot_be_read_is_named(tmp_path):
    assert "--tasks gsm9k is no task of lm-eval" in call(main, ".", "--tasks", "gsm9k", cwd=tmp_path).sentence
    (tmp_path / "bad.yaml").write_text(
        "task: bad\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\n"
    )
    sentence = call(main, ".", "--tasks", "bad.yaml", cwd=tmp_path).err.strip().splitlines()[-1]
    assert sentence.startswith("--tasks bad.yaml cannot be read (")
    sentence = call(main, ".", "--tasks", "gsm8k", cwd=tmp_path).err.strip().splitlines()[-1]
    assert sentence.startswith("--tasks gsm8k cannot be read (Couldn't reach 'openai/gsm8k' on the Hub")


@harness
def test_no_run_is_refused(task, tmp_path):
    said = call(main, "nowhere", "--tasks", task, cwd=tmp_path)
    assert said.code == 1
    assert said.err.strip().splitlines()[-1].startswith("nowhere is no run directory")
