"""Limits that come from chance, from a layer's own warm-up, or from an observed run."""

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from constructed import K, asked, policy, row
from scipy import stats

from lab.errors import UsageError
from lab.ledger import Trial
from lab.replay.target import strictest
from lab.spectral.chance import chance
from lab.svd_policy.decisions import decide_all
from lab.testing import check_policy

EVERY = 20
WARMUP = {"warmup_steps": 200, "every_n_steps": EVERY}
KINDS = ("guard", "compress", "delta", "auto")


@pytest.mark.parametrize("thresholds", [None, "quantile"])
@pytest.mark.parametrize("kind", KINDS)
def test_policies_whose_limits_move_pass_the_labs_own_checks(kind, thresholds):
    check_policy(policy(kind, thresholds=thresholds, **WARMUP))


def drawn(number, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.0, number).astype(np.float32)


def after_warm_up(chosen, overlaps, **fields):
    """The state of a layer that had these overlaps at the ticks of its warm-up, which went through JSON at each."""
    state = {}
    for i, overlap in enumerate(overlaps):
        decision, state = asked(chosen, row(EVERY * i, overlap=overlap, **fields), json.loads(json.dumps(state)))
        assert (decision.action, decision.reason) == ("none", "warmup")
    return state


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 1.0])
def test_a_quantile_is_a_limit_at_which_so_many_ticks_of_the_layers_own_warm_up_would_have_held(share):
    chosen = policy("compress", thresholds="quantile", quantile=share, **WARMUP)
    for seed in range(3):
        overlaps = drawn(10, seed)
        decision, state = asked(chosen, row(200), after_warm_up(chosen, overlaps))
        limit = next(item.limit for item in decision.clauses if item.name == "overlap")
        assert (overlaps >= limit).sum() == math.ceil(share * 10)
        later, _ = asked(chosen, row(220, overlap=0.1), state)
        assert next(item.limit for item in later.clauses if item.name == "overlap") == limit, "it stands"
        assert chosen.trial_rank(row(260, overlap=limit + 1e-3), {**state, "held": 9}) is not None
        assert chosen.trial_rank(row(260, overlap=limit - 1e-3), {**state, "held": 9}) is None


def test_layers_keep_limits_of_their_own_and_one_without_numbers_waits_for_them():
    chosen = policy("compress", thresholds="quantile", **WARMUP)
    still, turning = (after_warm_up(chosen, low + 0.1 * drawn(10)) for low in (0.85, 0.2))
    one, other = (asked(chosen, row(200), state)[0].clauses[1].limit for state in (still, turning))
    assert one > other + 0.5
    late = after_warm_up(chosen, drawn(4))
    for step in (200, 220):  # its fifth value comes with the first of these
        decision, late = asked(chosen, row(step, overlap=0.7), late)
        assert decision.reason == ("warmup" if step == 200 else "patience" if decision.clauses[1].holds else "turning")


@pytest.mark.parametrize("kind", ["guard", "auto"])
def test_an_attack_learned_in_the_warm_up_is_no_less_than_chance_and_calm_keeps_its_share(kind):
    chosen = policy(kind, thresholds="quantile", attack_z=300.0, calm_z=100.0, **WARMUP)
    level = chance("core", K, row(0).shape)
    for core, floor in ((0.0, True), (20 * level, False)):
        state = after_warm_up(chosen, [1.0] * 10, core=core)
        decision, _ = asked(chosen, row(200, core=core), state)
        limits = {item.name: item.limit for item in decision.clauses}
        assert limits["calm_z"] == pytest.approx(limits["attack_z"] / 3)
        assert (limits["attack_lift"] == 1.0) == floor == (limits["attack_z"] == 1.0)
        assert floor or limits["attack_lift"] == pytest.approx(20, rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_an_alarm_learned_in_the_warm_up_would_have_been_raised_no_more_often(share):
    chosen = policy("guard", thresholds="quantile", quantile=share, **WARMUP)
    level = chance("core", K, row(0).shape)
    for lifts in (20 * drawn(10), np.full(10, 15.0), np.repeat([9.0, 8.0], 5)):
        state = {}
        for i, lift in enumerate(lifts):
            decision, state = chosen.decide(row(EVERY * i, core=lift * level), state)
        decision, _ = chosen.decide(row(200), state)
        limit = next(item.limit for item in decision.clauses if item.name == "attack_lift")
        values = np.array([float(np.float32(lift * level)) / level for lift in lifts])
        assert (values >= limit).sum() <= share * 10
        assert len(set(lifts)) < 10 or (values >= limit).sum() == math.floor(share * 10)


def test_what_is_learned_can_be_said_of_no_spectrum_before():
    names = {item.name for item in policy("auto", thresholds="quantile", **WARMUP).reach(row(0))}
    assert {"attack_z", "attack_lift", "calm_z", "overlap"} & names == set()
    assert {"trial_jump", "outside_low", "loss_z"} <= names


@pytest.mark.parametrize("false_alarm", [0.05, 0.01])
def test_under_null_a_loss_that_has_not_risen_fails_a_probation_no_more_often_than_stated(false_alarm):
    """Ticks of independent normal losses; the limit is Student's, since the deviation is of `window` ticks."""
    chosen = policy("compress", thresholds=None, false_alarm=false_alarm, window=3, loss_rise=-9.0)
    generator, looks, back = np.random.default_rng(1), 3000, 0
    for losses in generator.normal(3.0, 0.02, (looks, 6)):
        before = losses[:3]
        watched = {"before": float(before.mean()), "deviation": float(before.std(ddof=1)), "losses": [], "since": 0}
        state = {"went_low": 1, "probation": watched}
        for i, loss in enumerate(losses[3:]):
            decision, state = chosen.decide(row(EVERY * i, mode="low_rank", rank=8, loss=loss), state)
        assert decision.clauses[1].limit == pytest.approx(stats.t.isf(false_alarm, 2), rel=1e-9)
        back += decision.action == "rollback"
    assert abs(back - looks * false_alarm) <= 4 * math.sqrt(looks * false_alarm), "binomial, 4 standard deviations"


def test_under_null_an_attack_is_what_chance_alone_crosses_so_often():
    """Of a gradient of rank one the energy on k left directions is Beta(k/2, (m − k)/2)."""
    chosen = policy("guard", thresholds=None, false_alarm=0.01, side="left", watch="gradient")
    base = row(40)
    rank_one = dataclasses.replace(base.momentum, concentration=1.0)
    decision, _ = chosen.decide(dataclasses.replace(base, gradient=rank_one), {})
    m = base.shape[0]
    limits = {item.name: item.limit for item in decision.clauses}
    assert limits["attack_lift"] == pytest.approx(stats.beta.isf(0.01, K / 2, (m - K) / 2) / (K / m), rel=1e-9)


def observed(jumps, outside=0.0, others=1.0):
    """Rows of a layer that was tried at every tick; `jumps` are what the trials cost."""
    return [row(EVERY * i, trial=Trial(8, 3.0, 3.0 + jump, outside), overlap=others) for i, jump in enumerate(jumps)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 1.0])
