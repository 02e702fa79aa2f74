"""A policy that switches at random: the null of every policy that decides, at the same cost of measuring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

import numpy as np

from lab.errors import UsageError
from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.observing import default_decision
from lab.svd_policy.switching import Move, Shapes, Switching, check_rank, check_saves, rank_for


@dataclass(frozen=True, kw_only=True)
class RandomSwitches(Switching):
    """At each tick a full layer becomes low-rank, and a low-rank one full, with one probability, whatever was seen."""

    form: Literal["compress", "delta"]
    rank: Any  # a whole number, or a share of break-even
    probability: float  # of a switch, at each tick, of each layer
    warmup_steps: int  # optimizer steps without a switch
    seed: int  # of the draws, which depend on it, the layer and the step alone

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rank(self.rank, "svd_policy.rank")
        if not 0 <= self.probability <= 1:
            raise UsageError(f"svd_policy.probability={self.probability} is no probability; give one from 0 to 1.")
        if self.form not in ("compress", "delta"):
            raise UsageError(f"svd_policy.form={self.form!r} is none of compress, delta.")

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError for a rank that a layer cannot have, or that saves nothing where it is to."""
        for name, shape in shapes.items():
            rank = rank_for(self.rank, shape, "svd_policy.rank")
            if self.form == "compress":
                check_saves(rank, name, shape, "svd_policy.rank")

    def foreseen(self, total_steps: int, shapes: Shapes) -> Sequence[tuple[int, Sequence[Move]]]:
        """Every layer drawn at the first tick behind the warm-up."""
        ranks = {name: rank_for(self.rank, shape, "svd_policy.rank") for name, shape in shapes.items()}
        moves = [Move(name, self.form, rank, "drawn") for name, rank in ranks.items()]
        return [(self.first_tick(self.warmup_steps) + 1, moves)] if self.probability > 0 else []

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Empty: no measurement makes it act."""
        return {}

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """Switch with `probability`; a layer that fades is left to it."""
        waiting = default_decision(row)
        if waiting is not None:
            return waiting, state
        if row.step < self.warmup_steps:
            return Decision(row.mode, "none", row.rank, (), "warmup"), state
        if row.mode == "probation":
            return Decision(row.mode, "none", row.rank, (), "fading"), state
        draw = np.random.Generator(
            np.random.Philox(key=[self.seed, crc32(row.layer.encode()) << 32 | row.step])
        ).random()
        if draw >= self.probability:
            return Decision(row.mode, "none", row.rank, (), "not_drawn"), state
        if row.mode == "low_rank":
            return Decision("full", "to_full", None, (), "drawn"), state
        rank = rank_for(self.rank, row.shape, "svd_policy.rank")
        mode: Any = "probation" if self.form == "compress" and self.residual == "fade" else "low_rank"
        return Decision(mode, "to_low_rank", rank, (), "drawn"), state

    def move(self, row: Row, decision: Decision) -> Move | None:
        """The switch that was drawn."""
        if decision.action == "to_low_rank":
            return Move(row.layer, self.form, decision.rank, decision.reason)
        return Move(row.layer, "full", None, decision.reason) if decision.action == "to_full" else None

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Empty: there is no clause to hold."""
        return ()
