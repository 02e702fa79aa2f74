"""The budget: spent to within one module, never more, bounds kept, ties settled the same way every time."""

import random

import pytest

from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy.budget import Budgeted


def layers(*shapes, depth=None):
    return [
        Target(f"m.layers.{i}.mlp.up_proj", "mlp", i if depth is None else depth, shape, False)
        for i, shape in enumerate(shapes)
    ]


def budget(kind="params", low=1, high=None):
    return Budgeted(budget=kind, min_rank=low, max_rank=high)


def cost(plan, targets):
    return sum(plan[target.name] * target.cost for target in targets)


def named(targets, values):
    return {target.name: value for target, value in zip(targets, values, strict=True)}


@pytest.fixture(params=range(60))
def instance(request):
    """Random shapes with unequal costs (grouped-query attention and worse), random weights, some of them zero."""
    draw = random.Random(request.param)
    shapes = [(draw.choice([8, 16, 64, 172]), draw.choice([16, 64, 172])) for _ in range(draw.randint(1, 24))]
    targets = layers(*shapes)
    weights = named(targets, [draw.choice([0.0, draw.random(), draw.expovariate(1) ** 4]) for _ in shapes])
    if not any(weights.values()):
        weights[targets[0].name] = 1.0
    low = draw.randint(1, 3)
    high = draw.choice([None, draw.randint(6, 12)])
    return targets, weights, draw.randint(3, 6), low, high


def test_spend_uses_the_budget_to_within_one_module_and_never_exceeds_it(instance):
    targets, weights, rank, low, high = instance
    asked = rank * sum(target.cost for target in targets)
    plan = budget("params", low, high).spend(targets, rank, weights)
    assert 0 <= asked - cost(plan, targets) < max(target.cost for target in targets)
    for target in targets:
        assert low <= plan[target.name] <= min(high or target.max_rank, target.max_rank)


def test_take_uses_the_budget_to_within_one_module_and_never_exceeds_it(instance):
    targets, weights, rank, low, high = instance
    asked = rank * sum(target.cost for target in targets)
    values = {t.name: [weights[t.name] / (j + 1) for j in range(t.max_rank)] for t in targets}
    plan = budget("params", low, high).take(targets, rank, values)
    assert 0 <= asked - cost(plan, targets) < max(target.cost for target in targets)
    for target in targets:
        assert low <= plan[target.name] <= min(high or target.max_rank, target.max_rank)


def test_a_budget_in_ranks_is_met_exactly(instance):
    targets, weights, rank, low, high = instance
    for plan in (
        budget("ranks", low, high).spend(targets, rank, weights),
        budget("ranks", low, high).take(targets, rank, {t.name: [weights[t.name]] * t.max_rank for t in targets}),
    ):
        assert sum(plan.values()) == rank * len(targets)


def test_a_greater_weight_never_gets_less_rank_at_equal_shape(instance):
    targets, weights, rank, low, high = instance
    plan = budget("params", low, high).spend(targets, rank, weights)
    for a in targets:
        for b in targets:
            if a.shape == b.shape and weights[a.name] > weights[b.name]:
                assert plan[a.name] >= plan[b.name]


def test_equal_weights_give_uniform_also_where_costs_differ():
    targets = layers((64, 64), (16, 64), (172, 64), (64, 172))  # grouped-query: k_proj is a quarter of q_proj
    for weight in (1.0, 0.1, 1 / 3, 1e-30, 1e30):
        assert set(budget().spend(targets, 5, named(targets, [weight] * 4)).values()) == {5}


def test_min_equal_to_max_leaves_no_choice():
    targets = layers((64, 64), (16, 64), (172, 64))
    weights = named(targets, [5.0, 0.0, 1.0])
    for kind in ("params", "ranks", "none"):
        assert set(budget(kind, 6, 6).spend(targets, 6, weights).values()) == {6}


