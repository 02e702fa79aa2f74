"""Uniform rank, the same everywhere: the baseline that every other strategy spends the budget of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator

from lab.errors import UsageError
from lab.layer import Need, Target
from lab.rank_strategy import Gathered, RankPlan, Weights


@dataclass(frozen=True, kw_only=True)
class Uniform:
    """`rank` for every target."""

    needs: ClassVar[frozenset[Need]] = frozenset()

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """`rank` for each; raises UsageError naming the first layer that cannot have it."""
        for target in targets:
            if not 1 <= rank <= target.max_rank:
                out, inner = target.shape
                raise UsageError(
                    f"rank={rank} is outside 1 to {target.max_rank}, the smaller side of {target.name} "
                    f"({out} x {inner}); choose such a rank or leave the layer out with adapter.exclude_modules."
                )
        return {target.name: rank for target in targets}
