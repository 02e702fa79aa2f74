"""Policies that switch layers: the move that one asks for, how it is carried out, and what a schedule may not ask."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lab.errors import UsageError
from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.observing import Observing, default_decision

To = Literal["compress", "delta", "full"]
TARGETS: tuple[To, ...] = ("compress", "delta", "full")
Shapes = Mapping[str, tuple[int, int]]  # of the layers that may switch, (out, in), in module order


@dataclass(frozen=True)
class Move:
    """A change of one layer's form that a policy asks for."""

    layer: str
    to: To  # compress: the pair in the weight's place; delta: the pair on the frozen weight; full: back
    rank: int | None  # None for full
    reason: str


@dataclass(frozen=True, kw_only=True)
class Switching(Observing):
    """The settings of a switch; base of every policy that makes layers low-rank and full again."""

    residual: Literal["fade", "drop"]  # what a compressed layer's pair leaves of the weight: fades, or goes at once
    fade_steps: int  # optimizer steps through which it fades
    start: Literal["zero", "minor"]  # of a delta's pair: a product of 0, or the weight's smallest directions

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (("residual", ("fade", "drop")), ("start", ("zero", "minor"))):
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(f"svd_policy.{name}={value!r} is none of {', '.join(allowed)}.")
        if self.fade_steps < 1:
            raise UsageError(f"svd_policy.fade_steps={self.fade_steps} must be at least 1; use residual=drop for none.")

    def check_steps(self, total_steps: int) -> None:
        """Raises UsageError where what the policy plans cannot be done in so many steps, whatever the layers."""

    def check_schedule(self, shapes: Shapes, total_steps: int) -> None:
        """Raises UsageError where what the policy plans cannot be done in a run of so many steps on these layers."""

    def due(self, step: int, total_steps: int, shapes: Shapes) -> Sequence[Move]:
        """Moves that follow from the number of optimizer steps taken, of a run's, alone; 0 is before the first."""
        return ()

    def foreseen(self, total_steps: int, shapes: Shapes) -> Sequence[tuple[int, Sequence[Move]]]:
        """The moves that can be known before the run, by the number of optimizer steps taken, in order: what is due.

        A policy that decides by what it measures gives each layer's first one, as early as it may come.
        """
        return [(step, due) for step in range(total_steps) if (due := self.due(step, total_steps, shapes))]

    def first_tick(self, warmup_steps: int) -> int:
        """The step of the first tick behind a warm-up."""
        assert self.every_n_steps is not None, "a policy without ticks"
        return -(-warmup_steps // self.every_n_steps) * self.every_n_steps

    @property
    def tried_form(self) -> Literal["compress", "delta"]:
        """What a layer comes to in a trial."""
        return "compress"

    def trial_rank(self, row: Row, state: State) -> int | None:
        """The rank at which the row's layer, which trains in full, is to be tried before `decide` is asked about it.

        Pure, like `decide`; None for no trial, which is dear: a decomposition and a forward pass.
        """
        return None

    @abstractmethod
    def move(self, row: Row, decision: Decision) -> Move | None:
        """The move that a decision at a tick asks for, None where it asks for none."""


class ByStep(Switching):
    """Base of policies whose `due` alone says what switches, whatever is measured."""

    @property
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """Empty: no measurement makes it act."""
        return {}

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """Keep the layer as it is: the steps of its switches are not the ticks'."""
        return default_decision(row) or Decision(row.mode, "none", row.rank, (), "scheduled"), state

    def move(self, row: Row, decision: Decision) -> Move | None:
        """None: see `due`."""
        return None

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Empty: there is no clause to hold."""
        return ()


def break_even(shape: tuple[int, int]) -> float:
    """m·n/(m + n): the rank above which two factors cost more than the weight."""
    return math.prod(shape) / sum(shape)


def check_rank(rank: Any, key: str) -> None:
    """Raises UsageError for what is neither a whole number from 1 nor a share of break-even."""
    if isinstance(rank, float) and 0 < rank <= 1:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise UsageError(
            f"{key}={rank!r} is no rank; give a whole number from 1, or a share of the break-even rank such as 0.5."
        )


def rank_for(rank: Any, shape: tuple[int, int], key: str) -> int:
    """A rank of a layer: a whole number as it is, or a share of break-even, rounded down and at least 1.

    Raises UsageError for what is neither, and for more than the smaller side.
    """
    check_rank(rank, key)
    if isinstance(rank, float):
        return max(1, int(rank * break_even(shape)))
    if rank > min(shape):
        raise UsageError(f"{key}={rank} is more than the smaller side of a {shape[0]}x{shape[1]} layer; lower it.")
    return rank


def check_saves(rank: int, layer: str, shape: tuple[int, int], key: str) -> None:
    """Raises UsageError for a rank of `compress` at which two factors cost more than the weight that they replace."""
    if rank > break_even(shape):
        raise UsageError(
            f"{key}={rank} is above the break-even rank {break_even(shape):.0f} of {layer} ({shape[0]}x{shape[1]}), so "
            f"compressing it would cost memory and time; lower it, or use delta."
        )
