"""Summary of a run's decisions: for each layer, which clause was in the way, how often alone, and how close it came."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.svd_policy.decisions import Decided


@dataclass(frozen=True)
class Miss:
    """A tick at which a rule did not fire."""

    step: int
    clause: str  # the one furthest from holding
    value: float
    limit: float
    shortfall: float  # what was missing, relative to the limit


@dataclass(frozen=True)
class RuleSummary:
    """One rule on one layer."""

    layer: str
    reason: str
    ticks: int  # at which all of the rule's clauses had a value
    fired: int
    first_fire: int | None  # step
    binding: str | None  # the clause that failed most often; None where the rule always fired or was never tested
    failed: Mapping[str, int]  # clause -> ticks at which it did not hold
    alone: Mapping[str, int]  # clause -> ticks at which it alone did not hold
    nearest: Miss | None  # None where the rule fired at every tick, or was never tested


def summarise(decisions: Iterable[Decided], rules: Mapping[str, tuple[str, ...]]) -> list[RuleSummary]:
    """A row per layer and rule, layers in the order of first appearance."""
    by_layer: dict[str, list[Decided]] = {}
    for decision in decisions:
        by_layer.setdefault(decision["layer"], []).append(decision)
    return [_one(layer, reason, names, rows) for layer, rows in by_layer.items() for reason, names in rules.items()]


def _one(layer: str, reason: str, names: Sequence[str], rows: Sequence[Decided]) -> RuleSummary:
    failed: Counter[str] = Counter()
    alone: Counter[str] = Counter()
    misses: list[Miss] = []
    ticks, fires = 0, []
    for row in rows:
        clauses = {clause["name"]: clause for clause in row["clauses"]}
        if any(name not in clauses or clauses[name]["value"] is None for name in names):
            continue
        ticks += 1
        missing = [clauses[name] for name in names if not clauses[name]["holds"]]
        if row["reason"] == reason:
            fires.append(row["step"])
        failed.update(clause["name"] for clause in missing)
        if len(missing) == 1:
            alone[missing[0]["name"]] += 1
        if missing:
            misses.append(max((_miss(row["step"], clause) for clause in missing), key=lambda miss: miss.shortfall))
    # Of clauses that fail equally often, the one that failed alone is in the way.
    binding = max(failed, key=lambda name: (failed[name], alone[name]), default=None)
    nearest = min(misses, key=lambda miss: miss.shortfall, default=None)
    first = fires[0] if fires else None
    return RuleSummary(layer, reason, ticks, len(fires), first, binding, dict(failed), dict(alone), nearest)


def _miss(step: int, clause: Mapping[str, Any]) -> Miss:
    scale = abs(clause["limit"]) or 1.0
    return Miss(step, clause["name"], clause["value"], clause["limit"], -clause["margin"] / scale)


@dataclass(frozen=True)
class Approach:
    """A clause on its way to its limit."""

    layer: str
    clause: str
    op: str
    value: float
    limit: float
    margin: float
    slope: float | None  # per step, over the last ticks; None with fewer than two
    eta: float | None  # steps until it holds if it goes on so; None where it moves away, 0 where it holds


def approaches(decisions: Iterable[Decided], ticks: int = 5) -> list[Approach]:
    """The latest state of every clause of every layer, nearest to its limit first (relative to the limit).

    The slope is the least-squares line through the last `ticks` values.
    """
    series: dict[tuple[str, str], list[tuple[int, Mapping[str, Any]]]] = {}
    for row in decisions:
        for clause in row["clauses"]:
            if clause["value"] is not None:
                series.setdefault((row["layer"], clause["name"]), []).append((row["step"], clause))
    latest = []
    for (layer, name), points in series.items():
        last = points[-1][1]
        slope = _slope([(step, clause["value"]) for step, clause in points[-ticks:]])
        eta = 0.0 if last["holds"] else _eta(last, slope)
        latest.append(Approach(layer, name, last["op"], last["value"], last["limit"], last["margin"], slope, eta))
    return sorted(latest, key=lambda item: abs(item.margin) / (abs(item.limit) or 1.0))


def _slope(points: Sequence[tuple[int, float]]) -> float | None:
    if len(points) < 2:
        return None
    mean_step = sum(step for step, _ in points) / len(points)
    mean_value = sum(value for _, value in points) / len(points)
    spread = sum((step - mean_step) ** 2 for step, _ in points)
    return sum((step - mean_step) * (value - mean_value) for step, value in points) / spread


def _eta(clause: Mapping[str, Any], slope: float | None) -> float | None:
    towards = slope is not None and (slope > 0) == (clause["op"] in (">", ">="))
    return abs((clause["limit"] - clause["value"]) / slope) if towards and slope else None
