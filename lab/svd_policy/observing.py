"""Settings of the spectral measurement, which every policy with ticks shares."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from lab.errors import UsageError
from lab.ledger import Row
from lab.spectral.diagnosis import Engine
from lab.svd_policy import Decision, Reach, State


@dataclass(frozen=True, kw_only=True)
class Observing(ABC):
    """The settings of the measurement; base of every policy that has ticks."""

    every_n_steps: int | None  # optimizer steps between ticks; None: none ever
    target_modules: str | Sequence[str]
    log_layers: int
    k: int  # principal directions; not a LoRA rank
    oversample: int
    engine: Engine
    exact_every_n_ticks: int
    budget: float | None  # share of the training FLOPs that ticks may take; None: every layer at every tick
    layers_per_tick: float = (
        1.0  # share of the layers at each tick, in turns; a layer's angle is since its own last tick
    )
    on_non_finite: Literal["hold", "stop"]  # what a layer with such weights does: waits, or ends the run as diverged

    def __post_init__(self) -> None:
        for name, least in (("every_n_steps", 1), ("k", 1), ("oversample", 2), ("exact_every_n_ticks", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise UsageError(f"svd_policy.{name}={getattr(self, name)} is too small; it must be at least {least}.")
        if self.engine not in ("warm", "exact"):
            raise UsageError(f"svd_policy.engine={self.engine!r} is none of warm, exact.")
        if self.on_non_finite not in ("hold", "stop"):
            raise UsageError(f"svd_policy.on_non_finite={self.on_non_finite!r} is none of hold, stop.")
        if not 0 < self.layers_per_tick <= 1:
            raise UsageError(
                f"svd_policy.layers_per_tick={self.layers_per_tick} is no share of the layers; give a number above 0, "
                f"at most 1, such as 0.5 for every other tick."
            )
        if self.budget is not None and not (math.isfinite(self.budget) and self.budget > 0):
            raise UsageError(
                f"svd_policy.budget={self.budget} is no share of training; give a number above 0, or null."
            )
        for item in fields(self):
            if isinstance(value := getattr(self, item.name), float) and not math.isfinite(value):
                raise UsageError(f"svd_policy.{item.name}={value} is not finite; give a number, a large one for never.")

    def decides_after(self, step: int) -> bool:
        """True where the optimizer step just taken, counted from 1, is one that a tick measured."""
        return self.every_n_steps is not None and step > 0 and (step - 1) % self.every_n_steps == 0

    def check_run(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        """Raises UsageError where a layer has fewer than k directions, and for rules without a tick to decide at."""
        if self.rules and self.every_n_steps is None:
            raise UsageError(
                "svd_policy.every_n_steps=null looks at no step, so the policy would decide nothing; give a number."
            )
        for name, shape in shapes.items():
            if self.k > min(shape):
                raise UsageError(
                    f"svd_policy.k={self.k} is more than {name} has directions ({shape[0]}x{shape[1]}); "
                    f"lower k to {min(shape)}, or leave the layer out of svd_policy.target_modules."
                )

    @property
    @abstractmethod
    def rules(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the clauses that must hold together for each reason to act; empty where it never acts."""

    @abstractmethod
    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """The decision on the row's layer and the state handed back at its next tick: a pure function of both."""

    @abstractmethod
    def reach(self, row: Row) -> tuple[Reach, ...]:
        """For each clause, whether it can hold at the row's spectrum; empty without clauses."""


def default_decision(row: Row) -> Decision | None:
    """The decision on a weight without a spectrum, in every policy: hold what is not finite, wait while it is zero.

    None where the policy itself is to decide.
    """
    if row.reason == "non_finite":
        return Decision("hold", "none", row.rank, (), "non_finite")
    if row.reason == "zero_matrix":
        return Decision(row.mode, "none", row.rank, (), "zero_matrix")
    return None
