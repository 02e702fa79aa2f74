"""Fixed shapes over depth: linear, and seed 004's hump. They look at no weight and no data."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator

from lab.errors import UsageError
from lab.layer import Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted


def positions(targets: Sequence[Target]) -> dict[str, float | None]:
    """Relative depth of each layer, 0 at the first block and 1 at the last; None outside the blocks.

    Raises UsageError where the targets stand in fewer than two blocks, since a shape over depth needs a depth.
    """
    last = max(target.depth for target in targets)
    if len({target.depth for target in targets if target.depth >= 0}) < 2:
        raise UsageError(
            f"a rank that varies with depth needs targets in at least 2 blocks, and these {len(targets)} stand in "
            f"fewer; widen adapter.target_modules or use rank_strategy=uniform."
        )
    return {target.name: target.depth / last if target.depth >= 0 else None for target in targets}


@dataclass(frozen=True, kw_only=True)
class Linear(Budgeted):
    """Rank that changes linearly with depth; a layer outside the blocks keeps the share uniform gives it.

    With `budget: none`, first 1 and last 1/4 of rank 16 this is seed 004's linear_decay: ⌊s − (s − s/4) i/(L − 1)⌋.
    """

    first: float  # times `rank`, at the block nearest the input
    last: float  # times `rank`, at the block nearest the output

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares(first=self.first, last=self.last)

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Weights first·rank at the first block to last·rank at the last."""
        start, end = self.first * rank, self.last * rank
        depths = positions(targets)
        return self.spend(
            targets, rank, {n: rank if p is None else start - (start - end) * p for n, p in depths.items()}
        )


@dataclass(frozen=True, kw_only=True)
class Thirds(Budgeted):
    """Three levels of rank by depth; a layer outside the blocks keeps the share uniform gives it.

    The defaults are seed 004's `empirical`, which measured nothing: 9, 19, 16 of rank 16 over 7, 10, 7 of 24 blocks.
    """

    early: float  # times `rank`, at positions below early_end
    middle: float  # times `rank`, at positions from early_end to below late_start
    late: float  # times `rank`, at positions from late_start
    early_end: float  # position, 0 at the first block and 1 at the last
    late_start: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shares(early=self.early, middle=self.middle, late=self.late)
        if not 0 < self.early_end <= self.late_start <= 1:
            raise UsageError(
                f"rank_strategy.early_end={self.early_end} and late_start={self.late_start} are positions, 0 at the "
                "first block and 1 at the last; choose 0 < early_end <= late_start <= 1."
            )

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Weights by the third of the depth a layer stands in."""
        return self.spend(targets, rank, {name: rank * self._level(p) for name, p in positions(targets).items()})

    def _level(self, position: float | None) -> float:
        if position is None:
            return 1.0
        if position < self.early_end:
            return self.early
        return self.middle if position < self.late_start else self.late
