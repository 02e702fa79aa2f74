"""A run does what it was asked, says so in its record, and two of one seed are one."""

import itertools
import json
import math

import pytest
import torch
from jobs import losses, run, shell
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lab import config, record
from lab.config import instantiate
from lab.errors import Mismatch, UsageError
from lab.export import export_run, load_model
from lab.launch import worker
from lab.training.evaluate import evaluate
from lab.training.loss import Scorer, token_loss
from lab.training.module import CausalLM


@pytest.fixture(scope="module")
def svd_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("svd")
    return folder, run(folder, "init=svd", "adapter.dropout=0.1")


def test_the_record_is_read_back_from_the_model(svd_run):
    _, result = svd_run
    assert result.status == "completed"
    assert result.init["modules_initialised"] == result.init["modules_targeted"] == 14
    assert set(result.ranks.values()) == {4}
    assert set(result.scalings.values()) == {8.0}
    assert result.trainable_params == result.budget["used"] == result.budget["asked"]
    assert result.steps == 8
    assert result.metrics["val_loss"] < result.metrics["base_val_loss"]
    assert math.isclose(result.metrics["val_perplexity"], math.exp(result.metrics["val_loss"]))
    assert result.data["train_examples"] == 28
    assert result.environment["torch"] == torch.__version__


def test_with_a_separate_offset_step_0_is_the_base(svd_run):
    _, result = svd_run
    assert result.init["offset"] == "separate"
    assert result.init["step0_loss"] == result.init["base_loss"]
    assert result.init["delta_norm"] > 0


def test_result_json_is_strict(svd_run):
    folder, _ = svd_run
    text = (folder / "result.json").read_text()

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse)["schema"] == record.SCHEMA


def test_the_exported_adapter_gives_the_runs_logits_in_stock_peft(svd_run):
    folder, _ = svd_run
    settings = config.load(folder)
    live, tokenizer = load_model(folder)
    pristine = instantiate.make(settings.model).load(torch.float32, settings.seed)
    stock = PeftModel.from_pretrained(pristine, folder / "adapter").eval()
    ids = torch.tensor([tokenizer("Question: two dice are thrown. What is the chance of a seven?")["input_ids"]])
    with torch.no_grad():
        difference = (stock(input_ids=ids).logits - live(input_ids=ids).logits).abs().max()
    assert difference <= 1e-5  # float32, two orders of summation of one product


