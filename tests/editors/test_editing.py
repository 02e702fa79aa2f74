"""Editors alone change structure: each edit is read back from the live model, saved, and counted."""

from dataclasses import replace

import pytest
import torch
from jobs import run

from lab import record
from lab.adapter.layer import adapted_layers
from lab.adapter.read import form_of
from lab.editors import Edit, start
from lab.errors import Mismatch
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

    monkeypatch.setattr(start, "of_strategy", begin)
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
