"""Limits proposed from what a run recorded: by quantile, by false-alarm rate, or by how many layers should fire."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from lab.errors import UsageError
from lab.ledger import Row
from lab.svd_policy import SvdPolicy
from lab.svd_policy.decisions import Decided, decide_all, decide_while_held
from lab.svd_policy.limits import Limited, limit_at

QUANTILE = 0.2  # of the ticks in the calibration window that should hold
FALSE_ALARMS = 0.05  # over the whole run and all layers
SHARE_OF_LAYERS, BY = 0.3, 0.5  # about 30 % of the layers by half the run


@dataclass(frozen=True)
class Suggestion:
    """Limits to try, as settings of the policy."""

    kind: str  # quantile | null | target
    rule: str  # the reason to act that these limits are for
    limits: dict[str, float]
    says: str

    def overrides(self) -> str:
        """The limits as command-line overrides."""
        return " ".join(f"svd_policy.{name}={value:.4g}" for name, value in self.limits.items())


@runtime_checkable
class NullLimits(Protocol):
    """A policy that knows what chance alone would do to its clauses."""

    def null_limits(self, row: Row, false_alarm: float) -> Mapping[str, float]:
        """Limits that unrelated directions cross with at most about this probability per row."""
        ...


def suggest(rows: Sequence[Row], policy: SvdPolicy) -> list[Suggestion]:
    """Every kind of suggestion that the ledger allows for the policy's rules; empty for a policy without rules.

    Each can be set as it is; what would contradict the policy's other settings says so, and has no limits.
    """
    decisions = decide_all(rows, policy)
    suggestions = []
    for rule, names in policy.rules.items():
        suggestions += [*_by_quantile(decisions, rule, names), *_by_target(rows, decisions, policy, rule, names)]
    if isinstance(policy, NullLimits):
        suggestions += _by_null(rows, decisions, policy, policy.rules)
    return [_settable(policy, each) for each in suggestions]


def _bounded(policy: SvdPolicy, limits: Mapping[str, float]) -> Mapping[str, float]:
    """Limits as the policy would take them up itself, with those that keep to them."""
    return policy.bounded(limits) if isinstance(policy, Limited) else limits


def _settable(policy: SvdPolicy, suggestion: Suggestion) -> Suggestion:
    limits = dict(_bounded(policy, suggestion.limits))
    try:
        dataclasses.replace(policy, **limits)  # type: ignore[type-var]
    except UsageError as error:
        return dataclasses.replace(suggestion, limits={}, says=f"{suggestion.says}; not to be set so: {error}")
    return dataclasses.replace(suggestion, limits=limits)


def _at(policy: SvdPolicy, limits: Mapping[str, float]) -> SvdPolicy | None:
    """The policy at other limits; None where they contradict its other settings."""
    try:
        return dataclasses.replace(policy, **_bounded(policy, limits))  # type: ignore[type-var]
    except UsageError:
        return None


def values_of(decisions: Sequence[Decided], names: Sequence[str]) -> dict[str, tuple[str, list[float]]]:
    """Per clause name its operator and all values it took."""
    values: dict[str, tuple[str, list[float]]] = {}
    for row in decisions:
        for clause in row["clauses"]:
            if clause["name"] in names and clause["value"] is not None:
                values.setdefault(clause["name"], (clause["op"], []))[1].append(clause["value"])
    return values


def _by_quantile(decisions: Sequence[Decided], rule: str, names: Sequence[str]) -> list[Suggestion]:
    last = max((row["step"] for row in decisions), default=0)
    values = values_of([row for row in decisions if row["step"] > last / 2], names)
    if set(values) != set(names):
        return []
    limits = {name: limit_at(op, held, QUANTILE) for name, (op, held) in values.items()}
    says = f"each clause holds at {QUANTILE:.0%} of the ticks of the second half (steps {last // 2} to {last})"
    return [Suggestion("quantile", rule, limits, says)]


def _by_target(
    rows: Sequence[Row], decisions: Sequence[Decided], policy: SvdPolicy, rule: str, names: Sequence[str]
) -> list[Suggestion]:
    """The strictest common quantile of the rule's clauses at which enough layers fire in time, by bisection."""
    until = BY * max((row.step for row in rows), default=0)
    early = [row for row in rows if row.step <= until]
    values = values_of([row for row in decisions if row["step"] <= until], names)
    wanted = SHARE_OF_LAYERS * len({row.layer for row in rows})
    if set(values) != set(names):
        return []

    def fires(share: float) -> tuple[int, dict[str, float]]:
        limits = {name: limit_at(op, held, share) for name, (op, held) in values.items()}
        tried = _at(policy, limits)
        decided = decide_while_held(early, tried) if tried is not None else []
        return len({row["layer"] for row in decided if row["reason"] == rule}), limits

    low, high = 0.0, 1.0
    count, limits = fires(high)
    if count < wanted:
        return []
    for _ in range(8):
        middle = (low + high) / 2
        tried_count, tried = fires(middle)
        if tried_count >= wanted:
            high, count, limits = middle, tried_count, tried
        else:
            low = middle
    layers = len({row.layer for row in rows})
    says = f"{count} of {layers} layers fire by step {until:.0f} ({SHARE_OF_LAYERS:.0%} asked)"
    return [Suggestion("target", rule, limits, says)]


def _by_null(
    rows: Sequence[Row], decisions: Sequence[Decided], policy: NullLimits, rules: Mapping[str, tuple[str, ...]]
) -> list[Suggestion]:
    """The strictest limit of all rows, since chance catches the more, the narrower a layer is."""
    layers, ticks = len({row.layer for row in rows}), len({row.step for row in rows})
    each = FALSE_ALARMS / max(1, layers * ticks)
    limits: dict[str, list[float]] = {}
    for row in rows:
        for name, limit in policy.null_limits(row, each).items():
            limits.setdefault(name, []).append(limit)
    says = f"chance alone would cross it at most about {FALSE_ALARMS:g} times in {layers} layers x {ticks} ticks"
    suggestions = []
    for rule, names in rules.items():
        ops = {name: op for name, (op, _) in values_of(decisions, names).items()}
        if all(name in limits and name in ops for name in names):
            strictest = {name: (max if ops[name] in (">", ">=") else min)(limits[name]) for name in names}
            suggestions.append(Suggestion("null", rule, strictest, says))
    return suggestions
