"""Clauses of a layer that may go low-rank: its settings, what each limit is compared with, and what chance gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from lab.errors import UsageError
from lab.ledger import Row
from lab.spectral.chance import chance
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy import Clause, Reach, clause
from lab.svd_policy.attack import check_counts
from lab.svd_policy.limits import Kept, Limited
from lab.svd_policy.switching import Shapes, Switching, break_even, check_rank, check_saves, rank_for

ELIGIBLE, OUTSIDE, ROSE = "eligible", "gradient_outside", "loss_rose"
CHEAP = {"lr_floor": "lr_low", "overlap": "turning"}  # clauses that need no trial, and why a layer is not tried


@dataclass(frozen=True, kw_only=True)
class LowRankLimits(Limited, Switching):
    """The settings of the state machine, and its clauses."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("compress", "delta"):
            raise UsageError(f"svd_policy.form={self.form!r} is none of compress, delta.")
        if not self.ranks:
            raise UsageError("svd_policy.ranks is empty, so no layer could go low-rank; give one, such as [0.8].")
        for rank in self.ranks:
            check_rank(rank, "svd_policy.ranks")
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

    def check_steps(self, total_steps: int) -> None:
        """Raises UsageError for a warm-up to the end."""
        if self.warmup_steps >= total_steps:
            raise UsageError(
                f"svd_policy.warmup_steps={self.warmup_steps} is not before the run's end, step {total_steps}, so the "
                f"policy would decide nothing; lower it."
            )

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError for a rank that a layer cannot have, or that saves nothing, and a warm-up to the end."""
        self.check_steps(total_steps)
        for name, shape in shapes.items():
            for asked in self.ranks:
                rank = rank_for(asked, shape, "svd_policy.ranks")
                if self.form == "compress":
                    check_saves(rank, name, shape, "svd_policy.ranks")

    @property
    def tried_form(self) -> Literal["compress", "delta"]:
        """What a layer comes to."""
        return self.form

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Low-rank where a trial says so, back where the gradient leaves the pair or the loss has risen."""
        eligible = (*CHEAP, "trial_jump", "outside_low")
        return {ELIGIBLE: eligible, OUTSIDE: ("outside_high",), ROSE: ("loss_rise", "loss_z")}

    @property
    def learned(self) -> Mapping[str, Kept]:
        """How still a layer's directions stand: the other clauses have no value before a trial or a switch."""
        return {"overlap": "at_least"}

    @property
    def targeted(self) -> tuple[str, str]:
        """What a trial may cost; of a delta, which costs nothing, how much of the gradient it may leave."""
        return ("trial_jump" if self.form == "compress" else "outside_low"), ELIGIBLE

    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """The rise of the loss, in standard errors, that ticks of independent normal losses exceed so often.

        Student's, since their deviation is taken from `window` of them. The clauses on what lies outside of a pair are
        in units of chance as they are; the others have no chance level.
        """
        from scipy.special import stdtrit  # a third of a second, needed nowhere else

        return {"loss_z": float(stdtrit(self.window - 1, 1 - false_alarm))}

    def cheap(self, row: Row) -> tuple[Clause, Clause]:
        """The clauses that need no trial."""
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

    def tried(self, row: Row) -> tuple[Clause, Clause]:
        """The clauses on a trial."""
        trial = row.trial
        assert trial is not None, "no trial"
        jump = clause("trial_jump", "<=", trial.jump, self.trial_jump)
        return jump, self.outside_clause("outside_low", "<=", trial.outside, trial.rank, row)

    def outside_clause(self, name: str, op: Literal["<=", ">="], share: float | None, rank: int, row: Row) -> Clause:
        """The share outside in units of chance, (1 − r/m)(1 − r/n); of a product of 0, which moves one side, 1 − r/n.

        1 where the gradient does not know of the pair.
        """
        one_sided = row.rank is None and self.form == "delta" and self.start == "zero"
        level = 1 - chance("right" if one_sided else "either", rank, row.shape)
        value = None if share is None else share / level if level else 0.0  # a pair of full rank follows all of it
        return clause(name, op, value, getattr(self, name), 1.0)

    def risen(self, probation: Mapping[str, Any], losses: Sequence[float]) -> tuple[Clause, Clause]:
        """The rise of the window's mean loss since before the switch, in nats and in its standard error."""
        recent = last(losses, self.window)
        rise = fmean(recent) - probation["before"]
        error = probation["deviation"] * (1 / self.window + 1 / len(recent)) ** 0.5
        z = rise / error if error > 0 else None
        return clause("loss_rise", ">", rise, self.loss_rise), clause("loss_z", ">", z, self.loss_z, 0.0)

    def reach_at(self, row: Row) -> tuple[Reach, ...]:
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


def last(values: Sequence[Any], number: int) -> list[Any]:
    """So many at the end."""
    return list(values[-number:])
