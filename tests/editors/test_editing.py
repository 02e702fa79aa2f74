"""Editors alone change structure: each edit is read back from the live model, saved, and counted."""

from dataclasses import replace

import pytest
import torch
from jobs import run

from lab import record
from lab.adapter.layer import adapted_layers
from lab.adapter.read import form_of
from lab.adapter.structured import Structured
from lab.editors import Edit, start
from lab.errors import Mismatch
from lab.structure import LayerForm
from lab.training import checkpoint

SHORT = ("schedule.max_steps=4", "schedule.save_every_n_steps=2", "evaluate.accuracy=false", "evaluate.num_samples=0")
UP = "model.layers.0.mlp.up_proj"


class Rescaler:
    """An editor for a test: after step 2 it gives every pair another scaling."""

    name = "rescaler"

    def __init__(self, model, does=True):
        self.layers, self.does, self.steps = adapted_layers(model.net), does, []

    def loss_term(self, scale):
        return None

    def after_step(self, step, optimizer):
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.steps.append(step)
        if step != 2:
            return []
        edits = [Edit(name, replace(form_of(layer), scaling=1.25)) for name, layer in self.layers.items()]
        for name, layer in self.layers.items():
            if self.does or name != UP:
                layer.scaling["default"] = 1.25
        return edits

    def state_dict(self):
        return {"steps": list(self.steps)}

    def load_state_dict(self, state):
        self.steps = list(state["steps"])

    def finish(self, result):
        result.scalings = {name: layer.s for name, layer in self.layers.items()}


def with_editor(monkeypatch, make):
    made = []

    def begin(strategy, model, *rest):
        made.append(make(model))
        return start.Started([made[-1]])

    monkeypatch.setattr(start, "start", begin)
    return made


def test_an_edit_is_applied_read_back_saved_and_recorded(tmp_path, monkeypatch):
    editors = with_editor(monkeypatch, Rescaler)
    result = run(tmp_path, *SHORT)
    assert editors[0].steps == [1, 2, 3, 4]
    assert set(result.scalings.values()) == {1.25}
    assert result.switches == 0, "the form is the same"
    saved = checkpoint.load(tmp_path / "checkpoints/last.ckpt")
    assert saved["structure"]["layers"][UP]["scaling"] == 1.25
    assert saved["editors"] == {"switches": 0, "states": {"rescaler": {"steps": [1, 2, 3, 4]}}}


def test_an_edit_that_the_live_model_does_not_show_ends_the_run(tmp_path, monkeypatch):
    with_editor(monkeypatch, lambda model: Rescaler(model, does=False))
    with pytest.raises(Mismatch, match=rf"{UP}: the scaling is 8.0, asked 1.25"):
        run(tmp_path, *SHORT)
    assert record.read(tmp_path).status == "failed"


def test_modules_that_take_another_form_are_counted_and_a_checkpoint_keeps_the_count(tmp_path, monkeypatch):
    class Switcher(Rescaler):
        def after_step(self, step, optimizer):
            return [Edit(UP, LayerForm("low_rank" if step % 2 else "delta", rank=4, scaling=8.0))]

    with_editor(monkeypatch, Switcher)
    # No layer can be switched yet: the live model is taken as it says, so that the count alone is looked at.
    monkeypatch.setattr(
        Structured,
        "change",
        lambda self, name, form: setattr(self, "structure", self.structure.changed(name, **vars(form))),
    )
    monkeypatch.setattr("lab.run.host.verify_export", lambda *args, **rest: None)
    assert run(tmp_path / "whole", *SHORT).switches == 4
    run(tmp_path / "short", *SHORT, "schedule.max_steps=2", "schedule.lr_scheduler=constant")
    saved = checkpoint.load(tmp_path / "short/checkpoints/last.ckpt")
    assert saved["editors"]["switches"] == 2
