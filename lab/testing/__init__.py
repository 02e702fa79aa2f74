"""The lab's own checks, for other people's schemes: `check_init(MyScheme(...))` in a test of yours."""

import torch
from torch import Generator, Tensor

from lab.init import Factors, InitScheme
from lab.layer import Evidence, Need, Target
from lab.rank_strategy import RankPlan, RankStrategy
from lab.testing.policy import check_policy, demand, example_rows

__all__ = [
    "check_init",
    "check_policy",
    "check_rank_strategy",
    "example_evidence",
    "example_rows",
    "example_targets",
    "example_weight",
]

NEEDS: frozenset[Need] = frozenset({"gradient", "gradient_square", "activations", "delta"})
SHAPES = {"square": (40, 40), "tall": (56, 32), "wide": (32, 56)}  # (out, in)


def check_init(scheme: InitScheme, rank: int = 4, scaling: float = 2.0) -> None:
    """Hold an init scheme against the protocol, on a square, a tall and a wide layer; raises AssertionError.

    Checked: `needs` are known, and enough; A (rank, in) and B (out, rank) are finite, float32 and not both zero; a
    replaced base has the weight's shape; the offset is legal; `info` holds plain numbers; one seed gives the same bits
    twice, whatever the global random state; weight and evidence come back unchanged.
    """
    unknown = set(scheme.needs) - NEEDS
    demand(not unknown, f"needs {sorted(unknown)} are none of {sorted(NEEDS)}")
    for side, shape in SHAPES.items():
        target = Target(f"check.{side}", "other", 0, shape, False)
        weight, evidence = example_weight(shape), example_evidence(shape, scheme.needs)
        given = [weight, *tensors_of(evidence)]
        before = [tensor.clone() for tensor in given]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            first = scheme.factors(target, weight, rank, scaling, evidence, Generator().manual_seed(1))
            torch.manual_seed(4)
            again = scheme.factors(target, weight, rank, scaling, evidence, Generator().manual_seed(1))
        _check_factors(first, shape, rank, side)
        same = torch.equal(first.A, again.A) and torch.equal(first.B, again.B)
        demand(same, f"one seed gave two different pairs on a {side} layer; draw only from `generator`")
        kept = all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
        demand(kept, f"the weight or the evidence of a {side} layer was changed in place")


def _check_factors(factors: Factors, shape: tuple[int, int], rank: int, side: str) -> None:
    out, inner = shape
    expected_shapes = [("A", factors.A, (rank, inner)), ("B", factors.B, (out, rank))]
    if factors.base is not None:
        expected_shapes.append(("the base", factors.base, shape))
    for name, tensor, expected in expected_shapes:
        actual = tuple(tensor.shape)
        demand(actual == expected, f"{name} of a {side} layer has shape {actual}, not {expected}")
        demand(tensor.dtype == torch.float32, f"{name} of a {side} layer is {tensor.dtype}, not float32")
        demand(bool(torch.isfinite(tensor).all()), f"{name} of a {side} layer is not finite")
        demand(not tensor.requires_grad, f"{name} of a {side} layer still carries a graph")
    demand(bool(factors.A.any() or factors.B.any()), f"A and B of a {side} layer are both zero and never train")
    demand(factors.offset in ("separate", "fold", "none"), f"offset {factors.offset!r} is not separate, fold or none")
    plain = all(isinstance(key, str) and isinstance(value, float | int) for key, value in factors.info.items())
    demand(plain, "info holds something other than numbers by name")


