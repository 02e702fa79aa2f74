"""The state machine of compress, delta and auto, on rows made up for it and on planted matrices."""

import json
import math
from dataclasses import replace

import pytest
import torch
from constructed import K, asked, policy, row

from lab.errors import UsageError
from lab.ledger import Trial, row_of
from lab.spectral.chance import chance
from lab.spectral.diagnosis import NotHeld
from lab.spectral.tracker import Tracker
from lab.svd_policy.decisions import decide_all, decide_tick

EVERY, PATIENCE = 20, 3


def run(policy, rows, **trial):
    """(action, reason) at each row, and the last state."""
    state, made = {}, []
    for at in rows:
        decision, state = asked(policy, at, state, **trial)
        made.append((decision.action, decision.reason))
    return made, state


def lifted(lift, rank, shape=(40, 40)):
    return lift * (1 - chance("either", rank, shape))


@pytest.mark.parametrize("limit", [0.9, 0.97, 0.995])
def test_a_planted_drift_becomes_eligible_at_the_tick_of_its_closed_form(limit):
    """The k left directions turn by θᵢ = 0.6 · 0.8ⁱ into fresh ones at tick i, so that the overlap is cos² θᵢ."""
    m, n, ticks = 64, 48, 30
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q[:, :K]
    S = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    angles = [0.6 * 0.8**i for i in range(ticks)]
    chosen = policy("compress", overlap=limit, ranks=[0.5])
    tracker = Tracker(k=K, oversample=4, engine="exact", exact_every_n_ticks=1, seed=0)
    at, state, fired = 0.0, {}, None
    for tick in range(ticks):
        at += angles[tick]
        left = U[:, :K] * math.cos(at) + U[:, K : 2 * K] * math.sin(at)
        W = ((left * S) @ V.T).float() + 1e-4 * torch.randn(m, n, generator=generator)
        seen = tracker.tick(tick, {"a": W}, {"a": torch.randn(m, n, generator=generator)})["a"]
        loss = 3.0 + 1e-3 * (-1) ** tick
        here = row_of(seen, step=EVERY * tick, layer="a", mode="full", rank=None, loss=loss, lr_factor=1.0)
        decision, state = asked(chosen, here, state)
        if decision.action == "to_low_rank" and fired is None:
            fired = tick
    still = [tick for tick in range(1, ticks) if math.cos(angles[tick]) ** 2 >= limit]
    assert fired == max(still[0] + PATIENCE - 1, 3 - 1), "the first still tick, and patience"
    assert 3 < fired < ticks - 1, "neither at once nor never"


def test_it_goes_low_is_watched_while_it_fades_and_accepted():
    chosen = policy("compress", ranks=[0.5])
    made, state = run(chosen, [row(EVERY * i) for i in range(PATIENCE)])
    assert made == [("none", "patience"), ("none", "patience"), ("to_low_rank", "eligible")]
    fading = [row(EVERY * (3 + i), mode="probation", rank=10, outside=0.0) for i in range(5)]
    low = [row(EVERY * (8 + i), mode="low_rank", rank=10, outside=0.0) for i in range(2)]
    reasons = []
    for at in (*fading, *low):
        decision, state = asked(chosen, at, state)
        reasons.append((decision.mode, decision.reason))
    assert reasons == [*[("probation", "probation")] * 5, ("low_rank", "accepted"), ("low_rank", "low_rank")]


@pytest.mark.parametrize(("rise", "noise", "back"), [(0.1, 0.01, True), (0.01, 0.001, False), (0.1, 0.5, False)])
def test_a_probation_fails_where_the_loss_rose_by_more_than_the_limit_and_than_noise(rise, noise, back):
    chosen = policy("compress", ranks=[0.5], loss_rise=0.02, loss_z=3.0)
    rows = [row(EVERY * i, loss=3.0 + noise * (-1) ** i) for i in range(3)]
    rows += [row(EVERY * (3 + i), mode="probation", rank=10, loss=3.0 + rise) for i in range(3)]
    made, state = run(chosen, rows)
    # mean before 3 ± noise/3; standard deviation 2 noise/√3, so the error of the rise is 0.943 noise
    assert made[-1] == (("rollback", "loss_rose") if back else ("none", "probation"))
    assert state["wait"] == (10 if back else 0), "twice the cool-down after the first rollback"
    if back:
        after, state = asked(chosen, row(EVERY * 6), state)
        assert (after.reason, state["wait"]) == ("cooldown", 9)


