"""Control for every strategy: its ranks, in places that chance picked."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator

from lab.errors import UsageError
from lab.layer import Need, Target
from lab.rank_strategy import Gathered, RankPlan, RankStrategy, Weights


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Another strategy's ranks permuted at random over layers of equal cost, so that only *where* they are changes.

    Layers trade ranks where cost (out + in) and smaller side agree: the budget stays spent and every rank legal.
    """

    of: RankStrategy

    def __post_init__(self) -> None:
        if not hasattr(self.of, "allocate"):
            raise UsageError(
                f"rank_strategy.of={self.of!r} is no rank strategy to permute; "
                "name one with rank_strategy@rank_strategy.of=gora."
            )
        if not getattr(self.of, "plan_is_final", True):
            raise UsageError(
                f"rank_strategy=shuffled cannot permute {type(self.of).__name__.lower()}, whose ranks are known only "
                "when its run has ended; give them to rank_strategy=custom, and that to shuffled."
            )

    @property
    def needs(self) -> frozenset[Need]:
        """The evidence that the permuted strategy needs."""
        return self.of.needs

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """The permuted plan; raises UsageError where the plan is uneven and yet no two layers could trade ranks."""
        plan = self.of.allocate(targets, rank, weights, evidence, generator)
        groups: dict[tuple[int, int], list[str]] = {}
        for target in targets:
            groups.setdefault((target.cost, target.max_rank), []).append(target.name)
        uneven = len(set(plan.values())) > 1
        if uneven and all(len({plan[name] for name in names}) == 1 for names in groups.values()):
            raise UsageError(
                f"rank_strategy=shuffled cannot permute {type(self.of).__name__}: layers of equal cost already have "
                f"equal ranks here, so the control would be the thing it controls; choose another rank_strategy.of."
            )
        shuffled = dict(plan)
        for names in groups.values():
            order = torch.randperm(len(names), generator=generator).tolist()
            shuffled.update({name: plan[names[i]] for name, i in zip(names, order, strict=True)})
        return shuffled
