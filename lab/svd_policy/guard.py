"""A policy that protects principal directions under attack: the layer stays full, and its updates leave them alone."""

from collections.abc import Mapping
from dataclasses import dataclass

from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.attack import ATTACK, Guarding


@dataclass(frozen=True, kw_only=True)
class Guard(Guarding):
    """Guards a layer while gradients press on its principal directions; it saves nothing, and compresses nothing."""

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """An attack by both measures."""
        return {ATTACK: ("attack_z", "attack_lift")}

    def decide_at(self, row: Row, state: State) -> tuple[Decision, State]:
        """Guard or release, as the ticks so far say."""
        clauses = self.guard_clauses(row)
        if row.step < self.warmup_steps:
            return Decision(row.mode, "none", None, clauses, "warmup"), state
        decision, after = self.guard_decision(row, state)
        if decision is not None:
            return decision, after
        return Decision(row.mode, "none", None, clauses, "cooldown" if state.get("guard_wait") else "calm"), after

    def reach_at(self, row: Row) -> tuple[Reach, ...]:
        """Whether an attack could be seen at all."""
        return self.guard_reach(row)