def test_each_rollback_doubles_the_cool_down_and_after_enough_switches_a_layer_is_locked():
    chosen = policy("compress", ranks=[0.5], max_switches=3, cooldown_ticks=2)
    state, waits, tick, mode, reasons = {}, [], 0, "full", []
    while tick < 80:
        low = mode != "full"
        at = row(EVERY * tick, mode=mode, rank=10 if low else None, loss=3.5 if low else 3 + 1e-3 * (-1) ** tick)
        decision, state = asked(chosen, at, state)
        reasons.append(decision.reason)
        mode = {"to_low_rank": "probation", "rollback": "full"}.get(decision.action, mode)
        if decision.action == "rollback":
            waits.append(state["wait"])
        tick += 1
    assert waits == [4, 8, 16]
    assert reasons.count("eligible") == 3
    assert reasons[-1] == "locked"
    assert chosen.decide(row(2000), state)[0].mode == "locked"


def test_a_low_rank_layer_is_full_again_when_its_gradient_stays_outside_for_patience_ticks():
    chosen = policy("compress", ranks=[0.5], outside_low=1.0, outside_high=1.4)
    rank = 10
    lifts = [1.5, 1.3, 1.5, 1.5, 1.5, 1.5]  # one tick in the dead band starts the count anew
    rows = [row(EVERY * i, mode="low_rank", rank=rank, outside=lifted(lift, rank)) for i, lift in enumerate(lifts)]
    made, _ = run(chosen, rows)
    assert made[:4] == [("none", "low_rank")] * 4
    assert made[4] == ("to_full", "gradient_outside")


@pytest.mark.parametrize("kind", ["compress", "delta", "auto"])
def test_below_the_floor_of_the_rate_and_in_warm_up_nothing_goes_low_and_nothing_comes_back(kind):
    chosen = policy(kind, warmup_steps=100)
    frozen = [row(EVERY * i) for i in range(5)] + [row(EVERY * (5 + i), lr_factor=0.05) for i in range(10)]
    made, _ = run(chosen, frozen)
    assert made == [("none", "warmup")] * 5 + [("none", "lr_low")] * 10
    low = [row(EVERY * i, mode="low_rank", rank=10, lr_factor=0.05, outside=1.0) for i in range(10)]
    assert run(chosen, low)[0] == [("none", "lr_low")] * 10


def test_ranks_are_tried_from_the_first_and_where_none_passes_it_says_so_and_waits():
    chosen = policy("compress", ranks=[0.4, 0.8], cooldown_ticks=2)
    made, _ = run(chosen, [row(EVERY * i) for i in range(8)], jump=0.5)
    tried = [("none", "trial_failed"), ("none", "no_benefit"), ("none", "cooldown"), ("none", "cooldown")]
    assert made == [("none", "patience")] * 2 + tried + [("none", "patience")] * 2
    assert chosen.trial_rank(row(40), {"losses": [3.0, 3.0], "held": 2}) == int(0.4 * 20)
    assert chosen.trial_rank(row(40), {"losses": [3.0, 3.0], "held": 2, "place": 1}) == int(0.8 * 20)


@pytest.mark.parametrize(("outside", "low"), [(0.9, True), (1.1, False)])
def test_a_gradient_that_the_pair_cannot_follow_keeps_a_layer_full(outside, low):
    chosen = policy("compress", ranks=[0.5])
    made, _ = run(chosen, [row(EVERY * i) for i in range(3)], outside=lifted(outside, 10))
    assert (made[-1][0] == "to_low_rank") is low


