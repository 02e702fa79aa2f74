"""Limit of a policy at which a share of the layers would have acted in an observed run, found before another starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab import ledger
from lab.errors import UsageError
from lab.ledger import Row
from lab.replay.suggest import values_of
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy.decisions import decide_all, decide_while_held
from lab.svd_policy.limits import Limited

# How a run was measured, which a replay cannot change.
MEASURED = (
    "every_n_steps",
    "target_modules",
    "oversample",
    "engine",
    "exact_every_n_ticks",
    "budget",
    "layers_per_tick",
)


def limit_on(run_dir: Path, policy: Limited) -> tuple[str, float]:
    """The policy's targeted limit and its value, by the run's ledger; raises UsageError where that cannot answer."""
    name, _ = policy.targeted
    recorded = ledger.read(run_dir)
    held, closed = recorded.header["policy"], f"svd_policy.observed_path={run_dir}"
    for key in MEASURED:
        if key in held and held[key] != (asked := getattr(policy, key)):
            raise UsageError(f"{closed} was measured with {key}={held[key]}, and this run asks for {asked}; use one.")
    acted = next((row.step for row in recorded.rows if row.mode != "full"), None)
    if acted is not None:
        raise UsageError(f"{closed} acted itself, at step {acted}; observe with a {name} that nothing meets.")
    if name not in held:
        raise UsageError(f"{closed} was made by a policy without {name}; observe with this one.")
    try:
        return name, strictest(list(recorded.by_layer().values()), policy, held[name])
    except NotHeld as error:
        raise UsageError(f"{closed} cannot answer this: {error}") from None


def strictest(layers: Sequence[Sequence[Row]], policy: Limited, closed: float) -> float:
    """The strictest value of the targeted limit at which enough layers act, each replayed by itself.

    `closed` is the one that nothing met. By itself, since what follows a first switch no ledger knows.
    """
    name, rule = policy.targeted
    still = replace(policy, thresholds="fixed", **{name: closed})  # type: ignore[arg-type]
    tested = values_of([made for rows in layers for made in decide_all(rows, still)], [name])
    op, values = tested.get(name, ("<=", []))
    ordered = sorted(set(values), reverse=op in (">", ">="))
    wanted = math.ceil(policy.target_share * len(layers))

    def act(place: int) -> int:
        tried = replace(still, **{name: ordered[place]})  # type: ignore[arg-type]
        return sum(any(made["reason"] == rule for made in decide_while_held(rows, tried)) for rows in layers)

    if not ordered or (most := act(len(ordered) - 1)) < wanted:
        found = most if ordered else 0
        raise UsageError(
            f"svd_policy.target_share={policy.target_share} asks for {wanted} of {len(layers)} layers, and at no "
            f"{name} would more than {found} have acted in the observed run; lower it, or loosen the other limits."
        )
    low, high = -1, len(ordered) - 1  # act(high) is enough, act(low) is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if act(middle) >= wanted else (middle, high)
    return ordered[high]


def resolved(settings: Mapping[str, Any], policy: object) -> dict[str, Any]:
    """The settings of a policy with the limit that its target names, as `fixed` from here on; others as they are."""
    if not isinstance(policy, Limited) or policy.thresholds != "target":
        return dict(settings)
    assert policy.observed_path is not None, "a target without an observed run"
    name, limit = limit_on(Path(policy.observed_path), policy)
    return {**settings, "thresholds": "fixed", name: limit}
