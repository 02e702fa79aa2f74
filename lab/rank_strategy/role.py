"""A fixed shape over roles: more rank for attention or for feed-forward layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator

from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted


@dataclass(frozen=True, kw_only=True)
class ByRole(Budgeted):
    """A rank for each role, told by the block a layer sits in: GPT-2's `mlp.c_proj` is feed-forward, not attention."""

    attention: float  # times `rank`
    mlp: float  # times `rank`
    other: float  # times `rank`

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares(attention=self.attention, mlp=self.mlp, other=self.other)

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Weights by role; raises UsageError where every target has the same one, for the arm would be `uniform`."""
        share: dict[str, float] = {"attention": self.attention, "mlp": self.mlp, "other": self.other}
        roles = {target.role for target in targets}
        if len(roles) == 1:
            raise UsageError(
                f"every target is {roles.pop()!r}, so a rank by role would be uniform under another name; "
                f"widen adapter.target_modules or use rank_strategy=uniform."
            )
        return self.spend(targets, rank, {target.name: rank * share[target.role] for target in targets})
