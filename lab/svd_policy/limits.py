"""Limits of a policy's clauses: numbers as given, from chance, or from what a layer itself did in the warm-up."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from lab.errors import UsageError
from lab.ledger import Row
from lab.svd_policy import Decision, Reach, State
from lab.svd_policy.observing import Observing, default_decision

FEWEST = 5  # values of a layer from which a quantile is taken
Kept = Literal["at_least", "at_most"]  # at_most: of an alarm, which a layer that goes on as it did is not to raise
Thresholds = Literal["fixed", "quantile", "target"] | None  # None is `null`, as YAML and the command line read the word


@dataclass(frozen=True, kw_only=True)
class Limited(Observing):
    """The settings of a policy's limits, and its decisions at those that hold for a row.

    What a quantile is taken from lies in a layer's state, so that the policy stays a pure function of row and state.
    """

    warmup_steps: int  # optimizer steps without a decision
    thresholds: Thresholds = "fixed"
    false_alarm: float = 0.001  # null: probability, at each tick of each layer, with which chance alone crosses a limit
    quantile: float = 0.2  # quantile: share of a layer's ticks in the warm-up at which a clause would have held
    target_share: float = 0.3  # target: share of the layers that would have acted in the observed run
    observed_path: str | None = None  # target: that run, which is replayed before this one starts

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds not in ("fixed", None, "quantile", "target"):
            raise UsageError(f"svd_policy.thresholds={self.thresholds!r} is none of fixed, null, quantile, target.")
        for name, most in (("false_alarm", 0.5), ("quantile", 1.0), ("target_share", 1.0)):
            if not 0 < (value := getattr(self, name)) <= most:
                raise UsageError(f"svd_policy.{name}={value} must be above 0, and at most {most:g}.")
        ticks = -(-self.warmup_steps // (self.every_n_steps or 1))
        if self.thresholds == "quantile" and ticks < FEWEST:
            raise UsageError(
                f"svd_policy.thresholds=quantile takes limits from the warm-up, and warmup_steps={self.warmup_steps} "
                f"with every_n_steps={self.every_n_steps} holds {ticks} ticks; make it at least "
                f"{(FEWEST - 1) * (self.every_n_steps or 1) + 1} steps."
            )
        if self.thresholds == "target" and self.observed_path is None:
            raise UsageError(
                "svd_policy.thresholds=target finds its limit on an observed run, and svd_policy.observed_path names "
                "none; give it one, recorded with a limit that nothing meets."
            )

    @property
    @abstractmethod
    def learned(self) -> Mapping[str, Kept]:
        """The limits that a quantile of the warm-up replaces: held at that share of its ticks at least, or at most."""

    @property
    @abstractmethod
    def targeted(self) -> tuple[str, str]:
        """The limit that `target` finds, and the rule that is to fire with it."""

    @abstractmethod
    def decide_at(self, row: Row, state: State) -> tuple[Decision, State]:
        """The decision at the policy's limits as they are, on a weight that has a spectrum."""

    @abstractmethod
    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """The limits that chance alone crosses with at most about this probability at the row."""

    @abstractmethod
    def reach_at(self, row: Row) -> tuple[Reach, ...]:
        """The reach of each clause at the policy's limits as they are."""

    def bounded(self, limits: Mapping[str, float]) -> Mapping[str, float]:
        """Limits and what goes with them, kept to where they make sense."""
        return limits

    def decide(self, row: Row, state: State) -> tuple[Decision, State]:
        """The decision at the row's own limits."""
        waiting = default_decision(row)
        if waiting is not None:
            return waiting, state
        acting, held = self.acting(row, state)
        decision, after = acting.decide_at(row, held)
        if self.thresholds != "quantile":
            return decision, after
        if (limits := self._limits(row, state)) is not None:
            return decision, {**after, "limits": limits}
        seen = {name: list(values) for name, values in state.get("seen", {}).items()}
        for item in decision.clauses:
            if item.name in self.learned and item.value is not None:
                seen.setdefault(item.name, [item.op]).append(item.value)
        return decision, {**after, "seen": seen}

    def acting(self, row: Row, state: State) -> tuple[Self, State]:
        """The policy with the limits that hold for a row, and the state without what they come from."""
        held = {key: value for key, value in state.items() if key not in ("seen", "limits")}
        if self.thresholds is None:
            limits = self.bounded(self.null_limits(row, self.false_alarm))
            return replace(self, thresholds="fixed", **limits), held  # type: ignore[arg-type]
        if self.thresholds != "quantile":
            return self, held
        known = self._limits(row, state)
        if known is None:  # this layer's warm-up goes on
            return replace(self, thresholds="fixed", warmup_steps=row.step + 1), held
        return replace(self, thresholds="fixed", **self.bounded(known)), held  # type: ignore[arg-type]

    def _limits(self, row: Row, state: State) -> Mapping[str, float] | None:
        """Of a layer at a row: those it keeps, or those of a warm-up that has just ended; None in the warm-up.

        A clause without a value in the warm-up, such as an attack without a momentum, keeps the number that was given.
        """
        if "limits" in state:
            kept: Mapping[str, float] = state["limits"]
            return kept
        seen: Mapping[str, Sequence[Any]] = state.get("seen", {})
        if row.step < self.warmup_steps or not seen or any(len(held) <= FEWEST for held in seen.values()):
            return None
        at = {"at_least": limit_at, "at_most": limit_beyond}
        return {name: at[self.learned[name]](op, values, self.quantile) for name, (op, *values) in seen.items()}

    def reach(self, row: Row) -> tuple[Reach, ...]:
        """Of each clause whose limit is known before the run."""
        limits = self.null_limits(row, self.false_alarm) if self.thresholds is None and row.directions else {}
        acting = replace(self, thresholds="fixed", **self.bounded(limits))  # type: ignore[arg-type]
        unknown = self.bounded(dict.fromkeys(self.learned, 1.0)) if self.thresholds == "quantile" else {}
        return tuple(item for item in acting.reach_at(row) if item.name not in unknown)


def limit_at(op: str, values: Sequence[float], share: float) -> float:
    """The limit at which about a share of the values hold, put between two of them."""
    ordered = sorted(values, reverse=op in (">", ">="))
    place = min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))
    beyond = ordered[min(place + 1, len(ordered) - 1)]
    if beyond != ordered[place]:
        return (ordered[place] + beyond) / 2
    return math.nextafter(beyond, -math.inf if op in (">", ">=") else math.inf)


def limit_beyond(op: str, values: Sequence[float], share: float) -> float:
    """The limit at which no more than a share of the values hold, put between two of them; equal ones do not hold."""
    ordered = sorted(values, reverse=op in (">", ">="))
    place = min(len(ordered) - 1, math.floor(share * len(ordered)))
    if place > 0 and ordered[place - 1] != ordered[place]:
        return (ordered[place - 1] + ordered[place]) / 2
    return math.nextafter(ordered[place], math.inf if op in (">", ">=") else -math.inf)