def test_a_merged_export_loads_in_stock_transformers(svd_run, tmp_path):
    folder, _ = svd_run
    export_run(folder, tmp_path / "merged", "merged", None)
    live, tokenizer = load_model(folder)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([tokenizer("Answer: 1/6")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, live(input_ids=ids).logits, atol=1e-5)


def test_two_runs_of_one_seed_are_bitwise_equal_and_of_two_seeds_are_not(svd_run, tmp_path):
    folder, _ = svd_run
    run(tmp_path / "again", "init=svd", "adapter.dropout=0.1")
    run(tmp_path / "other", "init=svd", "adapter.dropout=0.1", "seed=1", "data_seed=0")
    assert losses(tmp_path / "again") == losses(folder)
    assert losses(tmp_path / "other") != losses(folder)
    first, again = (load_file(path / "adapter/adapter_model.safetensors") for path in (folder, tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_splitting_the_batch_changes_nothing(tmp_path):
    whole = run(tmp_path / "whole", "hardware.micro_batch_size=8")
    parts = run(tmp_path / "parts", "hardware.micro_batch_size=2")
    assert whole.steps == parts.steps
    for one, other in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        for a, b in zip(one, other, strict=True):
            assert a == b or math.isclose(float(a), float(b), rel_tol=1e-4)  # float32, other orders of summation


def test_the_loss_is_transformers_own(tmp_path):
    net = instantiate.make(config.compose("model=micro").model).load(torch.float32, 0).eval()
    ids = torch.randint(2, 4000, (3, 20), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :7] = -100
    labels[1, 12:] = -100
    scorer = Scorer(net, torch.device("cpu"), autocast=False)
    count = int((labels[:, 1:] != -100).sum())
    ours = token_loss(net, scorer.gate, ids, labels) / count
    theirs = net(input_ids=ids, labels=labels).loss
    assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("overrides", [("method=full", "optim.lr=1e-3"), ("init=pissa",), ("init=gaussian",)])
def test_each_way_of_training_lowers_the_loss(overrides, tmp_path):
    result = run(tmp_path, *overrides)
    assert result.status == "completed"
    assert result.metrics["val_loss"] < result.metrics["base_val_loss"]


def test_full_training_exports_a_model_stock_transformers_loads(tmp_path):
    run(tmp_path, "method=full")
    live, tokenizer = load_model(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    ids = torch.tensor([tokenizer("def f(x):")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(stock(input_ids=ids).logits, live(input_ids=ids).logits)


def test_select_best_is_what_the_record_reports(tmp_path, monkeypatch):
    real = CausalLM.training_step

    def turning(self, batch, batch_idx):  # from the fifth step on it climbs, so that the last weights are not the best
        loss = real(self, batch, batch_idx)
        return loss if self.global_step < 4 else -loss

    monkeypatch.setattr(CausalLM, "training_step", turning)
    wild = ("optim.lr=0.3", "schedule.lr_scheduler=constant", "schedule.eval_every_n_steps=1")
    result = run(tmp_path, "select=best", *wild)
    assert result.metrics["val_loss"] == pytest.approx(result.metrics["best_val_loss"], rel=1e-6)
    rows = [float(row[2]) for row in losses(tmp_path)[1:] if row[2]]
    assert result.metrics["best_val_loss"] == min(rows)
    assert result.metrics["best_step"] < result.steps, "the last weights are the best, so nothing was tested"


def test_gradient_checkpointing_gives_the_same_losses(tmp_path):
    run(tmp_path / "plain")
    run(tmp_path / "checkpointed", "hardware.gradient_checkpointing=true")
    for one, other in zip(losses(tmp_path / "plain"), losses(tmp_path / "checkpointed"), strict=True):
        assert one[1] == other[1] or math.isclose(float(one[1]), float(other[1]), rel_tol=1e-5)


def test_a_scheme_that_skips_a_layer_aborts_the_run(tmp_path, monkeypatch):
    from lab.adapter import initialise as module

    real = module._write
    skipped = []

    def skipping(layer, found, began):
        if not skipped:
            skipped.append(layer)
            return module.LayerInit(found.offset, 1.0, 0.0, {}, module.sha256_of(found.A, found.B), None)
        return real(layer, found, began)

    monkeypatch.setattr(module, "_write", skipping)
    with pytest.raises(Mismatch):
        run(tmp_path, "init=svd")
    assert record.read(tmp_path).status == "failed"


def test_a_rank_too_large_names_the_layer_before_weights_load(tmp_path, monkeypatch):
    from lab.model.scratch import Scratch

    monkeypatch.setattr(Scratch, "load", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=r"rank=40 is larger than the smaller side of \S+\.k_proj"):
        run(tmp_path, "rank=40")


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(tmp_path, monkeypatch):
    real = CausalLM.training_step

    def poisoned(self, batch, batch_idx):
        if batch["step"] == 3:
            with torch.no_grad():
                self.net.get_base_model().model.layers[1].mlp.up_proj.base_layer.weight[0, 0] = float("nan")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "training_step", poisoned)
    result = run(tmp_path)
    assert result.status == "diverged"
    assert result.error["step"] == 4
    assert result.error["examples"]
    assert result.error["module"].startswith("base_model.model.model.layers.1.mlp.up_proj")
    assert result.metrics.get("val_loss") is None
    assert result.steps == 3
    assert result.seconds["total"] > result.seconds["train"] > 0
    assert (tmp_path / "checkpoints/last.ckpt").exists()


def test_gradients_that_are_finite_and_whose_squares_are_not_end_the_run_as_diverged(tmp_path, monkeypatch):
    real = CausalLM.configure_gradient_clipping

    def blown_up(self, *args, **rest):
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(1e20)
        real(self, *args, **rest)

    monkeypatch.setattr(CausalLM, "configure_gradient_clipping", blown_up)
    result = run(tmp_path)
    assert result.status == "diverged"
    assert "the gradient is not finite at step 1" in result.error["message"]
    assert result.error["module"] is None


def test_weights_that_the_last_step_breaks_end_the_run_as_diverged_too(tmp_path):
    """No training loss follows that step; the evaluation behind it tells, before anything is saved or measured."""
    result = run(tmp_path, "schedule.max_steps=1", "schedule.warmup_steps=0", "optim.lr=1e39")  # beyond float32
    assert result.status == "diverged"
    assert result.error["step"] == 1
    assert "the validation loss is not finite at step 1" in result.error["message"]
    assert "self_attn.q_proj.lora_" in result.error["module"]
    assert not (tmp_path / "checkpoints/last.ckpt").exists()
    assert not (tmp_path / "adapter").exists()


def test_evaluation_is_exact_whatever_the_batching(svd_run, monkeypatch):
    from lab.data.corpus import load_corpus
    from lab.training import evaluate as module

    folder, _ = svd_run
    live, tokenizer = load_model(folder)
    corpus = load_corpus(instantiate.make(config.load(folder).data), tokenizer)
    scorer = Scorer(live, torch.device("cpu"), autocast=False)
    together = evaluate(scorer, corpus.val.samples, corpus.pad_id)
    monkeypatch.setattr(module, "TOKENS_PER_BATCH", 1)
    monkeypatch.setattr(module.batches_of, "__defaults__", (1,))
    alone = evaluate(scorer, corpus.val.samples, corpus.pad_id)
    assert together.labels == alone.labels
    assert together.num_bytes == alone.num_bytes
    assert math.isclose(together.nats, alone.nats, rel_tol=1e-5)


@pytest.mark.slow
def test_the_command_line_runs_from_any_directory(tmp_path):
    done = shell("init=svd", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert record.read(tmp_path / "out").choices["init"] == "svd"
    assert done.stdout.splitlines()[0].startswith("torch ")


def test_peak_memory_is_of_the_job_or_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_jobs", itertools.count())  # as in a fresh process
    short = ("schedule.max_epochs=null", "schedule.max_steps=1", "evaluate.max_examples=1")
    first, second = run(tmp_path / "a", *short), run(tmp_path / "b", *short)
    assert first.peak_memory_bytes > 50e6  # torch alone is more
    assert second.peak_memory_bytes is None  # the process's peak may be the first job's


@pytest.mark.parametrize(("overrides", "said"), [(("rank=16", "alpha=4"), True), (("rank=16", "alpha=8"), False)])
def test_a_scaling_that_damps_what_is_learned_is_said_at_the_start(overrides, said, tmp_path, capsys):
    run(tmp_path, "schedule.max_steps=1", "evaluate.accuracy=false", *overrides)
    assert ("alpha / r is 0.25, which damps what is learned" in " ".join(capsys.readouterr().out.split())) == said


def test_without_a_test_a_run_trains_and_validates_the_same_and_measures_no_more(tmp_path):
    short = ("schedule.max_steps=2", "evaluate.num_samples=0", "data.retention=stdlib_docs", "evaluate.max_examples=4")
    whole = run(tmp_path / "whole", *short)
    brief = run(tmp_path / "brief", *short, "evaluate.test=false")
    assert losses(tmp_path / "brief") == losses(tmp_path / "whole")
    assert brief.metrics["val_loss"] == whole.metrics["val_loss"]
    spared = {name for name in whole.metrics if name not in brief.metrics}
    assert {"test_loss", "base_test_loss", "test_accuracy", "retention_loss", "forgetting"} <= spared
    assert all(
        name.startswith(("test_", "base_", "retention_", "forgetting", "learned_", "first_step_")) for name in spared
    )
    assert not (tmp_path / "brief/first_step.csv").exists()
    assert not (tmp_path / "brief/learned.csv").exists()
    assert (brief.status, brief.failed_measures) == ("completed", {})
    assert (tmp_path / "brief/adapter/adapter_model.safetensors").is_file()
