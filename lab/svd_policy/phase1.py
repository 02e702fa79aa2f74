"""The rule of seed 001, decision for decision: what it did, and why it never switched for a good reason."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lab.errors import UsageError
from lab.ledger import Row
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy import Action, Clause, Decision, Reach, State, clause
from lab.svd_policy.observing import default_decision
from lab.svd_policy.switching import Move, Shapes, Switching

SKETCHED = 2.0  # by which a sketched concentration is taken higher: its error is up to a half of it, to both sides
DANGER, OPTIMAL = "gradient_clobbering_risk", "optimal_lowrank_conditions"


@dataclass(frozen=True, kw_only=True)
class Phase1(Switching):
    """Norm ratios against fixed limits, in the seed's order, and the switch that it meant: the minor directions train.

    Kept as it was, with what is wrong with it: a norm ratio read as a share (0.4 is 16 % of the energy), limits that
    know nothing of the dimension, a left side only, and a tail of r = g − k directions asked to be negligible. What the
    seed's code did not do, and its text says, is done: the principal directions are frozen, the rank changes, a layer
    comes back, and the optimizer keeps what it knows (docs/switch.md).
    """

    residual: Literal["fade", "drop"] = field(init=False, default="drop")  # of a delta: it keeps what the pair leaves
    fade_steps: int = field(init=False, default=1)
    start: Literal["zero", "minor"] = field(init=False, default="minor")
    principal_danger: float  # ‖U_kU_kᵀG‖/‖G‖ above it: the gradient attacks the principal directions
    minor_safe: float  # ‖U_mU_mᵀG‖/‖G‖ above it: the gradient stays outside them
    angle_stable: float  # radians; largest principal angle to the last tick below it: the directions stand still
    reconstruction_safe: float  # ‖W − W_k‖/‖W‖ below it: the other directions may be dropped
    warmup_steps: int  # optimizer steps without a decision
    rank_min: int  # the rank stays within rank_min and g − 1
    rank_energy: float  # share of the energy that the directions kept must hold
    rank_drift: float  # relative change of the weakest singular values above which the rank grows
    rank_grow: float
    rank_shrink: float

    def check_run(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises UsageError for a run of the seed's rule without whole spectra, too; a replay says what it lacks."""
        super().check_run(shapes)
        if self.engine != "exact":
            raise UsageError(
                f"svd_policy.engine={self.engine} gives no whole spectra, which this rule asks for; use exact."
            )
        for name, shape in shapes.items():
            if self.rank_min >= min(shape):
                raise UsageError(
                    f"svd_policy.rank_min={self.rank_min} leaves nothing of {name} ({shape[0]}x{shape[1]}) frozen; "
                    f"lower it below {min(shape)}, or leave the layer out of svd_policy.target_modules."
                )

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Either reason alone makes it go low-rank."""
        return {DANGER: ("principal_danger",), OPTIMAL: ("angle_stable", "minor_safe", "reconstruction_safe")}

    def foreseen(self, total_steps: int, shapes: Shapes) -> Sequence[tuple[int, Sequence[Move]]]:
        """Every layer at the second tick, or the first behind the warm-up, at its smallest first rank."""
        assert self.every_n_steps is not None, "a policy without ticks"
        first = max(self.first_tick(self.warmup_steps), self.every_n_steps) + 1
        moves = []
        for name, shape in shapes.items():
            rank = int(self.rank_shrink * (min(shape) - self.k))
            moves.append(Move(name, "delta", self._bounded(rank, min(shape)), DANGER))
        return [(first, moves)]

    def _bounded(self, rank: int, g: int) -> int:
        return max(self.rank_min, min(rank, g - 1))

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """The seed's decision; the first analysis only records a spectrum.

        A row without the whole spectrum answers as far as its curves do: the next rank is then None, and NotHeld is
        raised where the outcome hangs on a number that it lacks.
        """
        waiting = default_decision(row)
        if waiting is not None:
            return waiting, state
        S = [float(value) for value in row.singular_values]
        remembered = {"singular_values": S}
        if row.previous is None:
            return Decision(row.mode, "none", row.rank, (), "first_analysis"), remembered
        if row.step < self.warmup_steps:
            return Decision(row.mode, "none", row.rank, (), "warmup_period"), remembered
        if row.gradient is None or not row.gradient.total:
            return Decision(row.mode, "none", row.rank, (), "no_gradient_yet"), remembered
        g = min(row.shape)
        rank = g - self.k if row.rank is None else row.rank
        clauses = self._clauses(row, g - rank)
        before = state.get("singular_values")
        whole = row.whole and (before is None or len(before) == g)
        next_rank = self.next_rank(S, before, rank) if whole else None
        return self._decision(row, clauses, next_rank), remembered

    def _decision(self, row: Row, clauses: tuple[Clause, ...], next_rank: int | None) -> Decision:
        holds = {item.name: item.holds for item in clauses}
        lacking = [item.name for item in clauses if item.value is None and not row.whole]
        if lacking and not holds["principal_danger"] and holds["angle_stable"] and holds["reconstruction_safe"]:
            raise NotHeld(
                f"whether {row.layer} goes low-rank at step {row.step} hangs on {', '.join(lacking)}, and that step "
                f"has no whole spectrum; record with engine=exact."
            )
        for reason, names in self.rules.items():
            if all(holds[name] for name in names):
                action: Action = "to_low_rank" if row.mode != "low_rank" else "resize"
                return Decision("low_rank", action, next_rank, clauses, reason)
        if not holds["reconstruction_safe"]:
            back = row.mode == "low_rank"
            return Decision(
                "full" if back else row.mode, "to_full" if back else "none", None, clauses, "reconstruction_unsafe"
            )
        resized = row.mode == "low_rank"
        action = "resize" if resized else "none"
        return Decision(row.mode, action, next_rank if resized else None, clauses, "continue_current_mode")

    def _clauses(self, row: Row, k: int) -> tuple[Clause, ...]:
        """In the seed's order; it computed all four before testing any."""
        principal, minor, angle, error = self._values(row, k)
        m, g = row.shape[0], min(row.shape)
        return (
            clause("principal_danger", ">", principal, self.principal_danger, math.sqrt(k / m)),
            clause("angle_stable", "<", angle, self.angle_stable),
            clause("minor_safe", ">", minor, self.minor_safe, math.sqrt((g - k) / m)),
            clause("reconstruction_safe", "<", error, self.reconstruction_safe, math.sqrt(1 - k / g)),
        )

    def _values(self, row: Row, k: int) -> tuple[float | None, float | None, float | None, float | None]:
        seed = row.norm_ratios
        if seed is not None and seed.k == k:
            return seed.principal, seed.minor, seed.angle, seed.reconstruction_error
        # Otherwise the same quantities follow from the curves; the angle then comes from atan2 and has no floor.
        left = row.fraction("gradient", "left", k)
        if row.shape[0] <= row.shape[1]:  # the left singular vectors are a whole basis, and hold all of the gradient
            all_left: float | None = 1.0
        else:
            all_left = row.fraction("gradient", "left", row.directions) if row.whole else None
        outside = None if left is None or all_left is None else math.sqrt(max(0.0, all_left - left))
        turn = row.previous
        angle = None if turn is None else row.at(turn.angle_left, k, row.angle_counts)
        return None if left is None else math.sqrt(left), outside, angle, row.tail_error(k)

    def next_rank(self, S: Sequence[float], S_before: Sequence[float] | None, rank: int) -> int:
        """The seed's `determine_next_r`, in float32: the rank for the next mode, from this and the last spectrum."""
        values = np.asarray(S, np.float32)
        g = len(values)
        if S_before is not None and len(S_before) == g:
            weakest = min(rank, g // 4)
            before = np.asarray(S_before, np.float32)
            change = np.linalg.norm(values[-weakest:] - before[-weakest:])
            drift = float(change / (np.linalg.norm(before[-weakest:]) + np.float32(1e-10)))
            chosen = max(rank, int(self.rank_grow * rank)) if drift > self.rank_drift else int(self.rank_shrink * rank)
        else:
            ratios = values[:-1] / (values[1:] + np.float32(1e-10))
            share = np.cumsum(np.square(values)) / np.sum(np.square(values))
            needed = int((share < self.rank_energy).sum()) + 1
            chosen = min(g - int(ratios.argmax()), g - needed, g // 2)
        return self._bounded(chosen, g)

    def move(self, row: Row, decision: Decision) -> Move | None:
        """The seed's mode B and its ranks: none where the rank stays, or is not known without a whole spectrum."""
        if decision.action == "to_full":
            return Move(row.layer, "full", None, decision.reason)
        if decision.action not in ("to_low_rank", "resize") or decision.rank in (None, row.rank):
            return None
        return Move(row.layer, "delta", decision.rank, decision.reason)

    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """The principal norm ratio that a gradient unrelated to W exceeds with at most about this probability.

        Exact for a gradient of rank one; `lab.spectral.tail.quantile` says how near it is for others. Where their
        concentration was sketched, 1 % (0.1 %) are at most 0.7 % (0.13 %), simulated; taken as sketched, 1 % were up
        to 6 %. None where chance has no spread: k directions are all there are, or the gradient is orthogonal.
        """
        from lab.spectral.tail import quantile  # scipy, a third of a second, needed nowhere else

        shares = row.gradient
        if shares is None or not shares.total or self.k > row.directions:
            return {}
        concentration = min(1.0, shares.concentration * (SKETCHED if shares.sketched else 1.0))
        share = quantile("left", false_alarm, self.k, row.shape, concentration)
        return {} if share is None else {"principal_danger": math.sqrt(share)}

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Whether each clause can hold at this spectrum."""
        if row.directions == 0:
            return ()
        k, g, m = self.k, min(row.shape), row.shape[0]
        error = row.tail_error(k)
        assert error is not None
        return (
            Reach(
                "principal_danger",
                ">",
                self.principal_danger,
                1.0,
                self.principal_danger < 1,
                self._principal_needs(k, m),
            ),
            Reach("angle_stable", "<", self.angle_stable, 0.0, self.angle_stable > 0, self._angle_needs(row, k)),
            Reach("minor_safe", ">", self.minor_safe, 1.0, self.minor_safe < 1, self._minor_needs(k, g, m)),
            Reach(
                "reconstruction_safe",
                "<",
                self.reconstruction_safe,
                error,
                error < self.reconstruction_safe,
                self._tail_needs(row, k, g, error),
            ),
        )

    def _principal_needs(self, k: int, m: int) -> str:
        return (
            f"{self.principal_danger**2:.2%} of the gradient's energy in {k} of {m} left directions; "
            f"chance gives {k / m:.2%}"
        )

    def _minor_needs(self, k: int, g: int, m: int) -> str:
        text = f"{self.minor_safe**2:.2%} of the gradient's energy in the other {g - k} left directions"
        if g == m and self.minor_safe**2 <= 1 - self.principal_danger**2:
            return f"{text}; always so when principal_danger does not hold, since the two shares sum to 1"
        return text

    def _angle_needs(self, row: Row, k: int) -> str:
        gap = row.gap(k)
        if gap is None:
            return f"the {k} left directions turn by less than {self.angle_stable:g} rad between ticks"
        room = math.sin(min(self.angle_stable, math.pi / 2)) * gap * float(row.singular_values[0])
        return (
            f"W moves by less than about {room:.2g} in spectral norm between ticks, "
            f"since σ_{k} − σ_{k + 1} is {gap:.2%} of σ_1 = {float(row.singular_values[0]):.3g}"
        )

    def _tail_needs(self, row: Row, k: int, g: int, error: float) -> str:
        text = f"{1 - self.reconstruction_safe**2:.4%} of the energy in {k} of {g} directions; now {1 - error**2:.2%}"
        if not row.whole:
            return text
        enough = row.directions_for(self.reconstruction_safe)
        return f"{text}; it would hold from k = {g if enough is None else enough}"
