"""AdaLoRA's start (arXiv:2303.10512): P and Q random and Λ zero. No option: rank_strategy=adalora brings it."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Generator, Tensor

from lab.init import Factors
from lab.init.inputs import check_rank, normal
from lab.layer import Evidence, Need, Target

DEVIATION = 0.02  # of P and Q at step 0, as peft fills them


@dataclass(frozen=True)
class Triplets:
    """AdaLoRA's own start: P and Q are N(0, 0.02²) and Λ, which the layer holds, is 0."""

    label: ClassVar[str] = "adalora"
    needs: ClassVar[frozenset[Need]] = frozenset()
    starts_at_zero: ClassVar[bool] = True  # B Λ A is, though B A is not

    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """A = Q (rank, in) and B = P (out, rank); raises UsageError on a rank the layer cannot hold."""
        check_rank(target, rank)
        out, inner = target.shape
        A = normal((rank, inner), generator, weight) * DEVIATION
        return Factors(A, normal((out, rank), generator, weight) * DEVIATION)