def tick(step, jumps, **fields):
    """Rows of several layers with trials of given jumps, and states in which all else holds."""
    rows = [
        replace(row(step, layer=name, **fields), trial=Trial(10, 3.0, 3.0 + jump, 0.0)) for name, jump in jumps.items()
    ]
    return rows, {name: {"losses": [3.0, 3.001], "held": 2} for name in jumps}


def test_of_a_full_event_the_cheapest_layers_go_and_the_others_are_tried_again_at_the_next_tick():
    chosen = policy("compress", ranks=[0.5], layers_per_event=2)
    rows, states = tick(60, {"dear": 0.009, "cheap": 0.001, "middling": 0.004})
    made = [chosen.decide(at, states[at.layer]) for at in rows]
    decided, after = chosen.settle(rows, *zip(*made, strict=True), {})
    assert [decision.reason for decision in decided] == ["event_full", "eligible", "eligible"]
    assert after[0]["went_low"] == 0
    assert chosen.trial_rank(row(80, layer="dear"), after[0]) == 10


def test_a_risen_loss_is_charged_to_the_layers_that_went_low_last():
    chosen = policy("compress", ranks=[0.5])
    rows = [row(200, layer=name, mode="probation", rank=10, loss=3.5) for name in ("early", "late")]
    states = [
        {"probation": {"since": since, "before": 3.0, "deviation": 1e-3, "losses": [3.5, 3.5]}, "went_low": 1}
        for since in (100, 140)
    ]
    made = [chosen.decide(at, state) for at, state in zip(rows, states, strict=True)]
    assert [decision.action for decision, _ in made] == ["rollback", "rollback"]
    decided, after = chosen.settle(rows, *zip(*made, strict=True), {})
    assert [decision.reason for decision in decided] == ["charged_to_a_later_one", "loss_rose"]
    assert [state["went_back"] for state in after] == [0, 1]


def watched(chosen, losses, since, split=False):
    """(step, layer, reason) of layers in probation since their steps, at the losses; `split`: every other tick each."""
    states = {
        name: {"probation": {"since": at, "before": 3.0, "deviation": 1e-3, "losses": []}, "went_low": 1}
        for name, at in since.items()
    }
    low, told = set(since), []
    for i, loss in enumerate(losses):
        due = sorted(low)
        due = due[i % 2 : i % 2 + 1] if split and len(due) == 2 else due
        rows = [row(200 + EVERY * i, layer=name, mode="probation", rank=10, loss=loss) for name in due]
        for at, decision in zip(rows, decide_tick(rows, chosen, states), strict=True):
            told.append((at.step, at.layer, decision.reason))
            low -= {at.layer} if decision.action == "rollback" else set()
    return told


@pytest.mark.parametrize("split", [False, True])
def test_a_layer_that_another_ones_losses_were_charged_to_is_watched_by_the_losses_since(split):
    """The loss is up while the later layer is low, and down again from the tick on at which it is back."""
    chosen = policy("compress", ranks=[0.5], probation_ticks=30)
    rolled = 2 * chosen.window if split else chosen.window
    told = watched(chosen, [3.5] * rolled + [3.0] * 12, {"early": 100, "late": 140}, split)
    back = [(layer, reason) for _, layer, reason in told if reason == "loss_rose"]
    assert back == [("late", "loss_rose")]
    # And a loss that rises anew, with nobody else to be charged, is its own.
    told = watched(chosen, [3.5] * rolled + [3.0] * 4 + [3.5] * 6, {"early": 100, "late": 140}, split)
    assert [layer for _, layer, reason in told if reason == "loss_rose"] == ["late", "early"]


