"""Reachability of a policy's rules before anything has happened, and the most that low rank could bring. No torch."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lab.ledger import Row
from lab.spectral.chance import SIDES
from lab.svd_policy import Reach, SvdPolicy


@dataclass(frozen=True)
class Blocked:
    """A rule that cannot fire, and the clause that forbids it most often."""

    reason: str  # of the rule
    clause: Reach  # where its best value comes closest to the limit
    failing: int  # spectra at which this clause cannot hold
    of: int

    def __str__(self) -> str:
        best = "undefined" if self.clause.best is None else f"{self.clause.best:.4g}"
        return (
            f"{self.reason} cannot fire: {self.clause.name} {self.clause.op} {self.clause.limit:g} can hold at "
            f"{self.of - self.failing} of {self.of} spectra (best {best}); it needs {self.clause.needs}."
        )


def blocked_rules(policy: SvdPolicy, rows: Iterable[Row]) -> list[Blocked]:
    """The rules that can fire at none of the given rows' spectra; empty where each can at some."""
    reaches = [reach for row in rows if (reach := {item.name: item for item in policy.reach(row)})]
    blocked = []
    for reason, names in policy.rules.items():
        misses = Counter(name for reach in reaches for name in names if not reach[name].can_hold)
        everywhere = all(any(not reach[name].can_hold for name in names) for reach in reaches)
        if not misses or not everywhere:
            continue
        name, failing = misses.most_common(1)[0]
        nearest = min((reach[name] for reach in reaches), key=lambda reach: reach.shortfall)
        blocked.append(Blocked(reason, nearest, failing, len(reaches)))
    return blocked


@dataclass(frozen=True)
class Bound:
    """The most that low rank in the targets could bring, were their rank to fall to nothing."""

    flops_share: float  # of the matrix multiplications' FLOPs, in the targets
    speedup: float  # 1/(1 − share) (Amdahl 1967)
    memory_share: float  # of the parameters, hence of parameters, gradients and optimizer state
    memory_factor: float
    break_even_rank: Mapping[tuple[int, int], float]  # m·n/(m + n) per shape: above it two factors cost more than one

    def __str__(self) -> str:
        ranks = ", ".join(f"{m}x{n}: {rank:.0f}" for (m, n), rank in self.break_even_rank.items())
        return (
            f"the targets hold {self.flops_share:.1%} of matmul FLOPs and {self.memory_share:.1%} of parameters: "
            f"at most {self.speedup:.2f}x speed and {self.memory_factor:.2f}x less training state, even at rank 0; "
            f"two factors save only below rank {ranks}."
        )


def amdahl(shapes: Mapping[str, tuple[int, int]], matmul_parameters: int, parameters: int) -> Bound:
    """The bound from shapes alone.

    A weight multiplies as many times as any other, so that FLOPs go by `matmul_parameters` (all weights that multiply
    activations, the output head among them, look-up tables not); attention scores are left out, which flatters the
    share. `parameters` counts all. Speed is capped at infinity where the targets are everything.
    """
    held = sum(m * n for m, n in shapes.values())
    flops, memory = held / matmul_parameters, held / parameters
    ranks = {(m, n): m * n / (m + n) for m, n in sorted(set(shapes.values()))}
    return Bound(flops, _gain(flops), memory, _gain(memory), ranks)


def _gain(share: float) -> float:
    return 1 / (1 - share) if share < 1 else float("inf")


def reachability_record(policy: SvdPolicy, first: Sequence[Row], bound: Bound) -> dict[str, Any]:
    """Reach of every clause on every layer, chance levels per shape, the rules that cannot fire, and the bound.

    In plain types, for a run's record; `first` holds each layer's first row.
    """
    ranks = {f"{m}x{n}": rank for (m, n), rank in bound.break_even_rank.items()}
    return {
        "reach": {row.layer: [asdict(item) for item in policy.reach(row)] for row in first} if policy.rules else {},
        "chance": {
            f"{row.shape[0]}x{row.shape[1]}": {"k": row.k, **{side: row.chance(side, row.k) for side in SIDES}}
            for row in first
        },
        "cannot_fire": [str(blocked) for blocked in blocked_rules(policy, first)],
        "bound": {**asdict(bound), "break_even_rank": ranks},
    }
