"""Policies that decide when a layer may train low-rank, and their protocol. No torch: replay runs on rows alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from lab.ledger import Mode, Row

Action = Literal["none", "to_low_rank", "to_full", "resize", "guard", "release", "accept", "rollback"]
Op = Literal["<", "<=", ">", ">="]
State = Mapping[str, Any]  # what a policy remembers of one layer, in plain types, so that a checkpoint may hold it


@dataclass(frozen=True)
class Clause:
    """One condition of a rule with its numbers: `value op limit`."""

    name: str
    op: Op
    value: float | None  # None where the quantity is undefined; `reason` of the decision says why
    limit: float
    margin: float | None  # in the value's unit; >= 0 where the clause holds, so -margin is what is missing
    holds: bool
    chance: float | None  # what unrelated (Haar-random) directions would give; None where chance has no meaning


def clause(name: str, op: Op, value: float | None, limit: float, chance: float | None = None) -> Clause:
    """The clause `value op limit`; an undefined value never holds."""
    if value is None:
        return Clause(name, op, None, limit, None, False, chance)
    holds = {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[op]
    margin = value - limit if op in (">", ">=") else limit - value
    return Clause(name, op, value, limit, margin, holds, chance)


@dataclass(frozen=True)
class Decision:
    """The decision on one layer at one tick, and every number behind it; doing nothing is a decision too."""

    mode: Mode  # the mode the layer is to be in from here on
    action: Action  # what it takes to get there
    rank: int | None  # trainable rank asked for; None where the layer has none
    clauses: tuple[Clause, ...]  # in the order in which they were tested
    reason: str


@dataclass(frozen=True)
class Reach:
    """The reach of a clause: whether it can hold at all, judged by one row before anything has happened."""

    name: str  # of the clause
    op: Op
    limit: float
    best: float | None  # the best value the row's spectrum allows; None where it allows none
    can_hold: bool
    needs: str  # what it would take, with the arithmetic

    @property
    def shortfall(self) -> float:
        """The distance of the best value from the limit, in its unit; below 0 beyond it, inf without a value."""
        if self.best is None:
            return math.inf
        return self.best - self.limit if self.op in ("<", "<=") else self.limit - self.best


class SvdPolicy(Protocol):
    """A policy is a pure function of (ledger row, state): the same rows give the same decisions, live or in replay.

    A clause bears the name of the setting that holds its limit, so that replay can sweep and suggest limits.
    """

    @property
    def every_n_steps(self) -> int | None:
        """Optimizer steps between ticks; None means that nothing is measured."""
        ...

    @property
    def target_modules(self) -> str | Sequence[str]:
        """The linear layers that are observed, in the words of `lab.layer.find_targets`."""
        ...

    @property
    def log_layers(self) -> int:
        """Number of layers that get scalars of their own on the dashboard."""
        ...

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """The clauses that must hold together for each reason to act; empty where the policy never acts."""
        ...

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """The decision on the row's layer, and the state to remember of it.

        `state` is what was returned at the layer's last tick, {} at first; it is not changed.
        """
        ...

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """The reach of each clause at the row's spectrum."""
        ...


@runtime_checkable
class Settles(Protocol):
    """A policy with limits that hold across a tick's layers, on top of what `decide` says of each."""

    def settle(
        self,
        rows: Sequence[Row],
        decisions: Sequence[Decision],
        states: Sequence[State],
        others: Mapping[str, State],
    ) -> tuple[Sequence[Decision], Sequence[State]]:
        """The tick's decisions in the end, and what to remember of each layer: pure, like `decide`.

        `states` are those that `decide` gave with the decisions, `others` those of the layers that this tick left out.
        """
        ...
