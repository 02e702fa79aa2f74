"""What a run does is read back while it runs, and a model that is not as planned ends it."""

import pytest
import torch
from jobs import run

from lab import record
from lab.adapter import export as exporting
from lab.adapter.layer import LowRankLinear, adapted_layers
from lab.errors import Mismatch
from lab.layer import weight_of
from lab.run import setup
from lab.training import module as modules
from lab.training import optim
from lab.training.callbacks import StopOnRequest

SHORT = ("schedule.max_steps=2", "schedule.save_every_n_steps=1", "evaluate.accuracy=false", "evaluate.num_samples=0")


def refused(folder, sentence, *overrides):
    with pytest.raises(Mismatch, match=sentence):
        run(folder, *SHORT, *overrides)
    assert record.read(folder).status == "failed"


@pytest.mark.parametrize(
    ("overrides", "left_out"),
    [
        ((), "lora_A"),
        ((), "lora_B"),
        (("adapter.use_dora=true",), "magnitude"),
        (("rank_strategy=adalora",), "E"),
        (("method=full",), "norm"),
        (("method=full", "optim=nanochat"), "mlp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_parameter_that_trains_and_is_not_in_the_optimizer(overrides, left_out, tmp_path, monkeypatch):
    real = optim.make_optimizer

    def leaving_out(*args):
        net, made = args[0], real(*args)
        names = {id(p): name for name, p in net.named_parameters()}
        for group in made.param_groups:
            group["params"] = [p for p in group["params"] if left_out not in names[id(p)]]
        return made

    monkeypatch.setattr(modules, "make_optimizer", leaving_out)
    refused(tmp_path, "trains and is not in the optimizer", *overrides)


def test_a_parameter_that_the_optimizer_holds_twice(tmp_path, monkeypatch):
    real = optim.make_optimizer

    def twice(*args):
        made = real(*args)
        made.param_groups[0]["params"].append(made.param_groups[0]["params"][0])
        return made

    monkeypatch.setattr(modules, "make_optimizer", twice)
    refused(tmp_path, "the optimizer holds 29 parameters, and 28 train")


@torch.no_grad()
def spoil(net, name="model.layers.0.mlp.up_proj"):
    """Change one number of a frozen weight."""
    weight_of(adapted_layers(net)[name].get_base_layer())[0, 0] += 1e-3


@pytest.mark.parametrize("init", ["random", "pissa", "svd"])
def test_an_init_that_writes_to_the_base(init, tmp_path, monkeypatch):
    real = setup.initialise

    def writing(model, *args, **kwargs):
        filled = real(model, *args, **kwargs)
        spoil(model)
        return filled

    monkeypatch.setattr(setup, "initialise", writing)
    refused(tmp_path, r"mlp\.up_proj\.weight was of the frozen base, and changed \(1 of", f"init={init}")


def test_a_weight_outside_the_adapted_layers_counts_too(tmp_path, monkeypatch):
    real = setup.initialise

    def writing(model, *args, **kwargs):
        filled = real(model, *args, **kwargs)
        with torch.no_grad():
            model.get_base_model().model.norm.weight[0] += 1e-3
        return filled

    monkeypatch.setattr(setup, "initialise", writing)
    refused(tmp_path, r"model\.norm\.weight was of the frozen base")


@pytest.mark.parametrize("init", ["random", "loftq", "pissa init.offset=fold"])
def test_training_that_writes_to_the_base(init, tmp_path, monkeypatch):
    monkeypatch.setattr(StopOnRequest, "after_step", lambda self, trainer, module, batch: spoil(module.net))
    refused(tmp_path, "of the frozen base, and changed", *f"init={init}".split())
    assert not (tmp_path / "adapter").exists(), "nothing of it is exported"


def test_an_offset_that_does_not_cancel(tmp_path, monkeypatch):
    real = LowRankLinear.forward

    def without_offset(self, x, *args, **kwargs):
        kind, self.offset = self.offset, "none"
        try:
            return real(self, x, *args, **kwargs)
        finally:
            self.offset = kind

    monkeypatch.setattr(LowRankLinear, "forward", without_offset)
    refused(tmp_path, "the loss at step 0 is .* the adapters must not move it", "init=pissa")


@pytest.mark.parametrize(
    ("spoiled", "sentence"),
    [
        (lambda layer: layer.scaling.update(default=3.0), "the scaling is 3.0, asked 8.0"),
        (lambda layer: layer.A.data.add_(1e-4), "not what the checkpoint holds"),
        (lambda layer: layer.A.requires_grad_(False), "A.requires_grad is False, asked True"),
        (lambda layer: setattr(layer, "offset", "none"), "the offset is none, asked separate"),
        (lambda layer: layer.offset_A.requires_grad_(True), "offset_A.requires_grad is True, asked False"),
    ],
    ids=["scaling", "values", "frozen", "offset", "trainable offset"],
)
def test_a_model_that_a_checkpoint_was_not_written_from(spoiled, sentence, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(self, trainer, module, batch):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StopOnRequest, "after_step", die)
        with pytest.raises(Killed):
            run(tmp_path, *SHORT, "init=svd")
    real = setup.load_model_state

    def spoiling(model, state):
        real(model, state)
        spoiled(adapted_layers(model)["model.layers.0.mlp.up_proj"])

    monkeypatch.setattr(setup, "load_model_state", spoiling)
    refused(tmp_path, sentence, "init=svd")


def test_an_export_of_other_numbers(tmp_path, monkeypatch):
    real = exporting.save_file

    def other(tensors, path, **kwargs):
        name = next(name for name in tensors if "lora_B" in name)
        real({**tensors, name: tensors[name] + 1e-6}, path, **kwargs)

    monkeypatch.setattr(exporting, "save_file", other)
    refused(tmp_path, "holds another pair than the live model's")
