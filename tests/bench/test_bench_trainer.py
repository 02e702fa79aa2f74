"""The bench of whole fine-tunings: scripts do the lab's job, and are judged as the lab judges itself."""

import contextlib
import io
import json
import sys

import pytest
import torch
from in_process import call
from jobs import SMALL
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lab import record, train
from lab.bench import script, trainer
from lab.config import bases
from lab.errors import UsageError

GIVEN = [*SMALL, "schedule.max_steps=5", "schedule.max_epochs=null", "data.retention=stdlib_docs", "optim.lr=3e-3"]
GIVEN += ["evaluate.max_examples=8"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The rows of all contenders, each run in this process, and the folder in which they worked."""
    folder = tmp_path_factory.mktemp("whole")

    def here(what, line, environment):
        if line[2] == "lab.train":
            said = call(train.main, *line[3:], cwd=folder)
            assert said.code == 0, said.err
            return 1e3, said.out
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
            patch.setattr(sys, "argv", line[2:])
            script.main()
        return 1e3, out.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "timed", here)
        ground = trainer.ground_of(GIVEN)
        rows = [trainer.lab_row(GIVEN, folder)]
        trainer.prepare(ground, folder)
        rows.append(trainer.script_row("Trainer + peft", False, ground, folder, rows[0]["base"]))
    return ground, folder, rows


def mean_loss(net, samples):
    """Nats a labelled token in plain transformers, text by text."""
    nats = labels = 0
    for sample in samples:
        ids, wanted = sample.input_ids[None].long(), sample.labels[1:].long()
        with torch.no_grad():
            logits = net.eval()(ids).logits[0, :-1].float()
        nats += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
        labels += int((wanted != -100).sum())
    return nats / labels


def test_a_script_takes_the_labs_rows_steps_and_rate(measured):
    ground, folder, (lab, other) = measured
    given = json.loads((folder / "rows.json").read_text())
    assert [len(given[side]) for side in ("train", "val", "test")] == [28, 8, 8]
    assert given["train"][0]["input_ids"] == ground.corpus.train.samples[0].input_ids.tolist()
    assert (given["steps"], given["batch_size"], given["rank"], given["lr"]) == (5, 8, 4, 3e-3)
    assert lab["steps"] == other["steps"] == 5
    assert lab["learning_rate"] == other["learning_rate"] == 3e-3  # as the job says
    moved = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (moved["r"], moved["lora_alpha"]) == (4, 32)


def test_where_a_job_leaves_its_rate_open_the_scripts_take_plain_loras(monkeypatch):
    """Their pairs are plain LoRA's: at a rate of another start they would be judged at none of their own."""
    monkeypatch.setitem(bases.BASES, "lab:base", bases.Base(2e-3, "a table", inits={"svd": 5e-4}))
    given = ["model=tiny", "init=svd", "data.train_examples=28", "data.val_examples=28", "data.test_examples=28"]
    ground = trainer.ground_of(given)
    assert (ground.settings.optim.lr, ground.plain_rate) == (5e-4, 2e-3)
    ground = trainer.ground_of([*given, "init.magnitude=matched"])  # a key of its init, which plain LoRA's has not
    assert (ground.settings.optim.lr, ground.plain_rate) == (2e-3, 2e-3)
    ground = trainer.ground_of([*given, "optim.lr=7e-4"])
    assert (ground.settings.optim.lr, ground.plain_rate) == (7e-4, 7e-4)


def test_base_and_scripts_are_judged_by_the_losses_of_plain_transformers(measured):
    ground, folder, (lab, other) = measured
    corpus = ground.corpus
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    samples = {"val": corpus.val.samples, "test": corpus.test.samples, "retention": corpus.retention}
    # float32 sums over batches of other shapes: 1e-5 is a hundred roundings
    for side, each in samples.items():
        assert lab["base"][f"{side}_loss"] == pytest.approx(mean_loss(base, each), rel=1e-5)
    tuned = PeftModel.from_pretrained(base, folder / "adapter")
    for side, each in samples.items():
        assert other["after"][f"{side}_loss"] == pytest.approx(mean_loss(tuned, each), rel=1e-5)
    assert other["after"]["test_loss"] < other["base"]["test_loss"]


def test_the_labs_row_is_its_record(measured):
    _, folder, (lab, other) = measured
    done = record.read(folder / "lab")
    assert lab["after"]["test_loss"] == done.metrics["test_loss"]
    assert lab["after"]["test_accuracy"] == done.metrics["test_accuracy"]
    assert sum(lab["seconds"].values()) == pytest.approx(2 * lab["seconds"]["all"])
    assert sum(other["seconds"].values()) == pytest.approx(2 * other["seconds"]["all"])
    assert lab["tokens_per_second"] == done.tokens / done.seconds["train"]
    there = {"device": "a CPU", "rank": 4, "peak_bytes": 2e9}  # this process has had other jobs: it records none
    shown = trainer.table([{**row, **there} for row in (lab, other)])
    assert [str(column.header) for column in shown.columns] == ["", "the base", "this lab", "Trainer + peft"]
    assert "forgetting" in list(shown.columns[0].cells)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["method=full"], "method=full has no adapter; use method=lora"),
        (["model=tinyy"], "model=tinyy is no option; did you mean tiny?"),
        (["data=text", "data.path=x.txt"], "x.txt"),
    ],
)
def test_a_job_that_scripts_cannot_do_is_refused(overrides, sentence):
    with pytest.raises(UsageError, match=None) as caught:
        trainer.ground_of(overrides)
    assert sentence in str(caught.value)
