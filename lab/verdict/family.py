"""Family of a study's contrasts: which are decided, at which look, and which still need a seed.

Looks are replayed seed by seed from the differences alone, so that the verdict at the first look that decided stands,
whoever adds seeds later, and a planner that died is replaced by asking again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lab.errors import UsageError
from lab.verdict import null_table, sequential
from lab.verdict.null_table import FIRST_LOOK
from lab.verdict.sequential import LEVEL, Contrast, Moments

Verdict = Literal["better", "worse", "equivalent", "inconclusive", "open", "withheld"]
Stopped = Literal["difference", "equivalence", "gave_up", "budget", "open"]

GIVE_UP_FROM = 6  # pairs: before, a spread is too rough a guess to despair of
HOPELESS_DIFFERENCE = 3.5  # mean over its standard error that the strictest of four contrasts asks for at the horizon
HOPELESS_EQUIVALENCE = 2.6
OPEN, GAVE_UP, DIFFERENT, EQUIVALENT = range(4)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a study declares before its first job; raises UsageError for what contradicts itself."""

    horizon: int = 20  # looks for which the p values are calibrated: a study may be resumed up to it at no price
    budget: int = 12  # seeds after which a contrast stays inconclusive
    give_up: bool = True  # stop what its own estimates would not decide at the horizon; the error rates are the same
    allowance: float = 0.25  # share of the winner's stated regret that goes from the margin: `python -m lab.verdict`

    def __post_init__(self) -> None:
        """Refuse a horizon without a table, and a budget outside the looks."""
        null_table.load(2, self.horizon)
        if not FIRST_LOOK <= self.budget <= self.horizon:
            raise UsageError(
                f"a budget of {self.budget} seeds cannot be kept: choose one from {FIRST_LOOK}, the first look, "
                f"to {self.horizon}, the horizon."
            )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One contrast, at the look that decided it or the latest one."""

    contrast: Contrast
    seeds: int  # looked at; later ones, if any, change nothing
    p_adjusted: float  # Holm over P*
    q_adjusted: float  # Holm over Q*
    verdict: Verdict
    stopped_because: Stopped
    clear: bool  # the difference is beyond what the tuning of the arm that loses may have cost
    reason: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """Every contrast as judged, and how many seeds each that is still open needs for the next look."""

    judged: dict[str, Judged]
    wanted: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Looks:
    """What each look sees, all (…, contrasts, seeds): P*, Q*, P* of a clear difference, and two kinds of despair."""

    p: np.ndarray
    q: np.ndarray
    p_clear: np.ndarray
    hopeless: np.ndarray
    hopeless_clear: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """Outcome of a replay, all (…, contrasts): state, seeds looked at, Holm-adjusted P* and Q*, clear or not."""

    state: np.ndarray
    seeds: np.ndarray
    p_adjusted: np.ndarray
    q_adjusted: np.ndarray
    clear: np.ndarray


def judge(
    differences: Mapping[str, Sequence[float | None]],
    margin: float | None,
    *,
    higher_is_better: bool = False,
    rules: Rules | None = None,
    regrets: Mapping[str, tuple[float, float]] | None = None,
    ended: bool = False,
) -> Family:
    """Judge the contrasts on differences arm − baseline, in the order of the study's seeds.

    A difference is None where the pair is lost for good, and the sequence ends where runs have not ended yet: a look
    is taken when every contrast still open has its seed. With `ended` no more runs are coming, and a contrast with
    fewer seeds keeps its last state. `regrets` holds what tuning may have cost (arm, baseline), in units of the metric:
    a difference then ends a contrast once it is clear of the loser's, or cannot become so; else once it is there.
    Verdicts, in this order: equivalent where Holm over Q* ≤ 0.05, better or worse where Holm over P* ≤ 0.05, open.
    """
    rules, names = rules or Rules(), list(differences)
    if not names:
        return Family(judged={}, wanted={})
    longest = max(len(own) for own in differences.values())
    table = np.full((len(names), longest), np.nan)
    for row, own in zip(table, differences.values(), strict=True):
        row[: len(own)] = [np.nan if d is None else d for d in own]
    faulty = np.array([any(d is not None and not np.isfinite(d) for d in own) for own in differences.values()], bool)
    table[faulty] = np.nan
    available = np.array([longest if ended else len(own) for own in differences.values()])
    rho = None
    if regrets is not None:
        rho = np.array([regrets[name] for name in names], dtype=float)
    seen = looks(table, margin, rules, higher_is_better=higher_is_better, regrets=rho)
    decided = decide(seen, available, stopped=faulty)
    judged = {
        name: _judged(differences[name], i, decided, margin, rules, higher_is_better, at_end=ended)
        for i, name in enumerate(names)
    }
    wanted = {
        name: max(FIRST_LOOK, own.seeds + 1)
        for name, own in judged.items()
        if own.stopped_because == "open" and own.seeds < rules.budget
    }
    return Family(judged=judged, wanted=wanted)


def looks(
    differences: np.ndarray,
    margin: float | None,
    rules: Rules,
    *,
    higher_is_better: bool = False,
    regrets: np.ndarray | None = None,
) -> Looks:
    """What looks at differences (…, contrasts, seeds) see; `regrets` (…, contrasts, 2), of arm and baseline."""
    m = sequential.moments(differences)
    horizon = rules.horizon
    p = sequential.running(sequential.paired_p(m), m.pairs, sides=2, horizon=horizon)
    inside: np.ndarray | float | None = margin
    p_clear, loser = p, np.zeros(1)
    if regrets is not None:
        # Better tuning would only widen a lead: what the loser may have lost is all that a difference must clear.
        # It may also have hidden a lead: from the margin goes about what the winner is expected to have lost.
        arm_wins = (m.mean > 0) == higher_is_better
        arm, baseline = regrets[..., :1], regrets[..., 1:]
        loser = np.where(arm_wins, baseline, arm)
        p_clear = sequential.running(sequential.paired_p(m, loser), m.pairs, sides=2, horizon=horizon)
        inside = None if margin is None else margin - rules.allowance * np.where(arm_wins, arm, baseline)
    return Looks(
        p=p,
        q=sequential.running(sequential.tost_p(m, inside), m.pairs, sides=1, horizon=horizon),
        p_clear=p_clear,
        hopeless=_hopeless(m, inside, rules, 0.0),
        hopeless_clear=_hopeless(m, inside, rules, loser),
    )


def decide(seen: Looks, available: np.ndarray, stopped: np.ndarray | None = None) -> Decisions:
    """Replay of the looks, seed by seed; what is decided or given up keeps its P* and Q* in the family.

    `available` (…, contrasts): seeds on disk. `stopped` marks contrasts that are never looked at.
    """
    shape = seen.p.shape[:-1]
    state = np.where(stopped, GAVE_UP, OPEN) if stopped is not None else np.full(shape, OPEN)
    state = np.broadcast_to(state, shape).copy()
    p, q, p_clear = np.ones(shape), np.ones(shape), np.ones(shape)
    seeds, clear = np.zeros(shape, int), np.zeros(shape, bool)
    for n in range(seen.p.shape[-1]):
        live = state == OPEN
        complete = ~(live & (available <= n)).any(axis=-1, keepdims=True)
        look = live & complete
        if not look.any():
            break
        seeds = np.where(look, n + 1, seeds)
        p, q = np.where(look, seen.p[..., n], p), np.where(look, seen.q[..., n], q)
        p_clear = np.where(look, seen.p_clear[..., n], p_clear)
        equal, differ, far = holm(q) <= LEVEL, holm(p) <= LEVEL, holm(p_clear) <= LEVEL
        undecided = complete & (state <= GAVE_UP)
        settled = far | (differ & seen.hopeless_clear[..., n])
        state = np.where(look & seen.hopeless[..., n], GAVE_UP, state)
        state = np.where(undecided & settled, DIFFERENT, state)
        state = np.where(undecided & equal, EQUIVALENT, state)
        clear |= undecided & far
    return Decisions(state=state, seeds=seeds, p_adjusted=holm(p), q_adjusted=holm(q), clear=clear)


def holm(p: np.ndarray) -> np.ndarray:
    """p values adjusted over the last axis so that all together err at most at the level of one.

    Source: Holm 1979.
    """
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.arange(p.shape[-1], 0, -1)
    raised = np.maximum.accumulate(np.minimum(1.0, np.take_along_axis(p, order, axis=-1) * steps), axis=-1)
    adjusted = np.empty_like(raised)
    np.put_along_axis(adjusted, order, raised, axis=-1)
    return adjusted


def _hopeless(m: Moments, margin: np.ndarray | float | None, rules: Rules, beyond: np.ndarray | float) -> np.ndarray:
    """Where the estimates so far, were they true, would decide neither way even at the horizon."""
    if not rules.give_up:
        return np.zeros_like(m.mean, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.sqrt(rules.horizon) / m.sd
        no_difference = (np.abs(m.mean) - beyond) * scale < HOPELESS_DIFFERENCE
        no_equivalence = np.bool_(True) if margin is None else (margin - np.abs(m.mean)) * scale < HOPELESS_EQUIVALENCE
    return (m.pairs >= GIVE_UP_FROM) & ((no_difference & no_equivalence) | (m.sd == 0))


def _judged(
    differences: Sequence[float | None],
    index: int,
    decided: Decisions,
    margin: float | None,
    rules: Rules,
    higher_is_better: bool,
    *,
    at_end: bool,
) -> Judged:
    seeds, state = int(decided.seeds[index]), int(decided.state[index])
    own = sequential.contrast(list(differences)[: seeds or None], margin, rules.horizon)
    p, q = float(decided.p_adjusted[index]), float(decided.q_adjusted[index])
    stopped: Stopped = {DIFFERENT: "difference", EQUIVALENT: "equivalence", GAVE_UP: "gave_up"}.get(state, "open")  # type: ignore[assignment]
    if state == OPEN and seeds >= rules.budget:
        stopped = "budget"
    verdict: Verdict
    if own.fault or own.mean is None:
        verdict, reason = "withheld", own.fault or "no mean"
    elif state == EQUIVALENT:
        verdict, reason = "equivalent", f"Holm-adjusted Q* = {q:.2g}: the difference lies inside ±{margin:.3g}"
    elif p <= LEVEL:
        wins = (own.mean > 0) == higher_is_better
        verdict, reason = ("better" if wins else "worse"), f"Holm-adjusted P* = {p:.2g} after {seeds} seeds"
    elif stopped == "open" and not at_end:
        verdict, reason = "open", f"undecided after {seeds} of {rules.budget} seeds"
    else:
        why = {"gave_up": "its own estimates would not be decided at the horizon", "budget": "the budget is spent"}
        verdict, reason = "inconclusive", why.get(stopped, "no more runs are coming")
    return Judged(
        contrast=own,
        seeds=seeds,
        p_adjusted=p,
        q_adjusted=q,
        verdict=verdict,
        stopped_because=stopped,
        clear=bool(decided.clear[index]),
        reason=reason,
    )
