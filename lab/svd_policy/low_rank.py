"""State machine of a layer that may go low-rank: eligible → probation → low rank → full, with patience and back-off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from lab.errors import UsageError
from lab.ledger import Row
from lab.spectral.chance import chance
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy import Clause, Decision, Reach, State, clause
from lab.svd_policy.attack import check_counts
from lab.svd_policy.observing import default_decision
from lab.svd_policy.switching import Move, Shapes, Switching, break_even, check_saves, rank_for

ELIGIBLE, OUTSIDE, ROSE = "eligible", "gradient_outside", "loss_rose"
CHEAP = {"lr_floor": "lr_low", "overlap": "turning"}  # clauses that need no trial, and why a layer is not tried

# What is remembered of a layer, and what it is at first.
FRESH: dict[str, Any] = {
    "losses": [],  # means of the last ticks at which it trained in full
    "held": 0,  # ticks in a row at which the cheap clauses held
    "place": 0,  # of the next rank to be tried
    "wait": 0,  # ticks of cool-down left
    "went_low": 0,  # times that it went low-rank
    "went_back": 0,  # times that it was rolled back
    "probation": None,  # {"since", "before", "deviation", "losses"} while its loss is watched
    "outside": 0,  # ticks in a row at which the gradient lay outside of the pair
}


@dataclass(frozen=True, kw_only=True)
class LowRank(Switching):
    """The settings of the state machine, and its decisions, on one row at a time."""

    form: Literal["compress", "delta"]
    ranks: Sequence[Any]  # whole numbers, or shares of break-even, tried in this order, one a tick
    lr_floor: float  # share of the peak learning rate below which only a rollback acts
    overlap: float  # mean squared cosine of the k directions with the last tick's, from which they stand still
    trial_jump: float  # nats a token that the trial may cost
    outside_low: float  # energy of the gradient that the pair could not move, times chance: at most so much to go low
    outside_high: float  # and at least so much to go back
    patience: int  # ticks in a row for either
    loss_rise: float  # nats a token above the loss before, from which a probation fails ...
    loss_z: float  # ... where it is also so many standard errors above
    window: int  # ticks whose losses are averaged, on both sides of a switch
    probation_ticks: int  # at least; it also lasts as long as the residual fades
    cooldown_ticks: int  # after a return, after ranks that cost too much, and twice as long after each rollback
    max_switches: int  # times that a layer may go low-rank; then it stays full, locked
    layers_per_event: int  # that may go low-rank at a tick: those of the smallest jump
    warmup_steps: int  # optimizer steps without a decision

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("compress", "delta"):
            raise UsageError(f"svd_policy.form={self.form!r} is none of compress, delta.")
        if not self.ranks:
            raise UsageError("svd_policy.ranks is empty, so no layer could go low-rank; give one, such as [0.8].")
        if self.outside_low >= self.outside_high:
            raise UsageError(
                f"svd_policy.outside_low={self.outside_low} is not below outside_high={self.outside_high}: the dead "
                f"band between them is empty, and a layer would go back and forth; raise outside_high."
            )
        check_counts(self, patience=1, window=2, probation_ticks=1, cooldown_ticks=0, max_switches=0)
        check_counts(self, layers_per_event=1, warmup_steps=0)
        if self.probation_ticks < self.window:
            raise UsageError(
                f"svd_policy.probation_ticks={self.probation_ticks} is shorter than window={self.window}, so a "
                f"probation would end before its loss is known; raise it to {self.window}."
            )

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError for a rank that a layer cannot have, or that saves nothing, and a warm-up to the end."""
        for name, shape in shapes.items():
            for asked in self.ranks:
                rank = rank_for(asked, shape, "svd_policy.ranks")
                if self.form == "compress":
                    check_saves(rank, name, shape, "svd_policy.ranks")
        if self.warmup_steps >= total_steps:
            raise UsageError(
                f"svd_policy.warmup_steps={self.warmup_steps} is not before the run's end, step {total_steps}, so the "
                f"policy would decide nothing; lower it."
            )

    @property
    def tried_form(self) -> Literal["compress", "delta"]:
        """What a layer comes to."""
        return self.form

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

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Low-rank where a trial says so, back where the gradient leaves the pair or the loss has risen."""
        eligible = (*CHEAP, "trial_jump", "outside_low")
        return {ELIGIBLE: eligible, OUTSIDE: ("outside_high",), ROSE: ("loss_rise", "loss_z")}

    def trial_rank(self, row: Row, state: State) -> int | None:
        """The next rank of the list, where all that needs no trial holds and has held."""
        if default_decision(row) is not None or not self._may_try(row, state):
            return None
        return rank_for(self.ranks[{**FRESH, **state}["place"]], row.shape, "svd_policy.ranks")

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """One step of the layer's state machine."""
        waiting = default_decision(row)
        if waiting is not None:
            return waiting, state
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
        known = len(_last([*memory["losses"], row.loss], self.window)) == self.window
        return known and all(item.holds for item in self._cheap(row)) and memory["held"] + 1 >= self.patience

    def _while_full(self, row: Row, memory: dict[str, Any]) -> tuple[Decision, State]:
        tries = self._may_try(row, memory)
        held = memory["held"] + 1
        clauses: tuple[Clause, ...] = self._cheap(row)
        memory = memory | {"losses": _last([*memory["losses"], _loss(row)], self.window), "probation": None}
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
        if row.trial is None:
            raise NotHeld(
                f"whether {row.layer} goes low-rank at step {row.step} hangs on a trial of it, and that tick made "
                f"none; record with the policy itself, and a trial_jump below 0 where nothing is to switch."
            )
        clauses = (*clauses, *self._tried(row))
        if all(item.holds for item in clauses):
            start = {"since": row.step, "before": fmean(memory["losses"]), "deviation": stdev(memory["losses"])}
            changes = {"place": 0, "went_low": memory["went_low"] + 1, "probation": {**start, "losses": []}}
            return Decision("probation", "to_low_rank", row.trial.rank, clauses, ELIGIBLE), memory | changes
        if memory["place"] + 1 < len(self.ranks):
            return nothing("trial_failed", held=held, place=memory["place"] + 1)
        return nothing("no_benefit", place=0, wait=self.cooldown_ticks)

    def _in_probation(self, row: Row, memory: dict[str, Any]) -> tuple[Decision, State]:
        probation = memory["probation"]
        losses = [*probation["losses"], _loss(row)]
        clauses = self._risen(probation, losses)
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
        low = self._cheap(row)[0]
        clauses = (low, self._outside("outside_high", ">=", row.outside, row.rank, row))
        outside = memory["outside"] + 1 if clauses[1].holds and low.holds else 0
        if outside >= self.patience:
            changes = {"outside": 0, "wait": self.cooldown_ticks * 2 ** memory["went_back"], "held": 0}
            return Decision("full", "to_full", None, clauses, OUTSIDE), memory | changes
        reason = "low_rank" if low.holds else "lr_low"
        return Decision("low_rank", "none", row.rank, clauses, reason), memory | {"outside": outside}

    def _cheap(self, row: Row) -> tuple[Clause, Clause]:
        if row.lr_factor is None:
            raise NotHeld(
                f"step {row.step} of {row.layer} has no lr_factor, which ledgers of before 2026-11-29 do not hold; "
                f"record the run anew."
            )
        unrelated = min(self.k / side for side in row.shape)
        return (
            clause("lr_floor", ">=", row.lr_factor, self.lr_floor),
            clause("overlap", ">=", row.overlap(self.k), self.overlap, unrelated),
        )

    def _tried(self, row: Row) -> tuple[Clause, Clause]:
        trial = row.trial
        assert trial is not None, "no trial"
        jump = clause("trial_jump", "<=", trial.jump, self.trial_jump)
        return jump, self._outside("outside_low", "<=", trial.outside, trial.rank, row)

    def _outside(self, name: str, op: Literal["<=", ">="], share: float | None, rank: int, row: Row) -> Clause:
        """The share outside in units of chance, (1 − r/m)(1 − r/n); of a product of 0, which moves one side, 1 − r/n.

        1 where the gradient does not know of the pair.
        """
        one_sided = row.rank is None and self.form == "delta" and self.start == "zero"
        level = 1 - chance("right" if one_sided else "either", rank, row.shape)
        return clause(name, op, None if share is None or level == 0 else share / level, getattr(self, name), 1.0)

    def _risen(self, probation: Mapping[str, Any], losses: Sequence[float]) -> tuple[Clause, Clause]:
        """The rise of the window's mean loss since before the switch, in nats and in its standard error."""
        recent = _last(losses, self.window)
        rise = fmean(recent) - probation["before"]
        error = probation["deviation"] * (1 / self.window + 1 / len(recent)) ** 0.5
        z = rise / error if error > 0 else None
        return clause("loss_rise", ">", rise, self.loss_rise), clause("loss_z", ">", z, self.loss_z, 0.0)

    def settle(
        self, rows: Sequence[Row], decisions: Sequence[Decision], states: Sequence[State]
    ) -> tuple[list[Decision], list[State]]:
        """At most `layers_per_event` go low-rank, those of the smallest jump; a risen loss is the last event's doing.

        Of layers in probation only those that went low-rank last are rolled back; the others are watched on.
        """
        decided, after = list(decisions), list(states)
        low = [i for i, decision in enumerate(decided) if decision.action == "to_low_rank"]
        low.sort(key=lambda i: (_jump(rows[i]), rows[i].layer))
        for i in low[self.layers_per_event :]:
            changes = {"went_low": states[i]["went_low"] - 1, "probation": None, "held": self.patience}
            decided[i] = Decision(rows[i].mode, "none", None, decided[i].clauses, "event_full")
            after[i] = {**states[i], **changes, "place": self._place(rows[i])}
        watched = [i for i, row in enumerate(rows) if row.rank is not None and states[i].get("probation")]
        latest = max((states[i]["probation"]["since"] for i in watched), default=0)
        for i in watched:
            if decided[i].action == "rollback" and states[i]["probation"]["since"] < latest:
                decided[i] = Decision("probation", "none", rows[i].rank, decided[i].clauses, "charged_to_a_later_one")
                after[i] = {**states[i], "went_back": states[i]["went_back"] - 1, "wait": 0}
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

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Whether each clause can hold: what only training tells is taken at its best."""
        if row.directions == 0:
            return ()
        rank = rank_for(self.ranks[-1], row.shape, "svd_policy.ranks")
        most = 1 / (1 - chance("either", rank, row.shape)) if rank < min(row.shape) else None
        can_go_back = most is not None and most >= self.outside_high
        share = rank / break_even(row.shape)
        return (
            Reach("lr_floor", ">=", self.lr_floor, 1.0, self.lr_floor <= 1, f"{self.lr_floor:g} of the peak rate"),
            Reach("overlap", ">=", self.overlap, 1.0, self.overlap <= 1, f"the {self.k} directions stand still"),
            Reach(
                "trial_jump", "<=", self.trial_jump, None, True, f"a trial at rank {rank}, {share:.2f} of break-even"
            ),
            Reach(
                "outside_low", "<=", self.outside_low, 0.0, self.outside_low >= 0, "a gradient that the pair follows"
            ),
            Reach("outside_high", ">=", self.outside_high, most, can_go_back, f"at rank {rank}, all of it outside"),
            Reach("loss_rise", ">", self.loss_rise, None, True, "a loss that rises"),
            Reach("loss_z", ">", self.loss_z, None, True, "a rise beyond the noise of the ticks before"),
        )


def _loss(row: Row) -> float:
    if row.loss is None:
        raise NotHeld(
            f"step {row.step} of {row.layer} has no loss, which ledgers of before 2026-11-29 do not hold; record the "
            f"run anew."
        )
    return row.loss


def _jump(row: Row) -> float:
    return row.trial.jump or 0.0 if row.trial is not None else 0.0


def _last(values: Sequence[Any], number: int) -> list[Any]:
    return list(values[-number:])