def test_a_target_is_the_limit_that_so_many_layers_meet_and_no_stricter_one(share):
    """Each layer by its own cheapest trial, so that the limit is an order statistic of these."""
    chosen = policy("compress", ranks=[8], patience=1, window=2, cooldown_ticks=0, target_share=share)
    generator = np.random.default_rng(0)
    costs = generator.uniform(0.001, 0.1, (8, 12))
    layers = [[dataclasses.replace(at, layer=str(i)) for at in observed(each)] for i, each in enumerate(costs)]
    cheapest = np.sort([min(at.trial.jump for at in rows[1:]) for rows in layers])  # a window of two ticks comes first
    limit = strictest(layers, chosen, -9)
    assert limit == cheapest[math.ceil(share * 8) - 1]


def test_a_target_of_a_guard_asks_for_an_attack_that_lasts():
    chosen = policy("guard", attack_patience=2, attack_z=1.0, calm_z=0.5, target_share=1.0)
    level = chance("core", K, row(0).shape)
    lifts = [9.0, 2.0, 5.0, 7.0, 1.0, 8.0]
    rows = [row(EVERY * i, core=lift * level) for i, lift in enumerate(lifts)]
    found = strictest([rows], chosen, 1e9)
    assert found == pytest.approx(max(min(pair) for pair in pairwise(lifts)), rel=1e-5)
    assert any(made["reason"] == "attack" for made in decide_all(rows, dataclasses.replace(chosen, attack_lift=found)))


def test_of_a_delta_the_target_is_what_lies_outside():
    chosen = policy("delta", ranks=[8], patience=1, window=2, cooldown_ticks=0, target_share=1.0)
    level = 1 - chance("right", 8, row(0).shape)
    assert strictest([observed([0.0] * 4, outside=0.3)], chosen, -9) == pytest.approx(0.3 / level)


def test_a_share_that_no_limit_reaches_is_refused_with_what_is_there():
    chosen = policy("compress", ranks=[8], patience=1, window=2, target_share=1.0)
    layers = [observed([0.01] * 4), [dataclasses.replace(at, layer="b") for at in observed([0.01] * 4, others=0.1)]]
    with pytest.raises(UsageError, match="asks for 2 of 2 layers, and at no trial_jump would more than 1 have acted"):
        strictest(layers, chosen, -9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"thresholds": "chance"}, "thresholds='chance' is none of fixed, null, quantile, target"),
        (
            {"thresholds": "quantile", "warmup_steps": 60},
            "warmup_steps=60 with every_n_steps=20 holds 3 ticks; make it",
        ),
        ({"thresholds": "quantile", "quantile": 0.0, **WARMUP}, "quantile=0.0 must be above 0, and at most 1"),
        ({"thresholds": None, "false_alarm": 0.9}, "false_alarm=0.9 must be above 0, and at most 0.5"),
        ({"thresholds": "target"}, "observed_path names none"),
        ({"thresholds": "target", "observed_path": "RUN", "target_share": 1.5}, "target_share=1.5 must be above 0"),
    ],
)
def test_settings_of_limits_that_make_no_sense_are_refused_in_a_sentence(change, said):
    for kind in KINDS:
        with pytest.raises(UsageError, match=said):
            policy(kind, **change)


def test_calm_that_has_no_share_of_an_attack_is_refused():
    with pytest.raises(UsageError, match=r"attack_z=-1.0 is not above 0, and calm_z keeps its share of it"):
        policy("guard", thresholds=None, attack_z=-1.0, calm_z=-2.0)