def test_a_hand_computed_split():
    # costs 20, 20, 20, rank 4: 240 to spend; weights 3:2:1 of 12 ranks are 6, 4, 2
    targets = layers((10, 10), (10, 10), (10, 10))
    assert list(budget().spend(targets, 4, named(targets, [3, 2, 1])).values()) == [6, 4, 2]
    # weights 1:1:1.1 of 12 are 3.87, 3.87, 4.26: the two largest remainders get the two ranks left
    assert list(budget().spend(targets, 4, named(targets, [1, 1, 1.1])).values()) == [4, 4, 4]
    # a cap of 5 on 6:4:2 frees one rank, shared 2:1, so 5, 4.67, 2.33
    assert list(budget(high=5).spend(targets, 4, named(targets, [3, 2, 1])).values()) == [5, 5, 2]


def test_a_hand_computed_greedy_choice():
    # costs 20 and 40; per parameter: a 9/20, 4/20, 1/20; b 20/40, 6/40. Of 120, 60 are the minimum
    targets = layers((10, 10), (10, 30))
    values = named(targets, [[9.0, 4.0, 1.0], [20.0, 6.0, 0.5]])
    assert list(budget().take(targets, 2, values).values()) == [2, 2]  # next best: a's 4 (20), then b's 6 (40): spent
    # in ranks b's 6 beats a's 4: 4 ranks, 2 of them the minimum
    assert list(budget("ranks").take(targets, 2, values).values()) == [2, 2]
    assert list(budget("ranks").take(targets, 2, named(targets, [[9, 1, 1], [20, 6, 5]])).values()) == [1, 3]


def test_a_layer_never_gets_more_components_than_it_has():
    targets = layers((10, 10), (10, 10))
    assert list(budget().take(targets, 4, named(targets, [[100.0, 90.0], [1.0] * 10])).values()) == [2, 6]
    with pytest.raises(UsageError, match="can spend 40 to 80"):
        budget().take(targets, 4, named(targets, [[100.0, 90.0], [1.0, 1.0]]))


def test_layers_without_weight_are_filled_only_when_all_others_are_full():
    targets = layers((4, 4), (10, 10))
    assert list(budget().spend(targets, 5, named(targets, [1.0, 0.0])).values()) == [4, 5]


def test_ties_go_to_the_earlier_layer():
    targets = layers((10, 10), (10, 10), (10, 10))
    assert list(budget(high=7).spend(targets, 4, named(targets, [2.0, 1.0, 1.0])).values()) == [6, 3, 3]
    assert list(budget(high=5).spend(targets, 4, named(targets, [2.0, 1.0, 1.0])).values()) == [5, 4, 3]


@pytest.mark.parametrize(("low", "high", "rank"), [(4, 8, 3), (1, 8, 9), (2, None, 11)])
def test_a_budget_no_allocation_meets_is_refused_with_the_numbers(low, high, rank):
    targets = layers((10, 10), (10, 10))
    least, most = 40 * low, 40 * (high or 10)
    with pytest.raises(UsageError, match=f"costs {40 * rank} parameters.* {least} to {most};"):
        budget("params", low, high).spend(targets, rank, named(targets, [1.0, 2.0]))


def test_a_minimum_above_a_layers_smaller_side_is_refused_with_the_layers_name():
    with pytest.raises(UsageError, match=r"min_rank=4 exceeds the smaller side of m\.layers\.1\.mlp\.up_proj, 3"):
        budget(low=4).spend(layers((10, 10), (3, 10)), 4, {"m.layers.0.mlp.up_proj": 1, "m.layers.1.mlp.up_proj": 1})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_weights_that_mean_nothing_are_refused_with_the_layers_name(bad):
    targets = layers((10, 10), (10, 10))
    with pytest.raises(UsageError, match=r"m\.layers\.1\.mlp\.up_proj is"):
        budget().spend(targets, 4, named(targets, [1.0, bad]))
    with pytest.raises(UsageError, match="nothing to allocate by"):
        budget().spend(targets, 4, named(targets, [0.0, 0.0]))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"budget": "parameters"}, "budget='parameters' is not one of params, ranks, none"),
        ({"min_rank": 0}, "min_rank=0 must be at least 1"),
        ({"min_rank": 5, "max_rank": 4}, "max_rank=4 is below min_rank=5"),
    ],
)
def test_bounds_that_contradict_are_refused_when_built(fields, sentence):
    with pytest.raises(UsageError, match=sentence):
        Budgeted(**({"budget": "params", "min_rank": 1, "max_rank": None} | fields))