def check_rank_strategy(strategy: RankStrategy, rank: int = 4) -> None:
    """Hold a rank strategy against the protocol, on two blocks of unequal layers; raises AssertionError.

    Checked: `needs` are known and enough; every layer and no other gets a whole rank from 1 to its smaller side; one
    seed gives one plan; weights and evidence come back unchanged; and where the strategy has `budget` "params", the
    plan costs what `uniform` at `rank` costs, to within one layer, and never more.
    """
    unknown = set(strategy.needs) - NEEDS
    demand(not unknown, f"needs {sorted(unknown)} are none of {sorted(NEEDS)}")
    targets = example_targets()
    weights = {target.name: example_weight(target.shape) * (i + 1) for i, target in enumerate(targets)}
    evidence = {target.name: example_evidence(target.shape, strategy.needs) for target in targets}
    given = [*weights.values(), *(tensor for item in evidence.values() for tensor in tensors_of(item))]
    before = [tensor.clone() for tensor in given]
    plan = strategy.allocate(targets, rank, weights, evidence, Generator().manual_seed(1))
    again = strategy.allocate(targets, rank, weights, evidence, Generator().manual_seed(1))
    _check_plan(plan, targets)
    demand(plan == again, "one seed gave two different plans; draw only from `generator`")
    kept = all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    demand(kept, "a weight or the evidence was changed in place")
    if getattr(strategy, "budget", None) == "params":
        allowed = rank * sum(target.cost for target in targets)
        spent = sum(plan[target.name] * target.cost for target in targets)
        within = 0 <= allowed - spent < max(target.cost for target in targets)
        demand(within, f"the plan costs {spent} parameters and uniform at rank {rank} costs {allowed}")


def _check_plan(plan: RankPlan, targets: list[Target]) -> None:
    names = {target.name for target in targets}
    demand(set(plan) == names, f"layers without a rank or unasked for: {sorted(set(plan) ^ names)}")
    for target in targets:
        rank = plan[target.name]
        whole = isinstance(rank, int) and not isinstance(rank, bool)
        demand(whole and 1 <= rank <= target.max_rank, f"{target.name} got rank {rank!r}, not 1 to {target.max_rank}")


def tensors_of(evidence: Evidence) -> list[Tensor]:
    """The tensors that were gathered."""
    return [value for value in vars(evidence).values() if isinstance(value, Tensor)]


def example_targets() -> list[Target]:
    """Two blocks with grouped-query attention: k_proj is the cheapest layer, feed-forward layers the dearest."""
    shapes = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "mlp.up_proj": (56, 32),
        "mlp.down_proj": (32, 56),
    }
    return [
        Target(f"model.layers.{i}.{part}", "mlp" if "mlp" in part else "attention", i, shape, False)
        for i in range(2)
        for part, shape in shapes.items()
    ]


def example_weight(shape: tuple[int, int]) -> Tensor:
    """A float32 matrix whose singular values fall as i^-½, as trained weights' roughly do."""
    generator = Generator().manual_seed(0)
    k = min(shape)
    U = torch.linalg.qr(torch.randn(shape[0], k, generator=generator)).Q
    V = torch.linalg.qr(torch.randn(shape[1], k, generator=generator)).Q
    return (U * torch.arange(1, k + 1) ** -0.5) @ V.T


def example_evidence(shape: tuple[int, int], needs: frozenset[Need] = NEEDS) -> Evidence:
    """Random evidence of a layer, as far as needed: a gradient, an inputs' second moment, a weight change."""
    generator = Generator().manual_seed(2)
    out, inner = shape
    tokens = 4 * inner
    x = torch.randn(tokens, inner, generator=generator) * torch.arange(1, inner + 1) ** -0.5
    x = x @ torch.linalg.qr(torch.randn(inner, inner, generator=generator)).Q
    errors = torch.randn(tokens, out, generator=generator) / 100
    delta = torch.randn(out, inner, generator=generator) / 1000
    return Evidence(
        gradient=errors.T @ x / tokens if "gradient" in needs else None,
        activations=x.T @ x / tokens if "activations" in needs else None,
        gradient_square=(errors.T @ x / tokens) ** 2 if "gradient_square" in needs else None,
        delta=delta if "delta" in needs else None,
        num_tokens=tokens if needs else 0,
    )
