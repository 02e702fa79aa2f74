"""Rank by sensitivity: where the loss would feel a change of the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator

from lab.errors import UsageError
from lab.layer import Need, Target
from lab.rank_strategy import Gathered, RankPlan, Weights
from lab.rank_strategy.budget import Budgeted, relative_weights


@dataclass(frozen=True, kw_only=True)
class Gora(Budgeted):
    """r ∝ mean|W ∘ G| / (out + in)^cost_power, the importance rule of GoRA (He et al. 2025, arXiv:2502.12171)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient"})

    cost_power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cost_power <= 10:
            raise UsageError(
                f"rank_strategy.cost_power={self.cost_power} must lie between 0, which leaves costs out, and 10; "
                "the paper takes 0.5."
            )

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Ranks proportional to the importance, smoothed by the layer's cost."""
        importance = {}
        for target in targets:
            gradient = evidence[target.name].gradient
            assert gradient is not None
            sensitivity = float((weights[target.name].float() * gradient).abs().double().mean())
            importance[target.name] = sensitivity / target.cost**self.cost_power
        return self.spend(targets, rank, relative_weights(importance, rank))


@dataclass(frozen=True, kw_only=True)
class Fisher(Budgeted):
    """r ∝ mean of E[g²], the diagonal of the empirical Fisher information per weight (huggingface/peft PR 3204).

    g is the gradient of one example's mean loss, not of a token's, so the diagonal is that of examples.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"gradient_square"})

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """Ranks proportional to the mean squared gradient."""
        information = {}
        for target in targets:
            square = evidence[target.name].gradient_square
            assert square is not None
            information[target.name] = float(square.double().mean())
        return self.spend(targets, rank, relative_weights(information, rank))
