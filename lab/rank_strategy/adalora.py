"""AdaLoRA's settings, first plan and schedule: ranks that fall during training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Generator

from lab.errors import UsageError
from lab.layer import Need, Target
from lab.rank_strategy import Gathered, RankPlan, Weights


@dataclass(frozen=True)
class Schedule:
    """Budget left after each optimizer step, counted from 1, in the unit of `initial` and `target`."""

    initial: int
    target: int
    first: int  # the last step before any cut
    last: int  # the step of the last cut; every later one only repeats it
    total: int
    every_n_steps: int

    def budget(self, step: int) -> int:
        """The cubic of AdaLoRA (arXiv:2303.10512, eq. 12), rounded down as peft does."""
        if step <= self.first:
            return self.initial
        if step >= self.last:
            return self.target
        left = 1 - (step - self.first) / (self.last - self.first)
        return int((self.initial - self.target) * left**3 + self.target)

    def cuts(self, step: int) -> bool:
        """True where the ranks are brought to the budget after this step."""
        return step >= self.last or (step > self.first and step % self.every_n_steps == 0)


@dataclass(frozen=True, kw_only=True)
class Adalora:
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): W + s P Λ Q, whose least important triplets are cut in training.

    Importance is peft's: running mean times running uncertainty of |θ ∂L/∂θ|, the objective's gradient. `params` keeps
    the most important triplets of all layers as long as their Σ (out + in) fits what `uniform` at `rank` costs, so the
    end is within one module's cost of it and never above; `ranks` keeps `rank` on average, as peft and the paper do.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    plan_is_final: ClassVar[bool] = False
    conflicts: ClassVar[tuple[tuple[str, object, str], ...]] = (
        (
            "init",
            "other",
            "AdaLoRA fills its triplets P Λ Q itself, with Λ = 0, so a pair or an offset from this init would have no "
            "place; use init=random",
        ),
        (
            "adapter.use_dora",
            True,
            "DoRA rescales the whole weight and peft's AdaLoRA knows no magnitude; use adapter.use_dora=false",
        ),
        (
            "select",
            "best",
            "AdaLoRA meets its budget only near its end, so weights from before may cost more than was asked; "
            "use select=last",
        ),
    )

    start: float
    budget: str
    warmup: float
    settle: float
    every_n_steps: int
    beta1: float
    beta2: float
    orthogonality: float

    def __post_init__(self) -> None:
        if self.budget not in ("params", "ranks"):
            raise UsageError(
                f"rank_strategy.budget={self.budget!r} is neither params nor ranks, which AdaLoRA can end at."
            )
        if not 1 <= self.start < math.inf:
            raise UsageError(f"rank_strategy.start={self.start} must be at least 1, and finite: ranks only fall.")
        if self.warmup < 0 or self.settle < 0 or not self.warmup + self.settle < 1:
            raise UsageError(
                f"rank_strategy.warmup={self.warmup} and settle={self.settle} are shares of the run that must leave "
                "room for cuts between them; choose two that add up to less than 1."
            )
        if self.every_n_steps < 1:
            raise UsageError(f"rank_strategy.every_n_steps must be at least 1; got {self.every_n_steps}.")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"rank_strategy.{name}={getattr(self, name)} must lie between 0 and 1.")
        if not 0 <= self.orthogonality < math.inf:
            raise UsageError(f"rank_strategy.orthogonality={self.orthogonality} must be 0 or more, and finite.")

    def allocate(
        self, targets: Sequence[Target], rank: int, weights: Weights, evidence: Gathered, generator: Generator
    ) -> RankPlan:
        """The ranks of step 0: start · rank everywhere, or a layer's smaller side."""
        return {target.name: min(round(self.start * rank), target.max_rank) for target in targets}

    def costs(self, targets: Sequence[Target]) -> dict[str, int]:
        """Share of the budget that one rank of each layer takes."""
        return {target.name: target.cost if self.budget == "params" else 1 for target in targets}

    def schedule(self, targets: Sequence[Target], rank: int, total_steps: int) -> Schedule:
        """The steps where ranks fall, and to what; raises UsageError where no step is left to tell importance by."""
        last = total_steps - int(self.settle * total_steps)
        if last < 2:
            raise UsageError(
                f"AdaLoRA's last cut would come after step {last} of {total_steps}, before a step has told which ranks "
                "matter; give the run more steps or lower rank_strategy.settle."
            )
        costs, plan = self.costs(targets), self.allocate(targets, rank, {}, {}, Generator())
        return Schedule(
            initial=sum(costs[name] * plan[name] for name in plan),
            target=rank * sum(costs.values()),
            first=int(self.warmup * total_steps),
            last=last,
            total=total_steps,
            every_n_steps=self.every_n_steps,
        )
