"""planted_lr: two arms that are the same training in other units, so that only the tuning can tell them apart."""

from functools import cache

import pytest
import torch
from jobs import losses, run
from omegaconf import OmegaConf

from lab.adapter.layer import adapted_layers
from lab.config import CONF
from lab.export import load_model

ARMS = OmegaConf.to_container(
    OmegaConf.select(OmegaConf.load(CONF / "experiment" / "planted_lr.yaml"), "hydra.sweeper.study.arms")
)
RATE = 1e-2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and the record of eight steps of an arm at a rate, with other settings after the arm's own."""

    @cache
    def of(arm: str, rate: float, *others: str):
        folder = tmp_path_factory.mktemp("run")
        own = ("experiment=planted_lr", *ARMS[arm], f"optim.lr={rate}", "data.retention=null", *others)
        return folder, run(folder, *own, "keep_checkpoints=true")

    return of


def changes(folder):
    """s B A of every layer."""
    net, _ = load_model(folder)
    return {name: layer.s * (layer.B @ layer.A).detach() for name, layer in adapted_layers(net).items()}


def step_losses(folder):
    """step, train loss and validation loss of every row, as written."""
    return [row[:3] for row in losses(folder)]


def test_at_rates_r_and_2r_the_two_arms_are_the_same_function_to_the_last_bit(trained):
    one, first = trained("units", RATE)
    other, second = trained("other_units", 2 * RATE)
    assert first.steps == second.steps >= 8
    assert step_losses(one) == step_losses(other)
    assert len(step_losses(one)) > first.steps
    for metric in ("val_loss", "test_loss"):
        assert first.metrics[metric] == second.metrics[metric]
    assert second.scalings == {name: scaling / 4 for name, scaling in first.scalings.items()}
    of_one, of_other = changes(one), changes(other)
    assert of_one.keys() == of_other.keys()
    assert all(torch.equal(of_one[name], of_other[name]) for name in of_one)
    assert all(change.any() for change in of_one.values())


def test_at_one_rate_the_two_arms_are_two_trainings(trained):
    assert trained("units", RATE)[1].metrics["val_loss"] != trained("other_units", RATE)[1].metrics["val_loss"]


@pytest.mark.parametrize("both", ["optim.eps=1e-8", "optim.max_grad_norm=1e-3"])
def test_one_eps_for_both_arms_or_clipping_breaks_the_identity(both, trained):
    assert step_losses(trained("units", RATE, both)[0]) != step_losses(trained("other_units", 2 * RATE, both)[0])
