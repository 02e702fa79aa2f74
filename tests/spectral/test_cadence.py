"""Which layers are due, and whose they are."""

import pytest

from lab.spectral.cadence import analysis_flops, cohorts, due, owners

COSTS = {f"layer{i}": float(cost) for i, cost in enumerate([4, 1, 1, 1, 4, 1, 1, 1])}


def test_without_a_budget_every_layer_is_due_at_every_tick():
    groups = cohorts(COSTS, None)
    assert due(groups, 0) == due(groups, 7) == list(COSTS)


@pytest.mark.parametrize("allowance", [4.0, 5.0, 7.0, 13.0])
def test_a_budget_is_kept_and_every_layer_has_its_turn(allowance):
    groups = cohorts(COSTS, allowance)
    assert all(sum(COSTS[name] for name in group) <= allowance for group in groups)
    assert sorted(name for tick in range(len(groups)) for name in due(groups, tick)) == sorted(COSTS)


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
    assert analysis_flops((1280, 1280), 10, 8, "exact") > 40 * analysis_flops((1280, 1280), 10, 8, "warm")
