"""One budget for every strategy: weights or ranked components become integer ranks that cost what `uniform` costs."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lab.errors import UsageError
from lab.layer import Need, Target
from lab.rank_strategy import RankPlan

BUDGETS = ("params", "ranks", "none")
ROUNDING = 1e-6  # of a rank: float noise that must not turn 16 into 15 or break a tie
NEGLIGIBLE = 1e-12  # a weight of zero counts as this share of the greatest, so that such layers are filled last


@dataclass(frozen=True, kw_only=True)
class Budgeted:
    """Budget of ranks, and the bounds of every layer's rank; the base of each strategy that has a budget.

    `params` spends Σ r (out + in), `ranks` spends Σ r, both exactly what `uniform` at `rank` would, to within the
    cost of one module and never more; `none` takes the strategy's own numbers, rounded down and clamped, as they are.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()  # of the weights alone, unless a subclass says otherwise

    budget: str
    min_rank: int
    max_rank: int | None  # None: the smaller side of each layer

    def __post_init__(self) -> None:
        if self.budget not in BUDGETS:
            raise UsageError(f"rank_strategy.budget={self.budget!r} is not one of {', '.join(BUDGETS)}.")
        if self.min_rank < 1:
            raise UsageError(f"rank_strategy.min_rank={self.min_rank} must be at least 1: every target has a pair.")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise UsageError(
                f"rank_strategy.max_rank={self.max_rank} is below min_rank={self.min_rank}; raise it or lower min_rank."
            )

    def _check_shares(self, **shares: float) -> None:
        """Refuse a share of `rank` that is negative or not finite, by its name in the config."""
        for name, share in shares.items():
            if not 0 <= share < math.inf:
                raise UsageError(
                    f"rank_strategy.{name}={share} is no share of `rank`; it must be 0 or more, and finite."
                )

    def spend(self, targets: Sequence[Target], rank: int, weights: Mapping[str, float]) -> RankPlan:
        """Ranks proportional to the weights, which only `budget: none` reads as ranks.

        r = clamp(λ w) with λ by bisection so that the cost is the budget, then rounded by largest remainder (issue 4).
        Raises UsageError for weights that are negative, not finite or all zero, and for a budget no allocation meets.
        """
        _check_weights(weights)
        low, high = self._bounds(targets)
        if self.budget == "none":
            return {name: max(low[name], min(high[name], math.floor(weights[name] + ROUNDING))) for name in low}
        cost, total = self._costs(targets, rank, low, high)
        return _round(_proportional_ranks(weights, low, high, cost, total), low, high, cost, total)

    def take(self, targets: Sequence[Target], rank: int, values: Mapping[str, Sequence[float]]) -> RankPlan:
        """Ranks that keep the components of greatest value per cost over all layers, after `min_rank` for each.

        `values`: the worth of each layer's components in falling order; a layer's rank cannot exceed their number.
        Greedy on value/cost is the best fractional knapsack (Dantzig 1957). Raises UsageError as `spend` does.
        """
        if self.budget == "none":
            raise UsageError("rank_strategy.budget=none has no meaning where components compete; use params or ranks.")
        _check_weights({name: float(sum(kept)) for name, kept in values.items()})
        low, high = self._bounds(targets)
        high = {name: min(high[name], max(low[name], len(values[name]))) for name in high}
        cost, total = self._costs(targets, rank, low, high)
        plan, left = dict(low), total - sum(cost[name] * low[name] for name in low)
        order = {target.name: i for i, target in enumerate(targets)}

        def bid(name: str) -> tuple[float, int, int, str]:  # equal worth: lower components first, then module order
            return (-values[name][plan[name]] / cost[name], plan[name], order[name], name)

        bids = [bid(name) for name in plan if plan[name] < high[name]]
        heapq.heapify(bids)
        while bids:
            name = heapq.heappop(bids)[-1]
            if cost[name] > left:
                continue  # nor will any later component of this layer fit
            plan[name] += 1
            left -= cost[name]
            if plan[name] < high[name]:
                heapq.heappush(bids, bid(name))
        return plan

    def _bounds(self, targets: Sequence[Target]) -> tuple[RankPlan, RankPlan]:
        for target in targets:
            if self.min_rank > target.max_rank:
                raise UsageError(
                    f"rank_strategy.min_rank={self.min_rank} exceeds the smaller side of {target.name}, "
                    f"{target.max_rank}; lower it or leave the layer out with adapter.exclude_modules."
                )
        low = {target.name: self.min_rank for target in targets}
        high = {target.name: min(self.max_rank or target.max_rank, target.max_rank) for target in targets}
        return low, high

    def _costs(self, targets: Sequence[Target], rank: int, low: RankPlan, high: RankPlan) -> tuple[RankPlan, int]:
        """Cost of one rank in each layer, and the total to spend; raises UsageError where no allocation costs it."""
        cost = {target.name: target.cost if self.budget == "params" else 1 for target in targets}
        total = rank * sum(cost.values())
        least = sum(cost[name] * low[name] for name in low)
        most = sum(cost[name] * high[name] for name in high)
        if not least <= total <= most:
            unit = "parameters" if self.budget == "params" else "ranks"
            raise UsageError(
                f"uniform at rank={rank} costs {total} {unit}, but between min_rank={self.min_rank} and max_rank="
                f"{'each smaller side' if self.max_rank is None else self.max_rank} these {len(low)} layers can spend "
                f"{least} to {most}; change rank, rank_strategy.min_rank or rank_strategy.max_rank."
            )
        return cost, total


