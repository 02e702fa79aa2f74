"""Bound on what low rank could bring a run, by arithmetic, and what a policy's own schedule would. No torch."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lab.record.switches import RIDES_ALONG
from lab.svd_policy.switching import ByStep, Move, Shapes, Switching, break_even

EFFICIENCY = (
    0.85  # kernels' share of a pair's FLOP ratio: `lab.bench switch` has 0.6 to 0.8 at 0.25 H, 0.8 to 0.9 at 0.5
)
NATS = 0.18  # dL/d ln D = β B/D^β, B = 410.7, β = 0.28, D = 11.2e9 tokens (Hoffmann et al. 2022, arXiv:2203.15556)
WORTH = 0.8  # of the time: a fifth less is what low rank is asked for


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of an optimizer step on one device while all layers are full; passes are forward and backward."""

    targets: Mapping[str, float]  # both passes of each layer that may go low-rank
    weights: float  # both passes of all weights that multiply activations, the output head among them
    scores: float  # both passes of attention's products with keys and values
    muon: float  # orthogonalising of all of Muon's matrices, which each device does for itself; 0 under AdamW
    muon_of: Callable[[tuple[int, int]], float]  # of a matrix (out, in)

    @property
    def total(self) -> float:
        """Of the whole step."""
        return self.weights + self.scores + self.muon

    def of_targets(self, shapes: Shapes) -> float:
        """Of the layers that may go low-rank, in passes and optimizer."""
        return sum(self.targets[name] + self.muon_of(shape) for name, shape in shapes.items())

    def spared(self, layer: str, shape: tuple[int, int], rank: int, frozen: bool) -> float:
        """By a pair in the layer's place, or, if `frozen`, on its frozen weight; below 0 where that costs more."""
        passes = rank / break_even(shape) / EFFICIENCY + RIDES_ALONG * frozen
        factors = self.muon_of((shape[0], rank)) + self.muon_of((rank, shape[1]))
        return self.targets[layer] * (1 - passes) + self.muon_of(shape) - factors


@dataclass(frozen=True)
class Bound:
    """The most that low rank in the targets could bring, were their rank to fall to nothing."""

    flops_share: float  # of an optimizer step's matrix products, in the targets
    passes_share: float  # of the same, in the targets' two passes; the rest of their share is Muon's
    speedup: float  # 1/(1 − share) (Amdahl 1967)
    scores_share: float  # of the same, in attention's products with keys and values
    muon_share: float  # in Muon's orthogonalising, of the targets and of others
    memory_share: float  # of the parameters, hence of parameters, gradients and optimizer state
    memory_factor: float
    break_even_rank: Mapping[tuple[int, int], float]  # m·n/(m + n) per shape: above it two factors cost more than one

    def __str__(self) -> str:
        ranks = ", ".join(f"{m}x{n}: {rank:.0f}" for (m, n), rank in self.break_even_rank.items())
        muon = f", {self.muon_share:.1%} orthogonalise for Muon" if self.muon_share else ""
        return (
            f"the targets hold {self.flops_share:.1%} of a step's matmul FLOPs ({self.scores_share:.1%} are attention "
            f"scores{muon}) and {self.memory_share:.1%} of parameters: at most {self.speedup:.2f}x speed and "
            f"{self.memory_factor:.2f}x less training state, even at rank 0; two factors save only below rank {ranks}."
        )


def amdahl(shapes: Shapes, step: StepFlops, parameters: int) -> Bound:
    """The bound from shapes alone, infinite where the targets are everything; `parameters` counts all of the model."""
    flops, memory = step.of_targets(shapes) / step.total, sum(math.prod(s) for s in shapes.values()) / parameters
    passes = sum(step.targets[name] for name in shapes) / step.total
    ranks = {shape: break_even(shape) for shape in sorted(set(shapes.values()))}
    parts = step.scores / step.total, step.muon / step.total
    return Bound(flops, passes, _gain(flops), *parts, memory, _gain(memory), ranks)


def _gain(share: float) -> float:
    return 1 / (1 - share) if share < 1 else float("inf")


@dataclass(frozen=True)
class Prospect:
    """Prospect of a policy: the time that its steps would take, of that of as many full ones, by FLOPs."""

    time_ratio: float
    scheduled: bool  # by steps known ahead; otherwise were every layer to go as early as the policy may let it
    first: int  # optimizer steps after which a first layer goes low-rank
    gap: float  # nats a token above full training at equal steps that equal time pays for; 0 where it pays for none
    gap_for_less: float  # and that WORTH of the time at equal loss pays for

    def __str__(self) -> str:
        when = (
            "as scheduled" if self.scheduled else f"were all layers to go as early as they may (step {self.first} on)"
        )
        source = f"{NATS} nats per ln of data by Chinchilla's constants at 11.2 B tokens, arXiv:2203.15556"
        time = f"{when}, steps take {self.time_ratio:.2f} of the time, by FLOPs with kernels at {EFFICIENCY:.0%}"
        if self.gap == 0:
            return f"{time}: that pays for none of a higher loss; training less would be as good or better ({source})."
        less = f"{self.gap_for_less:.3f} nats" if self.gap_for_less else "none"
        return (
            f"{time}: at equal time that pays for a loss {self.gap:.3f} nats above full training's at equal steps, "
            f"which training so much less costs too ({source}); for {WORTH:g} of the time it pays for {less}."
        )


def prospect(policy: Switching, shapes: Shapes, step: StepFlops, total_steps: int) -> Prospect | None:
    """Of a run of so many steps; None for a policy that foresees no switch in it."""
    foreseen = [event for event in policy.foreseen(total_steps, shapes) if event[0] < total_steps]
    if not foreseen:
        return None
    fade = policy.fade_steps if policy.residual == "fade" else 0
    spared = sum(
        steps * step.spared(layer, shapes[layer], rank, frozen)
        for layer, rank, frozen, steps in _spans(foreseen, fade, total_steps)
    )
    ratio = 1 - spared / step.total / total_steps
    return Prospect(ratio, isinstance(policy, ByStep), foreseen[0][0], gap_paid(ratio, 1.0), gap_paid(ratio, WORTH))


def gap_paid(ratio: float, time: float) -> float:
    """Nats that `time` (of full training's) buys back by more steps, where each takes `ratio`; 0 where there are none.

    time/ratio as many steps lower the loss by NATS · ln(time/ratio) (Chinchilla's slope, of data).
    """
    return max(0.0, NATS * math.log(time / ratio)) if ratio > 0 else math.inf


def _spans(
    foreseen: Iterable[tuple[int, Iterable[Move]]], fade: int, total_steps: int
) -> Iterable[tuple[str, int, bool, int]]:
    """(layer, rank, whether a frozen weight rides along, optimizer steps) of each stretch at low rank."""
    low: dict[str, tuple[int, Move]] = {}

    def ended(since: int, move: Move, at: int) -> Iterable[tuple[str, int, bool, int]]:
        assert move.rank is not None, "a low-rank move without a rank"
        fading = at - since if move.to == "delta" else min(fade, at - since)
        yield move.layer, move.rank, True, fading
        yield move.layer, move.rank, False, at - since - fading

    for at, moves in foreseen:
        for move in moves:
            if move.layer in low:
                yield from ended(*low.pop(move.layer), at)
            if move.to != "full":
                low[move.layer] = at, move
    for since, move in low.values():
        yield from ended(since, move, total_steps)
