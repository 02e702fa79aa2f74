"""Rank by competition: the singular components of all layers stand in one line, and the worthiest are kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from lab.errors import UsageError
from lab.layer import Evidence, Need, Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted
from lab.rank_strategy.spectrum import energies


@dataclass(frozen=True, kw_only=True)
class Eva(Budgeted):
    """Components by the share of a layer's input they explain: λⱼ/Σλ of E[x xᵀ], divided by what one rank costs.

    EVA (Paischer et al. 2024, arXiv:2410.07170), whose own rule is `budget: ranks`. The second moment is not centred,
    where peft's incremental PCA is; and no layer is dropped, since `min_rank` is at least 1.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"activations"})

    rho: float  # no layer gets more than rho · rank

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.rho < math.inf:
            raise UsageError(
                f"rank_strategy.rho={self.rho} must be at least 1, and finite: below, no allocation spends the budget."
            )

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Keep the components that explain most per cost."""
        return self.take(targets, rank, {t.name: self._explained_variance(evidence[t.name], rank) for t in targets})

    def _explained_variance(self, evidence: Evidence, rank: int) -> list[float]:
        assert evidence.activations is not None
        variances = torch.linalg.eigvalsh(evidence.activations.double()).flip(0).clamp_min(0)
        total = float(variances.sum())
        return [value / total if total else 0.0 for value in variances[: round(self.rho * rank)].tolist()]


@dataclass(frozen=True, kw_only=True)
class Posthoc(Budgeted):
    """Components by what a wide run made of them: σ² of its weight change, divided by what one rank costs.

    Of all plans of one cost this keeps the most of Σ‖ΔW‖_F², to within one component where costs differ (Eckart and
    Young 1936 in each layer, greedy over layers).
    The wide run is a whole training run at `wide_ranks`; its steps belong to the bill.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"delta"})

    wide: float  # rank of the wide run, times `rank`; no layer gets more

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 < self.wide < math.inf:
            raise UsageError(
                f"rank_strategy.wide={self.wide} must exceed 1, and be finite: the wide run is where ranks may differ."
            )

    def wide_ranks(self, targets: Sequence[Target], rank: int) -> RankPlan:
        """The plan of the wide run: wide · rank everywhere, or a layer's smaller side."""
        return {target.name: min(round(self.wide * rank), target.max_rank) for target in targets}

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Keep the components that carry most of the change per cost."""
        return self.take(targets, rank, {t.name: self._change_energies(evidence[t.name], rank) for t in targets})

    def _change_energies(self, evidence: Evidence, rank: int) -> list[float]:
        assert evidence.delta is not None
        return energies(evidence.delta)[: round(self.wide * rank)].tolist()
