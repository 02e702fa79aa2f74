"""State machine of a layer that may go low-rank: eligible → probation → low rank → full, with patience and back-off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from lab.ledger import Row
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy import Clause, Decision, State
from lab.svd_policy.low_rank_limits import CHEAP, ELIGIBLE, OUTSIDE, ROSE, LowRankLimits, last
from lab.svd_policy.observing import default_decision
from lab.svd_policy.switching import Move, Shapes, rank_for

# What is remembered of a layer, and what it is at first.
FRESH: dict[str, Any] = {
    "losses": [],  # means of the last ticks at which it trained in full
    "held": 0,  # ticks in a row at which the cheap clauses held
    "place": 0,  # of the next rank to be tried
    "wait": 0,  # ticks of cool-down left
    "went_low": 0,  # times that it went low-rank
    "went_back": 0,  # times that it was rolled back
    "probation": None,  # {"since", "before", "deviation", "losses", "cleared"} while its loss is watched
    "outside": 0,  # ticks in a row at which the gradient lay outside of the pair
    "undone": 0,  # step of its last roll-back: what the loss was before says nothing of others in probation
}


@dataclass(frozen=True, kw_only=True)
class LowRank(LowRankLimits):
    """The decisions of the state machine, on one row at a time."""

    def foreseen(self, total_steps: int, shapes: Shapes) -> Sequence[tuple[int, Sequence[Move]]]:
        """Each layer at the first of the ranks, `layers_per_event` a tick, where every clause holds from the start."""
        assert self.every_n_steps is not None, "a policy without ticks"
        known = (self.window - 1) * self.every_n_steps
        first = max(self.first_tick(self.warmup_steps) + (self.patience - 1) * self.every_n_steps, known)
        moves = [
            Move(name, self.form, rank_for(self.ranks[0], shape, "svd_policy.ranks"), ELIGIBLE)
            for name, shape in shapes.items()
        ]
        events = [moves[i : i + self.layers_per_event] for i in range(0, len(moves), self.layers_per_event)]
        return [(first + i * self.every_n_steps + 1, event) for i, event in enumerate(events)]

    def trial_rank(self, row: Row, state: State) -> int | None:
        """The next rank of the list, where all that needs no trial holds and has held."""
        if default_decision(row) is not None:
            return None
        acting, held = self.acting(row, state)
        return acting.rank_to_try(row, held)

    def rank_to_try(self, row: Row, state: State) -> int | None:
        """As `trial_rank`, at the limits as they are."""
        if not self._may_try(row, state):
            return None
        return self._rank_at({**FRESH, **state}["place"], row)

    def _rank_at(self, place: int, row: Row) -> int:
        return rank_for(self.ranks[place], row.shape, "svd_policy.ranks")

    def decide_at(self, row: Row, state: State) -> tuple[Decision, State]:
        """One step of the layer's state machine."""
        memory = {**FRESH, **state}
        if row.rank is None:
            return self._while_full(row, memory)
        if memory["probation"] is not None:
            return self._in_probation(row, memory)
        return self._while_low(row, memory)

    def _may_try(self, row: Row, state: State) -> bool:
        memory = {**FRESH, **state}
        idle = row.rank is None and row.step >= self.warmup_steps and memory["wait"] == 0
        if not idle or memory["went_low"] >= self.max_switches:
            return False
        known = len(last([*memory["losses"], row.loss], self.window)) == self.window
        return known and all(item.holds for item in self.cheap(row)) and memory["held"] + 1 >= self.patience

    def _while_full(self, row: Row, memory: dict[str, Any]) -> tuple[Decision, State]:
        tries = self._may_try(row, memory)
        held = memory["held"] + 1
        clauses: tuple[Clause, ...] = self.cheap(row)
        memory = memory | {"losses": last([*memory["losses"], loss_of(row)], self.window), "probation": None}
        memory |= {"outside": 0, "held": 0}

        def nothing(reason: str, **changes: Any) -> tuple[Decision, State]:
            return Decision(row.mode, "none", None, clauses, reason), memory | changes

        if row.step < self.warmup_steps:
            return nothing("warmup")
        if memory["went_low"] >= self.max_switches:
            return Decision("locked", "none", None, clauses, "locked"), memory
        if memory["wait"] > 0:
            return nothing("cooldown", wait=memory["wait"] - 1)
        failing = [CHEAP[item.name] for item in clauses if not item.holds]
        if failing:
            return nothing(failing[0])
        if not tries:
            return nothing("patience", held=held)
        rank = self._rank_at(memory["place"], row)
        if row.trial is None or row.trial.rank != rank:  # a run at other settings was on another rank of the list
            made = "none" if row.trial is None else f"one at rank {row.trial.rank}"
            raise NotHeld(
                f"whether {row.layer} goes low-rank at step {row.step} hangs on a trial of it at rank {rank}, and that "
                f"tick made {made}; record with the policy itself, and a trial_jump below 0 where nothing is to switch."
            )
        clauses = (*clauses, *self.tried(row))
        if all(item.holds for item in clauses):
            start = {"since": row.step, "before": fmean(memory["losses"]), "deviation": stdev(memory["losses"])}
            changes = {"place": 0, "went_low": memory["went_low"] + 1, "probation": {**start, "losses": []}}
            return Decision("probation", "to_low_rank", row.trial.rank, clauses, ELIGIBLE), memory | changes
        if memory["place"] + 1 < len(self.ranks):
            return nothing("trial_failed", held=held, place=memory["place"] + 1)
        return nothing("no_benefit", place=0, wait=self.cooldown_ticks)

    def _in_probation(self, row: Row, memory: dict[str, Any]) -> tuple[Decision, State]:
        probation = memory["probation"]
        losses = [*probation["losses"], loss_of(row)]
        clauses = self.risen(probation, losses)
        memory = memory | {"probation": {**probation, "losses": losses}, "losses": []}
        if len(losses) >= self.window and all(item.holds for item in clauses):
            back = memory["went_back"] + 1
            changes = {"went_back": back, "wait": self.cooldown_ticks * 2**back, "held": 0}
            return Decision("full", "rollback", None, clauses, ROSE), memory | changes
        if row.mode != "probation" and len(losses) >= self.probation_ticks:
            return Decision("low_rank", "accept", row.rank, clauses, "accepted"), memory | {"probation": None}
        return Decision("probation", "none", row.rank, clauses, "probation"), memory

    def _while_low(self, row: Row, memory: dict[str, Any]) -> tuple[Decision, State]:
        assert row.rank is not None, "a low-rank layer without a rank"
        low = self.cheap(row)[0]
        clauses = (low, self.outside_clause("outside_high", ">=", row.outside, row.rank, row))
        outside = memory["outside"] + 1 if clauses[1].holds and low.holds else 0
        if outside >= self.patience:
            changes = {"outside": 0, "wait": self.cooldown_ticks * 2 ** memory["went_back"], "held": 0}
            return Decision("full", "to_full", None, clauses, OUTSIDE), memory | changes
        reason = "low_rank" if low.holds else "lr_low"
        return Decision("low_rank", "none", row.rank, clauses, reason), memory | {"outside": outside}

    def settle(
        self,
        rows: Sequence[Row],
        decisions: Sequence[Decision],
        states: Sequence[State],
        others: Mapping[str, State],
    ) -> tuple[list[Decision], list[State]]:
        """At most `layers_per_event` go low-rank, those of the smallest jump; a risen loss is the last event's doing.

        Of layers in probation only those that went low-rank last are rolled back, whichever ticks these are seen at.
        The others are watched on, and once those are back, by the losses since.
        """
        decided, after = list(decisions), list(states)
        low = [i for i, decision in enumerate(decided) if decision.action == "to_low_rank"]
        low.sort(key=lambda i: (_jump(rows[i]), rows[i].layer))
        for i in low[self.layers_per_event :]:
            changes = {"went_low": states[i]["went_low"] - 1, "probation": None, "held": self.patience}
            decided[i] = Decision(rows[i].mode, "none", None, decided[i].clauses, "event_full")
            after[i] = {**states[i], **changes, "place": self._place(rows[i])}
        watched = [i for i, row in enumerate(rows) if row.rank is not None and states[i].get("probation")]
        probations = [states[i]["probation"] for i in watched]
        probations += [state["probation"] for state in others.values() if state.get("probation")]
        latest = max((probation["since"] for probation in probations), default=0)

        def undone() -> int:
            return max((state.get("undone", 0) for state in (*after, *others.values())), default=0)

        earlier = undone()
        for i in watched:
            if decided[i].action != "rollback":
                continue
            if states[i]["probation"]["since"] < latest or earlier > _watched_from(states[i]["probation"]):
                decided[i] = Decision("probation", "none", rows[i].rank, decided[i].clauses, "charged_to_a_later_one")
                after[i] = {**states[i], "went_back": states[i]["went_back"] - 1, "wait": 0}
            else:
                after[i] = {**states[i], "probation": None, "undone": rows[i].step}
        now = undone()
        for i in watched:
            probation = after[i]["probation"]
            if probation is not None and now > _watched_from(probation):
                after[i] = {**after[i], "probation": {**probation, "losses": [], "cleared": now}}
        return decided, after

    def _place(self, row: Row) -> int:
        """Of the rank that was tried."""
        assert row.trial is not None, "no trial"
        return [rank_for(asked, row.shape, "svd_policy.ranks") for asked in self.ranks].index(row.trial.rank)

    def move(self, row: Row, decision: Decision) -> Move | None:
        """The switch that was decided."""
        if decision.action == "to_low_rank":
            return Move(row.layer, self.form, decision.rank, decision.reason)
        return Move(row.layer, "full", None, decision.reason) if decision.action in ("to_full", "rollback") else None


def _watched_from(probation: Mapping[str, Any]) -> int:
    """The step from which a layer's losses are counted: its switch, or a later layer's roll-back."""
    return max(probation["since"], probation.get("cleared", 0))


def loss_of(row: Row) -> float:
    """Mean training loss since the last tick, nats a token; raises NotHeld for a ledger that is too old."""
    if row.loss is None:
        raise NotHeld(
            f"step {row.step} of {row.layer} has no loss, which ledgers of before 2026-11-29 do not hold; record the "
            f"run anew."
        )
    return row.loss


def _jump(row: Row) -> float:
    return row.trial.jump or 0.0 if row.trial is not None else 0.0
