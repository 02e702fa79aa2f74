"""Around an optimizer step everybody acts once, in one order, whatever the micro-batches."""

import pytest
from jobs import run

from lab.editors.editing import Editing
from lab.instruments.first_step import FirstStepWatch
from lab.instruments.spectra import SpectralObserver
from lab.training.callbacks import Checkpoints, Monitor, StopOnRequest
from lab.training.module import CausalLM

ACTS = {
    (SpectralObserver, "before_step"): "observer gets ready",
    (FirstStepWatch, "before_step"): "watch gets ready",
    (CausalLM, "training_step"): "loss",
    (SpectralObserver, "gradients_ready"): "observer reads gradients",
    (FirstStepWatch, "gradients_ready"): "watch reads gradients",
    (CausalLM, "configure_gradient_clipping"): "clip",
    (SpectralObserver, "after_step"): "observer",
    (FirstStepWatch, "after_step"): "watch",
    (Editing, "after_step"): "editors",
    (Monitor, "after_step"): "monitor",
    (Checkpoints, "after_step"): "checkpoints",
    (StopOnRequest, "after_step"): "stop",
}


@pytest.mark.parametrize("micro", [8, 4, 2])
def test_a_step_is_told_in_one_order(micro, tmp_path, monkeypatch):
    told = []
    for (owner, name), said in ACTS.items():
        real = getattr(owner, name)

        def acting(*args, real=real, said=said, **rest):
            told.append(said)
            return real(*args, **rest)

        monkeypatch.setattr(owner, name, acting)
    observed = ("svd_policy=observe", "svd_policy.every_n_steps=1", "svd_policy.k=2")
    quiet = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=2")
    run(tmp_path, *observed, *quiet, f"hardware.micro_batch_size={micro}")
    losses = ["loss"] * (8 // micro)
    step = [said for said in ACTS.values() if said != "loss"]
    at = step.index("watch gets ready") + 1
    assert told == 2 * [*step[:at], *losses, *step[at:]]
