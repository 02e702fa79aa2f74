"""TensorBoard shows every step once, however often a run was killed and went on."""

import time

import pytest
from jobs import run
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from lab.training.callbacks import StopOnRequest

KINDS = {
    "lora": ("init=svd", "evaluate.num_samples=1", "schedule.eval_every_n_steps=2", "schedule.save_every_n_steps=2"),
    "adalora": ("rank_strategy=adalora", "evaluate.num_samples=0"),
    "observed": ("method=full", "svd_policy=observe", "svd_policy.every_n_steps=2", "svd_policy.k=4"),
}


class Killed(BaseException):
    """Stands for the end of a process."""


def shown(folder):
    """Tag -> the steps that TensorBoard shows of it, by its own reader."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"]) - {"custom_scalars__config__"}  # how to lay out; a start repeats it
    return {tag: [event.step for event in events.Tensors(tag)] for tag in tags}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_shown_once(kind, tmp_path, monkeypatch):
    given = ("logger=tensorboard", "schedule.save_every_n_steps=2", *KINDS[kind])
    run(tmp_path / "whole", *given)
    for last in (3, 5):
        with monkeypatch.context() as patch:

            def die(self, trainer, module, batch, last=last):
                if module.run.progress.step == last:
                    for logger in trainer.loggers:
                        logger.experiment.flush()
                    raise Killed

            patch.setattr(StopOnRequest, "after_step", die)
            with pytest.raises(Killed):
                run(tmp_path / "cut", *given)
        time.sleep(1.1)  # event files are read in the order of the seconds in their names
    run(tmp_path / "cut", *given)
    whole, cut = shown(tmp_path / "whole"), shown(tmp_path / "cut")
    assert whole["train/loss"] == list(range(1, 9))
    assert {tag: steps for tag, steps in cut.items() if whole.get(tag) != steps} == {}
    assert whole.keys() == cut.keys()
