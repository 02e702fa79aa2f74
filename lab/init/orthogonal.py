"""Orthogonal start: both sides random and nonzero, their product zero: each lies in its own half of the rank."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.init import Factors
from lab.init.controls import measures
from lab.init.inputs import check_rank, normal
from lab.layer import Evidence, Need, Target

SIZE = 0.1  # deviation of the normal coordinates, as in peft


@dataclass(frozen=True, kw_only=True)
class Orthogonal:
    """A = (X Q_odd)ᵀ/10, B = Y Q_even/10 with Q a random orthogonal (rank, rank) matrix and X, Y normal, as in peft.

    The halves of Q are orthogonal, so B A = 0 to float32 rounding, while both factors get a gradient at step 0.
    """

    label: ClassVar[str] = "orthogonal"
    needs: ClassVar[frozenset[Need]] = frozenset()
    starts_at_zero: ClassVar[bool] = True

    def factors(
        self, target: Target, weight: Tensor, rank: int, scaling: float, evidence: Evidence, generator: Generator
    ) -> Factors:
        """A (rank, in) and B (out, rank); raises UsageError on an odd rank."""
        check_rank(target, rank)
        if rank % 2:
            near = f"{rank - 1} or {rank + 1}" if rank > 1 else "2"
            raise UsageError(
                f"rank={rank} for {target.name} is odd, and init=orthogonal gives each factor half of it; use {near}."
            )
        out, inner = target.shape
        Q = torch.linalg.qr(normal((rank, rank), generator, weight)).Q
        A = Q[0::2].T @ normal((rank // 2, inner), generator, weight) * SIZE
        B = normal((out, rank // 2), generator, weight) @ Q[1::2] * SIZE
        return Factors(A, B, offset="none", info=measures(A, B, scaling))
