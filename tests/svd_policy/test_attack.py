"""When an attack on principal directions is seen, and how often one is seen where there is none."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from constructed import K, asked, policy, row

from lab.ledger import row_of
from lab.spectral.tracker import Tracker

SHAPE = (32, 24)
LIMITS = {"attack_z": 6.0, "attack_lift": 2.0, "calm_z": 3.0}


def ticks(number, attack_from=None, seed=0):
    """Rows of a standing weight with unrelated gradients, and from a tick on with one along its first directions."""
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(SHAPE, generator=generator)
    U, _, Vh = torch.linalg.svd(W)
    tracker = Tracker(k=K, oversample=4, engine="exact", exact_every_n_ticks=1, seed=0)
    for tick in range(number):
        G = torch.randn(SHAPE, generator=generator)
        if attack_from is not None and tick >= attack_from:
            G += 60 * torch.outer(U[:, 0], Vh[0])  # more than twice ‖G‖ = 28
        seen = tracker.tick(tick, {"a": W}, {"a": G})["a"]
        yield row_of(seen, step=20 * tick, layer="a", mode="full", rank=None, loss=3.0, lr_factor=1.0)


@cache
def thousand_ticks():
    """Without an attack; made once."""
    return list(ticks(1000, seed=3))


@pytest.mark.parametrize("name", ["guard", "auto"])
@pytest.mark.parametrize("side", ["core", "left", "right", "bilateral"])
def test_a_planted_attack_is_guarded_within_two_ticks_and_compresses_nothing(name, side):
    chosen = policy(name, watch="gradient", side=side, **LIMITS)
    state, actions = {}, []
    for here in ticks(12, attack_from=10):
        decision, state = asked(chosen, here, state, jump=1.0)  # which keeps auto from compressing before
        actions.append(decision.action)
    assert actions == [*["none"] * 11, "guard"]


def test_a_weight_under_attack_is_never_tried():
    chosen = policy("auto", **LIMITS)
    state = {"losses": [3.0, 3.001], "held": 5}
    assert chosen.trial_rank(row(60), state) is not None
    assert chosen.trial_rank(row(60, core=0.9), state) is None
    decision, after = asked(chosen, row(60, core=0.9), state)
    assert (decision.action, decision.reason, after["held"]) == ("none", "under_attack", 0)


@pytest.mark.parametrize("cooldown", [0, 1, 2, 5])
def test_after_a_release_a_layer_is_left_alone_for_the_ticks_of_its_cool_down(cooldown):
    """Attacked at every tick, with a patience of one: the ticks without a guard are those of the cool-down."""
    chosen = policy("guard", calm_patience=1, cooldown_ticks=cooldown, **{**LIMITS, "attack_patience": 1})
    _, state = chosen.decide(row(0, core=0.9), {})
    decision, state = chosen.decide(row(20, core=None, mode="guard"), state)
    assert decision.action == "release"
    reasons = []
    for i in range(cooldown + 1):
        decision, state = chosen.decide(row(40 + 20 * i, core=0.9), state)
        reasons.append(decision.reason)
    assert reasons == [*["cooldown"] * cooldown, "attack"]


def test_a_guard_is_released_after_a_calm_that_lasts_and_not_while_it_is_guarded_again():
    chosen = policy("guard", calm_patience=3, cooldown_ticks=2, **LIMITS)
    state, actions = {}, []
    cores = [0.9, 0.9, 0.9, None, None, 0.9, None, None, None]
    mode = "full"
    for i, core in enumerate(cores):
        decision, state = chosen.decide(row(20 * i, core=core, mode=mode), state)
        mode = decision.mode
        actions.append(decision.action)
    assert actions == ["none", "guard", *["none"] * 6, "release"]
    for i in range(2):
        decision, state = chosen.decide(row(200 + 20 * i, core=0.9), state)
        assert decision.action == "none", "in the cool-down"
    stays = policy("guard", calm_patience=None)
    state = {}
    for i in range(30):
        decision, state = stays.decide(row(20 * i, mode="guard"), state)
        assert decision.action == "none"


def test_a_thousand_ticks_without_an_attack_raise_no_alarm_at_six_deviations_and_twice_chance():
    chosen = policy("guard", watch="gradient", **LIMITS)
    state, alarms = {}, 0
    for here in thousand_ticks():
        decision, state = chosen.decide(here, state)
        alarms += decision.action == "guard"
    assert alarms == 0


@pytest.mark.parametrize("false_alarm", [0.05, 0.01])
@pytest.mark.parametrize("side", ["core", "left", "bilateral"])
def test_limits_from_the_null_raise_no_more_alarms_than_they_state(side, false_alarm):
    base = policy("guard", watch="gradient", side=side, attack_patience=1, calm_z=-9.0)
    alarms = 0
    for here in thousand_ticks():
        clauses = replace(base, **base.null_limits(here, false_alarm)).guard_clauses(here)
        alarms += clauses[0].holds and clauses[1].holds
    assert alarms <= 1000 * false_alarm + 3.5 * math.sqrt(1000 * false_alarm)  # binomial
