"""Fixed shapes against seed 004's literal tables, and what `custom` and `shuffled` refuse."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lab import config
from lab.config import instantiate
from lab.errors import UsageError
from lab.layer import Target, find_targets
from lab.rank_strategy.custom import Custom
from lab.rank_strategy.depth import Linear, Thirds
from lab.rank_strategy.role import ByRole
from lab.rank_strategy.shuffled import Shuffled

PARAMS = {"budget": "params", "min_rank": 1, "max_rank": None}


@pytest.fixture(scope="module")
def dialogpt():
    """DialoGPT-medium's 24 blocks of c_attn, c_proj, c_fc, c_proj at a 32nd of its width: the seed's targets."""
    net = GPT2LMHeadModel(GPT2Config(n_layer=24, n_embd=32, n_head=2, vocab_size=64, n_positions=8))
    return find_targets(net, ["c_attn", "c_proj", "c_fc"])


def allocate(strategy, targets, rank=16, seed=0):
    return strategy.allocate(targets, rank, {}, {}, torch.Generator().manual_seed(seed))


def by_depth(plan, targets):
    """One rank per block, checked to be the same for the block's four layers."""
    rows = {}
    for target in targets:
        rows.setdefault(target.depth, set()).add(plan[target.name])
    assert all(len(ranks) == 1 for ranks in rows.values())
    return [rows[depth].pop() for depth in sorted(rows)]


def literal(name):
    """A shipped strategy as a user asks for its own numbers: rank_strategy=NAME rank_strategy.budget=none."""
    return instantiate.make(config.compose(f"rank_strategy={name}", "rank_strategy.budget=none").rank_strategy)


def test_linear_decay_is_the_seeds_table(dialogpt):
    strategy = literal("linear_decay")
    table = "16,15,14,14,13,13,12,12,11,11,10,10,9,9,8,8,7,7,6,6,5,5,4,4"
    assert by_depth(allocate(strategy, dialogpt), dialogpt) == [int(rank) for rank in table.split(",")]


def test_linear_growth_is_linear_decay_backwards(dialogpt):
    decay = by_depth(allocate(literal("linear_decay"), dialogpt), dialogpt)
    growth = by_depth(allocate(literal("linear_growth"), dialogpt), dialogpt)
    assert growth == decay[::-1]


def test_empirical_is_the_seeds_table(dialogpt):
    strategy = literal("empirical")
    assert by_depth(allocate(strategy, dialogpt), dialogpt) == [9] * 7 + [19] * 10 + [16] * 7


def test_attention_heavy_counts_the_feed_forward_projection_as_feed_forward(dialogpt):
    plan = allocate(literal("attention_heavy"), dialogpt)
    assert len(plan) == 96
    for name, rank in plan.items():
        assert rank == (16 if ".attn." in name else 8), name


def test_a_matched_budget_keeps_the_shape(dialogpt):
    plan = allocate(Linear(first=1.0, last=0.25, **PARAMS), dialogpt)
    ranks = by_depth_means(plan, dialogpt)
    asked, spent = (
        sum(t.cost * r for t in dialogpt for r in [rank_of(t)]) for rank_of in (lambda t: 16, lambda t: plan[t.name])
    )
    assert 0 <= asked - spent < max(target.cost for target in dialogpt)
    assert ranks == sorted(ranks, reverse=True)
    # mean weight is 10 of 16, so the first block gets 25.6 and the last 6.4, each within the rounding of one rank
    assert ranks[0] == pytest.approx(25.6, abs=1)
    assert ranks[-1] == pytest.approx(6.4, abs=1)


def by_depth_means(plan, targets):
    depths = sorted({target.depth for target in targets})
    return [sum(plan[t.name] for t in targets if t.depth == depth) / 4 for depth in depths]


def test_a_layer_outside_the_blocks_keeps_uniforms_share():
    shape = (64, 64)
    targets = [Target("proj_in", "other", -1, shape, False)] + [
        Target(f"layers.{i}.mlp.up", "mlp", i, shape, False) for i in range(3)
    ]
    none = {"budget": "none", "min_rank": 1, "max_rank": None}
    assert list(allocate(Linear(first=1.0, last=0.25, **none), targets, 8).values()) == [8, 8, 5, 2]
    hump = Thirds(early=0.5, middle=2.0, late=1.0, early_end=0.3, late_start=0.7, **none)
    assert list(allocate(hump, targets, 8).values()) == [8, 4, 16, 8]


