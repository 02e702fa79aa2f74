"""Rank by spectrum: of the weight itself, or of its gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from lab.errors import UsageError
from lab.layer import Evidence, Need, Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted, relative_weights
from lab.spectral.spectrum import effective_rank, singular_values, stable_rank

MEASURES = ("effective_rank", "stable_rank", "tail_energy")


def energies(matrix: Tensor) -> Tensor:
    """σ² of a matrix in falling order, float64 (smaller side,); squares below 1e-12 of the greatest, noise, are 0."""
    squares = singular_values(matrix) ** 2
    return torch.where(squares < 1e-12 * squares[0], 0.0, squares)


@dataclass(frozen=True, kw_only=True)
class WeightSpectrum(Budgeted):
    """More rank where the weight itself spreads over more directions.

    `effective_rank` exp(−Σ p ln p), p = σ/Σσ; `stable_rank` ‖W‖_F²/‖W‖₂²; `tail_energy` the
    share of ‖W‖_F² beyond the first `rank` directions, Σ_{i>rank} σ²/Σ σ². A zero weight measures 0.
    """

    measure: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.measure not in MEASURES:
            raise UsageError(f"rank_strategy.measure={self.measure!r} is not one of {', '.join(MEASURES)}.")

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Ranks proportional to the measure."""
        spread = {target.name: self._spread(weights[target.name], rank) for target in targets}
        return self.spend(targets, rank, relative_weights(spread, rank))

    def _spread(self, weight: Tensor, rank: int) -> float:
        squares = energies(weight)
        total = float(squares.sum())
        if self.measure == "stable_rank":
            return stable_rank(squares.sqrt(), total) or 0.0
        if self.measure == "effective_rank":
            return effective_rank(squares.sqrt()) or 0.0
        return float(squares[rank:].sum()) / total if total else 0.0


@dataclass(frozen=True, kw_only=True)
class GradientRank(Budgeted):
    """More rank where the gradient has more directions that matter: its numerical rank #{i: σᵢ ≥ tau σ₁}.

    Golub and Van Loan, Matrix Computations, §5.4.1. `budget: none` takes the counts themselves as ranks.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    tau: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.tau <= 1:
            raise UsageError(f"rank_strategy.tau={self.tau} is a share of the greatest singular value: 0 < tau <= 1.")

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Ranks proportional to the count."""
        return self.spend(targets, rank, {target.name: self._count(evidence[target.name]) for target in targets})

    def _count(self, evidence: Evidence) -> float:
        assert evidence.gradient is not None
        squares = energies(evidence.gradient)
        return float(((squares >= self.tau**2 * squares[0]) & (squares > 0)).sum())
