"""How much rank each layer gets: the protocol every strategy follows."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Generator, Tensor

from lab.layer import Evidence, Need, Target

RankPlan = dict[str, int]  # module name -> rank, a key for every target


class RankStrategy(Protocol):
    """A strategy spends one rank budget over the targets."""

    @property
    def needs(self) -> frozenset[Need]:
        """Which Evidence must be gathered first."""
        ...

    def allocate(
        self,
        targets: Sequence[Target],
        rank: int,
        weights: Mapping[str, Tensor],
        evidence: Mapping[str, Evidence],
        generator: Generator,
    ) -> RankPlan:
        """A rank for every target, between 1 and its smaller side; `rank` is what `uniform` would give each."""
        ...
