"""A policy that guards what is attacked and compresses what is eligible; an attack never triggers compression."""

from collections.abc import Mapping
from dataclasses import dataclass

from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.attack import ATTACK, Guarding
from lab.svd_policy.limits import Kept
from lab.svd_policy.low_rank import FRESH, LowRank, loss_of
from lab.svd_policy.low_rank_limits import last
from lab.svd_policy.observing import default_decision


@dataclass(frozen=True, kw_only=True)
class Auto(LowRank, Guarding):
    """Guards a full layer under attack, makes one that is eligible low-rank, and full again where that fails it."""

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """An attack first, then those of going low-rank and back."""
        return {ATTACK: ("attack_z", "attack_lift"), **super().rules}

    @property
    def learned(self) -> Mapping[str, Kept]:
        """Those of both."""
        return {"attack_z": "at_most", "attack_lift": "at_most", "overlap": "at_least"}

    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """Those of both."""
        return {**Guarding.null_limits(self, row, false_alarm), **super().null_limits(row, false_alarm)}

    def rank_to_try(self, row: Row, state: State) -> int | None:
        """None for a layer that is guarded, or under attack."""
        return super().rank_to_try(row, state) if self._guard(row, state)[0] is None else None

    def decide_at(self, row: Row, state: State) -> tuple[Decision, State]:
        """What the guard says, where it says anything; else one step of the state machine."""
        decision, state = self._guard(row, state)
        if decision is not None:  # a layer that is guarded trains in full all the same
            memory = {**FRESH, **state}
            losses = last([*memory["losses"], loss_of(row)], self.window)
            return decision, {**memory, "losses": losses, "held": 0, "probation": None}
        decision, after = super().decide_at(row, state)
        if row.rank is not None:
            return decision, after
        clauses = (*self.guard_clauses(row), *decision.clauses)
        return Decision(decision.mode, decision.action, decision.rank, clauses, decision.reason), after

    def _guard(self, row: Row, state: State) -> tuple[Decision | None, State]:
        if row.rank is not None or row.step < self.warmup_steps or default_decision(row) is not None:
            return None, state
        return self.guard_decision(row, state)

    def reach_at(self, row: Row) -> tuple[Reach, ...]:
        """Of all clauses."""
        return (*self.guard_reach(row), *super().reach_at(row)) if row.directions else ()