def relative_weights(weights: Mapping[str, float], rank: int) -> dict[str, float]:
    """The weights in units of rank: scaled to a mean of `rank`, which is how `budget: none` reads evidence."""
    _check_weights(weights)
    total = sum(weights.values())
    return {name: weight * rank * len(weights) / total for name, weight in weights.items()}


def _check_weights(weights: Mapping[str, float]) -> None:
    for name, weight in weights.items():
        if not math.isfinite(weight) or weight < 0:
            raise UsageError(
                f"the rank weight of {name} is {weight}; it must be finite and not negative: look for non-finite "
                f"values in this layer's weight, gradients or activations."
            )
    if not any(weights.values()):
        raise UsageError("every layer's rank weight is 0, so there is nothing to allocate by; use another strategy.")


def _proportional_ranks(
    weights: Mapping[str, float], low: RankPlan, high: RankPlan, cost: RankPlan, total: int
) -> dict[str, float]:
    """clamp(λ w, low, high), fractional, with the λ whose cost is the total."""
    greatest = max(weights[name] for name in low)
    share = {name: max(weights[name] / greatest, NEGLIGIBLE) for name in low}

    def ranks(scale: float) -> dict[str, float]:
        return {name: min(max(scale * share[name], low[name]), high[name]) for name in low}

    below, above = 0.0, max(high[name] / share[name] for name in low)
    for _ in range(200):  # halves until below and above are neighbouring floats, from at most 1e12 ranks
        middle = (below + above) / 2
        if sum(cost[name] * value for name, value in ranks(middle).items()) < total:
            below = middle
        else:
            above = middle
    return ranks(above)


def _round(exact: Mapping[str, float], low: RankPlan, high: RankPlan, cost: RankPlan, total: int) -> RankPlan:
    """Each rank rounded down, then one more for the largest remainders that still fit; ties in module order."""
    plan = {name: max(low[name], math.floor(value)) for name, value in exact.items()}
    left = total - sum(cost[name] * plan[name] for name in plan)
    remainder = {name: round(exact[name] - plan[name], 6) for name in plan}
    for name in sorted(plan, key=lambda name: -remainder[name]):
        if remainder[name] > 0 and cost[name] <= left and plan[name] < high[name]:
            plan[name] += 1
            left -= cost[name]
    return plan
