"""Which layers are due, and whose they are."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.spectral.cadence import analysis_flops, cohorts, due, owners
from lab.spectral.tracker import Tracker

COSTS = {f"layer{i}": float(cost) for i, cost in enumerate([4, 1, 1, 1, 4, 1, 1, 1])}


def test_without_a_budget_every_layer_is_due_at_every_tick():
    groups = cohorts(COSTS, None)
    assert due(groups, 0) == due(groups, 7) == list(COSTS)


@pytest.mark.parametrize("allowance", [4.0, 5.0, 7.0, 13.0])
def test_a_budget_is_kept_and_every_layer_has_its_turn(allowance):
    groups = cohorts(COSTS, allowance)
    assert all(sum(COSTS[name] for name in group) <= allowance for group in groups)
    assert sorted(name for tick in range(len(groups)) for name in due(groups, tick)) == sorted(COSTS)


@pytest.mark.parametrize(("share", "ticks"), [(1.0, 1), (0.5, 2), (1 / 3, 3), (0.3, 4), (0.01, 8)])
def test_a_share_of_the_layers_is_due_and_every_layer_has_its_turn(share, ticks):
    groups = cohorts(COSTS, None, share)
    assert len(groups) == ticks
    assert sorted(name for tick in range(ticks) for name in due(groups, tick)) == sorted(COSTS)
    loads = [sum(COSTS[name] for name in group) for group in groups]
    assert max(loads) - min(loads) <= max(COSTS.values()), "turns cost alike, to a layer"


@pytest.mark.parametrize("allowance", [4.0, 7.0, 100.0])
def test_of_a_share_and_a_budget_the_smaller_counts(allowance):
    groups = cohorts(COSTS, allowance, 0.5)
    assert len(groups) >= 2
    assert all(sum(COSTS[name] for name in group) <= allowance for group in groups)


def test_a_layer_dearer_than_the_budget_is_measured_alone():
    groups = cohorts(COSTS, 3.0)
    assert ["layer0"] in groups
    assert ["layer4"] in groups
    assert sorted(name for group in groups for name in group) == sorted(COSTS)


def test_the_schedule_depends_on_costs_alone():
    assert cohorts(COSTS, 5.0) == cohorts(dict(COSTS), 5.0)


def test_work_is_spread_over_processes_within_the_largest_layer():
    found = owners(COSTS, 3)
    loads = [sum(COSTS[name] for name, rank in found.items() if rank == process) for process in range(3)]
    assert list(found) == list(COSTS)
    assert max(loads) - min(loads) <= 4


def test_a_warm_analysis_of_a_wide_layer_is_far_below_an_exact_one():
    exact, warm = (analysis_flops((1280, 1280), 10, 8, engine, 10**6) for engine in ("exact", "warm"))
    assert exact > 20 * warm


@pytest.mark.parametrize("shape", [(256, 256), (256, 1024), (2048, 512), (768, 768), (2304, 576)])
def test_the_flops_are_those_that_a_tick_makes(shape):
    """To a factor of two: how often a tick iterates is the weights' affair."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=draw) / max(shape) ** 0.5
    left, right = (torch.linalg.qr(torch.randn(side, 64, generator=draw)).Q for side in shape)
    weight = noise + 3 * (left * torch.arange(1, 65) ** -0.5) @ right.mT
    other = {"layer": torch.randn(shape, generator=draw)}
    tracker = Tracker(k=10, oversample=8, engine="warm", exact_every_n_ticks=3, seed=0)
    made = []
    for tick in range(6):
        weights = {"layer": weight + 0.02 * tick * noise}
        with FlopCounterMode(display=False) as counter:
            tracker.begin(tick, weights, other, {"layer": noise})
            tracker.finish(other, other)
        made.append(counter.get_total_flops())
    eigen = (2 * 4 / 3 + 9) * min(shape) ** 3 / 3  # at every third tick, and not counted
    expected = analysis_flops(shape, 10, 8, "warm", 3) - eigen
    assert 0.5 * expected < sum(made[3:]) / 3 < 2 * expected
