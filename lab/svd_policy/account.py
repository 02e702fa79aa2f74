"""What a run's record keeps of its policy: what could happen, before anything has. No torch."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lab.ledger import Row
from lab.spectral.chance import SIDES
from lab.svd_policy import SvdPolicy
from lab.svd_policy.reachability import Bound, blocked_rules


def before(policy: SvdPolicy, first: Sequence[Row], bound: Bound) -> dict[str, Any]:
    """Reach of every clause on every layer, chance levels per shape, the rules that cannot fire, and the bound.

    `first` holds each layer's first row.
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
    }
