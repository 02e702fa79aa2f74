"""Rank allocation over the layers: the protocol that every strategy follows."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Generator, Tensor

from lab.layer import Evidence, Need, Target

RankPlan = dict[str, int]  # module name -> rank, a key for every target
Weights = Mapping[str, Tensor]  # module name -> weight, (out, in)
Gathered = Mapping[str, Evidence]  # module name -> what training data says of it


class RankStrategy(Protocol):
    """A strategy spends one rank budget over the targets.

    A class may also carry `plan_is_final` (False: its ranks are known only when training has ended) and `conflicts`
    (what it refuses beside it; `lab.config.validate` asks for it).
    """

    @property
    def needs(self) -> frozenset[Need]:
        """The Evidence to gather first: a class attribute, or a property where an option decides."""
        ...

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """A rank for every target, between 1 and its smaller side; `rank` is what `uniform` would give each."""
        ...
