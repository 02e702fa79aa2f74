"""Outcomes of a policy on a recorded run, up to where other decisions would have made another run."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.ledger import Row
from lab.svd_policy import SvdPolicy
from lab.svd_policy.decisions import decide_while_held
from lab.svd_policy.reachability import blocked_rules


@dataclass(frozen=True)
class Outcome:
    """The outcome of one set of thresholds, up to each layer's first firing."""

    settings: dict[str, Any]  # the swept keys
    first_fire: dict[str, tuple[int, str] | None]  # layer -> step and reason; None where it never fires
    unsatisfiable: list[str]  # rules that could fire at no recorded spectrum, and why

    @property
    def fired(self) -> int:
        """Number of layers that fire."""
        return sum(fire is not None for fire in self.first_fire.values())


def sweep(rows: Sequence[Row], policy: SvdPolicy, swept: Mapping[str, Sequence[Any]]) -> list[Outcome]:
    """Every combination of the swept settings, first fires only; what follows them no ledger can know."""
    outcomes = []
    for combination in itertools.product(*swept.values()):
        settings = dict(zip(swept, combination, strict=True))
        tried = dataclasses.replace(policy, **settings)  # type: ignore[type-var]
        first: dict[str, tuple[int, str] | None] = {row.layer: None for row in rows}
        for decision in decide_while_held(rows, tried):
            if first[decision["layer"]] is None and decision["reason"] in tried.rules:
                first[decision["layer"]] = (decision["step"], decision["reason"])
        outcomes.append(Outcome(settings, first, [str(blocked) for blocked in blocked_rules(tried, rows)]))
    return outcomes