def test_the_state_survives_a_checkpoints_plain_types():
    chosen, state = policy("auto"), {}
    for i in range(6):
        _, state = asked(chosen, row(EVERY * i), state)
        assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "hangs on a trial of it at rank 8, and that tick made none"),
        ({"trial": Trial(16, 3.0, 3.0, 0.0)}, "hangs on a trial of it at rank 8, and that tick made one at rank 16"),
        ({"loss": None}, "has no loss, which ledgers of before 2026-11-29 do not hold"),
        ({"lr_factor": None}, "has no lr_factor"),
    ],
)
def test_a_ledger_that_cannot_answer_is_told_so_in_a_sentence(fields, said):
    with pytest.raises(NotHeld, match=said):
        decide_all([row(EVERY * i, **fields) for i in range(4)], policy("compress"))


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("compress", {"outside_low": 1.4}, "outside_low=1.4 is not below outside_high=1.4: the dead band"),
        ("compress", {"outside_high": 0.5}, "outside_low=1.0 is not below outside_high=0.5"),
        ("compress", {"form": "both"}, "form='both' is none of compress, delta"),
        ("compress", {"ranks": []}, "ranks is empty"),
        ("compress", {"patience": 0}, "patience=0 must be a whole number of at least 1"),
        ("compress", {"window": 1}, "window=1 must be a whole number of at least 2"),
        ("compress", {"window": 6}, "probation_ticks=3 is shorter than window=6"),
        ("compress", {"layers_per_event": 0.1}, "layers_per_event=0.1 is not a whole number"),
        ("auto", {"calm_z": 300.0}, "calm_z=300.0 is not below attack_z=300.0"),
        ("guard", {"side": "both"}, "side='both' is none of core, left, right, bilateral"),
        ("guard", {"strength": 0}, "strength=0 is no share of the update"),
        ("guard", {"watch": "update"}, "watch='update' is none of gradient, momentum"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_in_a_sentence(kind, change, said):
    with pytest.raises(UsageError, match=said):
        policy(kind, **change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ranks": [0.5, 30]}, "ranks=30 is above the break-even rank 20"),
        ({"ranks": [41]}, "more than the smaller side"),
        ({"warmup_steps": 50}, "warmup_steps=50 is not before the run's end, step 50"),
    ],
)
def test_what_a_run_cannot_hold_is_refused_before_it_starts(change, said):
    with pytest.raises(UsageError, match=said):
        policy("compress", **change).check_schedule({"a": (40, 40)}, 50)


@pytest.mark.parametrize(
    ("first", "last", "said"),
    [
        (0.5, 0.5, "no window inside the run"),
        (0.6, 0.2, "no window inside the run"),
        (-0.1, 0.5, "no window"),
        (0.1, 1.0, "no window"),
    ],
)
def test_a_window_outside_of_the_run_is_refused(first, last, said):
    with pytest.raises(UsageError, match=said):
        replace(policy("grow"), low_from=first, low_until=last)


def test_a_window_without_a_step_is_refused_and_one_with_steps_switches_at_both_ends():
    shapes = {"a": (40, 40), "b": (56, 32)}
    with pytest.raises(UsageError, match="are both step 0 of 3"):
        replace(policy("grow"), low_from=0.0, low_until=0.1).check_schedule(shapes, 3)
    chosen = replace(policy("grow"), low_from=0.1, low_until=0.65)
    moves = {step: chosen.due(step, 40, shapes) for step in range(40)}
    assert [step for step, due in moves.items() if due] == [4, 26]
    assert [(move.to, move.rank) for move in moves[4]] == [("compress", 8), ("compress", int(0.4 * 56 * 32 / 88))]
    assert {move.to for move in moves[26]} == {"full"}


def test_what_can_never_hold_is_said_before_the_run():
    chosen = policy("compress", outside_high=9.0)
    reach = {item.name: item for item in chosen.reach(row(0))}
    rank = int(0.8 * 20)
    assert not reach["outside_high"].can_hold
    assert reach["outside_high"].best == pytest.approx(1 / (1 - rank / 40) ** 2)