def test_a_shape_without_effect_is_refused():
    shape = (64, 64)
    one_block = [Target("layers.0.mlp.up", "mlp", 0, shape, False), Target("layers.0.mlp.down", "mlp", 0, shape, False)]
    with pytest.raises(UsageError, match="at least 2 blocks"):
        allocate(Linear(first=1.0, last=0.25, **PARAMS), one_block)
    with pytest.raises(UsageError, match="every target is 'mlp'"):
        allocate(ByRole(attention=1.0, mlp=0.5, other=1.0, **PARAMS), one_block)


def custom(ranks, default=None, **bounds):
    return Custom(ranks=ranks, default=default, **({"budget": "none", "min_rank": 1, "max_rank": None} | bounds))


def test_custom_reads_names_endings_and_expressions(dialogpt):
    first = dialogpt[0].name
    plan = allocate(custom({r".*\.attn\..*": 5, "mlp.c_fc": 7, first: 9}, default=3), dialogpt)
    for target in dialogpt:
        expected = 5 if ".attn." in target.name else 7 if target.leaf == "c_fc" else 3
        assert plan[target.name] == (9 if target.name == first else expected), target.name


def test_custom_proportions_at_a_matched_budget():
    targets = [Target(f"layers.{i}.mlp.up", "mlp", i, (64, 64), False) for i in range(2)]
    plan = allocate(custom({"0.mlp.up": 3, "1.mlp.up": 1}, budget="params"), targets, 8)
    assert list(plan.values()) == [12, 4]


@pytest.mark.parametrize(
    ("ranks", "default", "sentence"),
    [
        ({"c_attn": 8, "c_porj": 4}, 1, "key 'c_porj' matches no target; did you mean c_proj"),
        ({"c_attn": 8, ".*": 4, "c_proj": 2}, None, "key 'c_proj' is always preceded by another key"),
        ({"c_attn": 8}, None, r"gives no rank to 72 of 96 layers, the first transformer\.h\.0\.attn\.c_proj"),
        ({}, None, "gives no rank to 96 of 96"),
        (None, None, "gives no rank to 96 of 96"),
        ({".*": 33}, None, "rank 33, which is not between 1 and its smaller side, 32"),
        ({".*": 0}, None, "rank 0, which is not between"),
        ({"(": 4}, None, "is no regular expression"),
    ],
)
def test_custom_refuses_what_would_not_happen(dialogpt, ranks, default, sentence):
    with pytest.raises(UsageError, match=sentence):
        allocate(custom(ranks, default), dialogpt)


def test_shuffled_permutes_only_among_layers_of_equal_cost(dialogpt):
    of = Linear(first=1.0, last=0.25, **PARAMS)
    plan, shuffled = allocate(of, dialogpt), allocate(Shuffled(of=of), dialogpt, seed=1)
    assert plan != shuffled
    for cost in {target.cost for target in dialogpt}:
        same = [target.name for target in dialogpt if target.cost == cost]
        assert sorted(plan[name] for name in same) == sorted(shuffled[name] for name in same)
    assert shuffled == allocate(Shuffled(of=of), dialogpt, seed=1)
    assert shuffled != allocate(Shuffled(of=of), dialogpt, seed=2)


def test_shuffling_every_permutation_is_possible():
    targets = [Target(f"layers.{i}.mlp.up", "mlp", i, (64, 64), False) for i in range(3)]
    of = Linear(first=1.0, last=0.25, **PARAMS)
    seen = {tuple(allocate(Shuffled(of=of), targets, 8, seed).values()) for seed in range(100)}
    assert len(seen) == 6  # 3! orders of three different ranks; missing one has probability (5/6)^100 ~ 1e-8


def test_shuffled_refuses_a_plan_that_no_permutation_changes():
    targets = [
        Target(f"layers.{i}.{role}", "attention" if role == "q" else "mlp", i, shape, False)
        for i in range(2)
        for role, shape in (("q", (64, 64)), ("up", (172, 64)))
    ]
    by_role = ByRole(attention=1.0, mlp=0.5, other=1.0, budget="none", min_rank=1, max_rank=None)
    with pytest.raises(UsageError, match="cannot permute ByRole"):
        allocate(Shuffled(of=by_role), targets)
