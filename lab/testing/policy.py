"""Checks of a policy against its contract, on the rows of a short run and in runs that follow what it decides."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Generator, Tensor

from lab.ledger import Mode, Row, Trial, row_of
from lab.spectral.chance import chance
from lab.spectral.diagnosis import Engine
from lab.spectral.tracker import Tracker
from lab.svd_policy import Action, Decision, Settles, State, SvdPolicy

SHAPES_OF_ROWS = ((40, 40), (40, 40), (56, 32), (32, 56))
LEGAL: Mapping[str, tuple[str, ...]] = {  # actions by what a layer is
    "full": ("none", "to_low_rank", "guard"),
    "guard": ("none", "release"),
    "probation": ("none", "accept", "rollback", "to_full"),
    "low_rank": ("none", "accept", "rollback", "to_full", "resize"),
}


def check_policy(policy: SvdPolicy, *, steady: bool = True) -> None:
    """Hold a policy against the protocol, on a short run's rows and in simulated runs; raises AssertionError.

    Checked on rows as they come: the same row and state give the same decision and state, and change neither, and
    `settle` likewise; the state is plain and small enough to live in a checkpoint; mode and action are known; each
    clause's margin and verdict follow from its value and limit; rules speak of clauses that exist, and so does `reach`;
    rows of zero, rank-deficient and non-finite weights are answered, the last without an action.
    Checked where layers do as they are told: no action before `warmup_steps`, none that the layer's mode does not
    allow, a rank where it goes low-rank; and, if `steady`, no layer that goes back and forth while nothing changes.
    """
    seen: set[str] = set()
    engine: Engine = getattr(policy, "engine", "warm")
    rows = example_rows(engine=engine, k=getattr(policy, "k", 4))
    states: dict[str, State] = {}
    for tick in _ticks(rows):
        for row, decision in _decide(policy, tick, states):
            _check_decision(decision, row)
            seen |= {clause.name for clause in decision.clauses}
            for item in policy.reach(row):
                demand(hasattr(policy, item.name), f"reach names {item.name}, which is no setting of the policy")
    for lift in (0.5, 1.2, 2.0):
        for risen in (0.0, 1.0):
            seen |= _check_run(policy, rows, lift, risen, steady=steady and not risen)
    for reason, names in policy.rules.items():
        demand(set(names) <= seen, f"the rule {reason} speaks of {sorted(set(names) - seen)}, which no decision tested")


def _ticks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    for step in sorted({row.step for row in rows}):
        yield [row for row in rows if row.step == step]


def _decide(
    policy: SvdPolicy, rows: Sequence[Row], states: dict[str, State], lift: float = 0.0
) -> list[tuple[Row, Decision]]:
    """The decisions on a tick, each asked for twice, with the trials that the policy wants, whose jump is 0."""
    tried, decided, after = [], [], []
    for row in rows:
        state = states.get(row.layer, {})
        before = json.dumps(state)
        row = _tried(policy, row, state, lift)
        decision, left = policy.decide(row, json.loads(before))
        again, left_again = policy.decide(row, state)
        demand(decision == again and left == left_again, "the same row and state gave two different decisions")
        demand(json.dumps(state) == before, "the state handed in was changed in place")
        demand(json.loads(json.dumps(left)) == left, "the state holds something other than plain types")
        tried.append(row)
        decided.append(decision)
        after.append(left)
    if isinstance(policy, Settles):
        before = json.dumps(after)
        others = {layer: state for layer, state in states.items() if layer not in {row.layer for row in rows}}
        settled, final = policy.settle(tried, decided, after, others)
        settled_again, final_again = policy.settle(tried, decided, after, others)
        demand(list(settled) == list(settled_again) and list(final) == list(final_again), "settle gave two answers")
        demand(json.dumps(after) == before, "settle changed the states handed in")
        demand(len(settled) == len(final) == len(rows), "settle gave back another number of decisions")
        decided, after = list(settled), list(final)
    states.update({row.layer: state for row, state in zip(rows, after, strict=True)})
    return list(zip(tried, decided, strict=True))


def _tried(policy: SvdPolicy, row: Row, state: State, lift: float) -> Row:
    ask = getattr(policy, "trial_rank", None)
    rank = ask(row, state) if ask is not None else None
    if rank is None:
        return row
    demand(1 <= rank <= min(row.shape), f"a trial at rank {rank} of a {row.shape[0]}x{row.shape[1]} layer")
    return replace(row, trial=Trial(rank, 3.0, 3.0, _outside(lift, rank, row.shape)))


def _outside(lift: float, rank: int, shape: tuple[int, int]) -> float:
    return min(1.0, lift * (1 - chance("either", rank, shape)))


def _check_run(policy: SvdPolicy, rows: Sequence[Row], lift: float, risen: float, *, steady: bool) -> set[str]:
    """A run whose layers stand still and do as the policy says, and whose loss rises while one of them is low-rank.

    `lift` is the share of the gradient outside of each pair, times chance. Gives the names of the clauses met.
    """
    every, warmup = policy.every_n_steps or 20, getattr(policy, "warmup_steps", 0)
    bases = {row.layer: _standing(row) for row in rows if row.previous is not None and row.reason is None}
    held: dict[str, tuple[Any, int | None]] = dict.fromkeys(bases, ("full", None))
    changes, seen, states = dict.fromkeys(bases, 0), set[str](), dict[str, State]()
    for tick in range(warmup // every + 60):
        low = any(rank is not None for _, rank in held.values())
        at = [
            replace(
                base,
                **{"step": tick * every, "mode": held[name][0], "rank": held[name][1], "lr_factor": 1.0},
                loss=3.0 + 1e-3 * (-1) ** tick + risen * low,
                **({} if (rank := held[name][1]) is None else _of_pair(base, rank, lift)),
            )
            for name, base in bases.items()
        ]
        for row, decision in _decide(policy, at, states, lift):
            _check_decision(decision, row)
            seen |= {clause.name for clause in decision.clauses}
            _check_transition(decision, row, warmup)
            if decision.action not in ("none", "accept"):
                changes[row.layer] += 1
                held[row.layer] = _after(decision)
            demand(not steady or changes[row.layer] <= 1, f"{row.layer} goes back and forth and nothing has changed")
    return seen


def _of_pair(row: Row, rank: int, lift: float) -> dict[str, Any]:
    """What is measured of a low-rank layer besides."""
    ratios = None if row.norm_ratios is None else replace(row.norm_ratios, k=min(row.shape) - rank)
    return {"outside": _outside(lift, rank, row.shape), "norm_ratios": ratios}


def _standing(row: Row) -> Row:
    """The row of a layer whose directions stand still."""
    turn = row.previous
    assert turn is not None, "a first tick"
    still = {name: np.zeros_like(getattr(turn, name)) for name in ("angle_left", "angle_right")}
    whole = {name: np.ones_like(getattr(turn, name)) for name in ("overlap_left", "overlap_right")}
    return replace(row, previous=replace(turn, **still, **whole))


def _after(decision: Decision) -> tuple[str, int | None]:
    """What a layer then is: a residual fades between two ticks."""
    if decision.action in ("to_low_rank", "resize"):
        return "low_rank", decision.rank
    return ("guard" if decision.action == "guard" else "full"), None


def _check_transition(decision: Decision, row: Row, warmup: int) -> None:
    demand(
        decision.action in LEGAL[row.mode], f"a layer that is {row.mode} is asked to {decision.action}, which it cannot"
    )
    early = row.step < warmup and decision.action != "none"
    demand(not early, f"it acts ({decision.action}) at step {row.step}, before warmup_steps={warmup}")
    low = decision.action in ("to_low_rank", "resize")
    demand(not low or decision.rank is not None, f"{decision.action} at step {row.step} names no rank")


def demand(holds: bool, sentence: str) -> None:
    """Raises AssertionError with the sentence where it does not hold."""
    if not holds:
        raise AssertionError(f"{sentence}.")


def _check_decision(decision: Decision, row: Row) -> None:
    demand(decision.mode in get_args(Mode), f"mode {decision.mode!r} is none of {', '.join(get_args(Mode))}")
    demand(decision.action in get_args(Action), f"action {decision.action!r} is none of {', '.join(get_args(Action))}")
    demand(bool(decision.reason), "a decision came without a reason")
    if row.reason == "non_finite":
        demand(decision.action == "none", f"it acts ({decision.action}) on a weight that is not finite")
    for clause in decision.clauses:
        if clause.value is None:
            demand(not clause.holds and clause.margin is None, f"{clause.name} holds without a value")
            continue
        demand(math.isfinite(clause.value), f"{clause.name} is {clause.value}; give None where it is undefined")
        side = clause.value - clause.limit if clause.op in (">", ">=") else clause.limit - clause.value
        demand(clause.margin == side, f"the margin of {clause.name} is {clause.margin}, not {side}")
        demand(clause.holds == (side > 0 or (side == 0 and "=" in clause.op)), f"{clause.name} misjudges its limit")


def example_rows(
    engine: Engine = "warm", k: int = 4, ticks: int = 4, shapes: Sequence[tuple[int, int]] = SHAPES_OF_ROWS
) -> list[Row]:
    """The ledger rows of a short, seeded run: weights that drift, one from zero, one that breaks at the end."""
    generator = Generator().manual_seed(5)

    def draw(shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=generator)

    names = [f"check.{i}.{shape[0]}x{shape[1]}" for i, shape in enumerate(shapes)]
    weights = {name: draw(shape) for name, shape in zip(names, shapes, strict=True)}
    weights[names[-1]] = torch.zeros(shapes[-1])
    tracker = Tracker(k=k, oversample=4, engine=engine, exact_every_n_ticks=2, seed=0)
    rows: list[Row] = []
    for tick in range(ticks):
        if tick == 1:
            weights[names[-1]] = draw((shapes[-1][0], 2)) @ draw((2, shapes[-1][1]))  # rank 2: fewer than k directions
        if tick == ticks - 1:
            weights[names[0]] = torch.full(shapes[0], torch.nan)
        gradients = {name: draw(shape) for name, shape in zip(names, shapes, strict=True)}
        updates = {name: -0.01 * gradient for name, gradient in gradients.items()}
        diagnoses = tracker.tick(tick, weights, gradients, updates)
        seen = {"loss": 3.0 - 0.01 * tick, "lr_factor": 1.0}
        step = 20 * (tick + 1)
        rows += [row_of(diagnoses[name], step=step, layer=name, mode="full", rank=None, **seen) for name in names]
        weights = {name: weights[name] + 20 * updates[name] * (name != names[-1]) for name in names}
    return rows
