"""Reachability of a policy's rules before anything has happened. No torch."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.ledger import Row
from lab.spectral.chance import SIDES
from lab.svd_policy import Reach, SvdPolicy
from lab.svd_policy.bound import Bound, Prospect


@dataclass(frozen=True)
class Blocked:
    """A rule that cannot fire, and the clause that forbids it most often."""

    reason: str  # of the rule
    clause: Reach  # where its best value comes closest to the limit
    failing: int  # spectra at which this clause cannot hold
    of: int

    def __str__(self) -> str:
        best = "undefined" if self.clause.best is None else f"{self.clause.best:.4g}"
        return (
            f"{self.reason} cannot fire: {self.clause.name} {self.clause.op} {self.clause.limit:g} can hold at "
            f"{self.of - self.failing} of {self.of} spectra (best {best}); it needs {self.clause.needs}."
        )


def blocked_rules(policy: SvdPolicy, rows: Iterable[Row]) -> list[Blocked]:
    """The rules that can fire at none of the given rows' spectra; empty where each can at some."""
    reaches = [reach for row in rows if (reach := {item.name: item for item in policy.reach(row)})]
    blocked = []
    for reason, names in policy.rules.items():
        failing = [[name for name in names if name in reach and not reach[name].can_hold] for reach in reaches]
        misses, everywhere = Counter(name for each in failing for name in each), all(failing)
        if not misses or not everywhere:
            continue
        name, times = misses.most_common(1)[0]
        nearest = min((reach[name] for reach in reaches), key=lambda reach: reach.shortfall)
        blocked.append(Blocked(reason, nearest, times, len(reaches)))
    return blocked


def reachability_record(
    policy: SvdPolicy, first: Sequence[Row], bound: Bound, prospect: Prospect | None
) -> dict[str, Any]:
    """Reach of every clause on every layer, chance levels per shape, the rules that cannot fire, bound and prospect.

    In plain types, for a run's record; `first` holds each layer's first row.
    """
    ranks = {f"{m}x{n}": rank for (m, n), rank in bound.break_even_rank.items()}
    return {
        "reach": {row.layer: [asdict(item) for item in policy.reach(row)] for row in first} if policy.rules else {},
        "chance": {
            f"{row.shape[0]}x{row.shape[1]}": {"k": row.k, **{side: row.chance(side, row.k) for side in SIDES}}
            for row in first
        },
        "cannot_fire": [str(blocked) for blocked in blocked_rules(policy, first)],
        "bound": {**asdict(bound), "break_even_rank": ranks},
        "prospect": None if prospect is None else asdict(prospect),
    }
