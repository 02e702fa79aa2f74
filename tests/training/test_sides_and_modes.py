"""Losses are of the side they name, taken without dropout; masks change from step to step; gradients are clipped."""

import pytest
import torch
from jobs import SMALL, run
from killing import differing
from peft import PeftModel

from lab import config, record
from lab.adapter.layer import adapted_layers
from lab.config import instantiate
from lab.data.encode import encode
from lab.training.callbacks import Checkpoints, StopOnRequest
from lab.training.module import CausalLM

DROPOUT = ("adapter.dropout=0.5", "optim.lr=0.1", "schedule.max_steps=3", "evaluate.accuracy=false")


def test_each_loss_is_stock_pefts_on_the_side_of_its_name(tmp_path):
    """One by one, in eval mode, with transformers' own loss: nothing of ours but the text."""
    result = run(tmp_path, *DROPOUT)
    settings = config.compose(*SMALL, *DROPOUT)
    model, data = instantiate.make(settings.model), instantiate.make(settings.data)
    tokenizer, splits = model.tokenizer(), data.load()
    base = model.load(torch.float32, settings.seed)
    net = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    found = {}
    for side in ("train", "val", "test"):
        given = getattr(splits, side)
        samples = encode(given, tokenizer, template=data.template, max_length=data.max_length, side_name=side).samples
        nats = labels = 0
        for sample in samples:
            count = int((sample.labels != -100).sum())
            with torch.no_grad():
                loss = net(input_ids=sample.input_ids[None], labels=sample.labels[None]).loss
            nats, labels = nats + float(loss) * count, labels + count
        found[side] = nats / labels
    assert result.metrics["val_loss"] == pytest.approx(found["val"], rel=1e-5)  # float32 sums in another order
    assert result.metrics["test_loss"] == pytest.approx(found["test"], rel=1e-5)
    assert min(abs(found[a] - found[b]) for a, b in (("val", "test"), ("val", "train"))) > 1e-3, "sides look alike"


def test_dropout_draws_other_masks_at_every_step_and_micro_batch(tmp_path, monkeypatch):
    masks = []

    def watch(self, trainer, pl_module):
        layer = next(iter(adapted_layers(pl_module.net).values()))

        def note(module, args, output):
            if module.training:  # on inputs that are not 0, what is 0 was dropped
                masks.append((output[0, :4] == 0).flatten().tolist())

        layer.lora_dropout["default"].register_forward_hook(note)

    monkeypatch.setattr(Checkpoints, "on_train_start", watch, raising=False)
    run(tmp_path, *DROPOUT, "hardware.micro_batch_size=4")
    assert len(masks) == 6, "three steps of two micro-batches"
    assert all(0.3 < sum(mask) / len(mask) < 0.7 for mask in masks)
    assert len({tuple(mask) for mask in masks}) == 6


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_gradients_that_an_optimizer_sees_are_clipped(method, tmp_path, monkeypatch):
    seen = []
    real = torch.optim.AdamW.step

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.nn.utils.get_total_norm(grads)))
        real(self)
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(tmp_path, f"method={method}", "optim.max_grad_norm=0.01", "schedule.max_steps=2", "evaluate.accuracy=false")
    norms = [float(row["grad_norm"]) for row in rows(tmp_path) if row["grad_norm"]]
    assert len(seen) == len(norms) == 2
    assert min(norms) > 0.02, "nothing was to be clipped"
    assert seen == pytest.approx([0.01, 0.01], rel=1e-3)  # torch divides by norm + 1e-6


def rows(folder):
    import csv

    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_checkpoint_without_hashes_of_its_files_cuts_them_back_to_its_step(tmp_path, monkeypatch):
    """As checkpoints from before have none: the steps of the rows decide, and a tick stands at the checkpoint's."""

    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        if module.run.progress.step == 5:
            raise Killed

    observed = ("method=full", "svd_policy=phase1", "svd_policy.every_n_steps=2", "svd_policy.k=4")
    given = (*observed, "schedule.save_every_n_steps=4")
    run(tmp_path / "whole", *given)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_save_checkpoint", lambda *args: None)
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path / "cut", *given)
    assert run(tmp_path / "cut", *given).status == "completed"
    assert differing(tmp_path / "whole", tmp_path / "cut") == []
    assert record.read(tmp_path / "cut").files.keys() == record.read(tmp_path / "whole").files.keys()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_every_module_trains_in_training_mode_before_and_after_evaluations(method, tmp_path, monkeypatch):
    """A base comes in evaluation mode: its own dropout would draw nothing, its checkpointing would keep everything."""
    real, seen = CausalLM.training_step, []

    def step(self, *args):
        seen.append({module.training for module in self.net.modules()})
        return real(self, *args)

    monkeypatch.setattr(CausalLM, "training_step", step)
    run(tmp_path, f"method={method}", "schedule.max_epochs=1", "schedule.eval_every_n_steps=2")
    assert len(seen) == 4
    assert all(modes == {True} for modes in seen)
