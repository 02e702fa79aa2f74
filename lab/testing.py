"""The lab's own checks, for other people's schemes: `check_init(MyScheme(...))` in a test of yours."""

import json
import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Generator, Tensor

from lab.init import Factors, InitScheme
from lab.layer import Evidence, Need, Target
from lab.ledger import Mode, Row, row_of
from lab.rank_strategy import RankPlan, RankStrategy
from lab.spectral.diagnosis import Engine
from lab.spectral.tracker import Tracker
from lab.svd_policy import Action, Decision, SvdPolicy

NEEDS: frozenset[Need] = frozenset({"gradient", "gradient_square", "activations", "delta"})
SHAPES = {"square": (40, 40), "tall": (56, 32), "wide": (32, 56)}  # (out, in)
SHAPES_OF_ROWS = ((40, 40), (40, 40), (56, 32), (32, 56))


def check_init(scheme: InitScheme, rank: int = 4, scaling: float = 2.0) -> None:
    """Hold an init scheme against the protocol, on a square, a tall and a wide layer; raises AssertionError.

    Checked: `needs` are known, and enough; A (rank, in) and B (out, rank) are finite, float32 and not both zero; a
    replaced base has the weight's shape; the offset is legal; `info` holds plain numbers; one seed gives the same bits
    twice, whatever the global random state; weight and evidence come back unchanged.
    """
    unknown = set(scheme.needs) - NEEDS
    _demand(not unknown, f"needs {sorted(unknown)} are none of {sorted(NEEDS)}")
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
        _demand(same, f"one seed gave two different pairs on a {side} layer; draw only from `generator`")
        kept = all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
        _demand(kept, f"the weight or the evidence of a {side} layer was changed in place")


def _check_factors(factors: Factors, shape: tuple[int, int], rank: int, side: str) -> None:
    out, inner = shape
    expected_shapes = [("A", factors.A, (rank, inner)), ("B", factors.B, (out, rank))]
    if factors.base is not None:
        expected_shapes.append(("the base", factors.base, shape))
    for name, tensor, expected in expected_shapes:
        actual = tuple(tensor.shape)
        _demand(actual == expected, f"{name} of a {side} layer has shape {actual}, not {expected}")
        _demand(tensor.dtype == torch.float32, f"{name} of a {side} layer is {tensor.dtype}, not float32")
        _demand(bool(torch.isfinite(tensor).all()), f"{name} of a {side} layer is not finite")
        _demand(not tensor.requires_grad, f"{name} of a {side} layer still carries a graph")
    _demand(bool(factors.A.any() or factors.B.any()), f"A and B of a {side} layer are both zero and never train")
    _demand(factors.offset in ("separate", "fold", "none"), f"offset {factors.offset!r} is not separate, fold or none")
    plain = all(isinstance(key, str) and isinstance(value, float | int) for key, value in factors.info.items())
    _demand(plain, "info holds something other than numbers by name")


def check_rank_strategy(strategy: RankStrategy, rank: int = 4) -> None:
    """Hold a rank strategy against the protocol, on two blocks of unequal layers; raises AssertionError.

    Checked: `needs` are known and enough; every layer and no other gets a whole rank from 1 to its smaller side; one
    seed gives one plan; weights and evidence come back unchanged; and where the strategy has `budget` "params", the
    plan costs what `uniform` at `rank` costs, to within one layer, and never more.
    """
    unknown = set(strategy.needs) - NEEDS
    _demand(not unknown, f"needs {sorted(unknown)} are none of {sorted(NEEDS)}")
    targets = example_targets()
    weights = {target.name: example_weight(target.shape) * (i + 1) for i, target in enumerate(targets)}
    evidence = {target.name: example_evidence(target.shape, strategy.needs) for target in targets}
    given = [*weights.values(), *(tensor for item in evidence.values() for tensor in tensors_of(item))]
    before = [tensor.clone() for tensor in given]
    plan = strategy.allocate(targets, rank, weights, evidence, Generator().manual_seed(1))
    again = strategy.allocate(targets, rank, weights, evidence, Generator().manual_seed(1))
    _check_plan(plan, targets)
    _demand(plan == again, "one seed gave two different plans; draw only from `generator`")
    kept = all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    _demand(kept, "a weight or the evidence was changed in place")
    if getattr(strategy, "budget", None) == "params":
        allowed = rank * sum(target.cost for target in targets)
        spent = sum(plan[target.name] * target.cost for target in targets)
        within = 0 <= allowed - spent < max(target.cost for target in targets)
        _demand(within, f"the plan costs {spent} parameters and uniform at rank {rank} costs {allowed}")


def _check_plan(plan: RankPlan, targets: list[Target]) -> None:
    names = {target.name for target in targets}
    _demand(set(plan) == names, f"layers without a rank or unasked for: {sorted(set(plan) ^ names)}")
    for target in targets:
        rank = plan[target.name]
        whole = isinstance(rank, int) and not isinstance(rank, bool)
        _demand(whole and 1 <= rank <= target.max_rank, f"{target.name} got rank {rank!r}, not 1 to {target.max_rank}")


def check_policy(policy: SvdPolicy) -> None:
    """Hold a policy against the protocol on a short run's rows; raises AssertionError.

    Checked: the same row and state give the same decision and state, and change neither; the state is plain and small
    enough to live in a checkpoint; mode and action are known; each clause's margin and verdict follow from its value
    and limit; rules speak of clauses that exist, and so does `reach`; rows of zero, rank-deficient and non-finite
    weights are answered, the last without an action.
    """
    engine: Engine = getattr(policy, "engine", "warm")
    states: dict[str, object] = {}
    seen: set[str] = set()
    for row in example_rows(engine=engine, k=getattr(policy, "k", 4)):
        state = states.get(row.layer, {})
        before = json.dumps(state)
        decision, after = policy.decide(row, json.loads(before))
        again, after_again = policy.decide(row, state)  # type: ignore[arg-type]
        _demand(decision == again and after == after_again, "the same row and state gave two different decisions")
        _demand(json.dumps(state) == before, "the state handed in was changed in place")
        _demand(json.loads(json.dumps(after)) == after, "the state holds something other than plain types")
        _check_decision(decision, row)
        seen |= {clause.name for clause in decision.clauses}
        for item in policy.reach(row):
            _demand(hasattr(policy, item.name), f"reach names {item.name}, which is no setting of the policy")
        states[row.layer] = after
    for reason, names in policy.rules.items():
        _demand(
            set(names) <= seen, f"the rule {reason} speaks of {sorted(set(names) - seen)}, which no decision tested"
        )


def _check_decision(decision: Decision, row: Row) -> None:
    _demand(decision.mode in get_args(Mode), f"mode {decision.mode!r} is none of {', '.join(get_args(Mode))}")
    _demand(decision.action in get_args(Action), f"action {decision.action!r} is none of {', '.join(get_args(Action))}")
    _demand(bool(decision.reason), "a decision came without a reason")
    if row.reason == "non_finite":
        _demand(decision.action == "none", f"it acts ({decision.action}) on a weight that is not finite")
    for clause in decision.clauses:
        if clause.value is None:
            _demand(not clause.holds and clause.margin is None, f"{clause.name} holds without a value")
            continue
        _demand(math.isfinite(clause.value), f"{clause.name} is {clause.value}; give None where it is undefined")
        side = clause.value - clause.limit if clause.op in (">", ">=") else clause.limit - clause.value
        _demand(clause.margin == side, f"the margin of {clause.name} is {clause.margin}, not {side}")
        _demand(clause.holds == (side > 0 or (side == 0 and "=" in clause.op)), f"{clause.name} misjudges its limit")


def example_rows(
    engine: Engine = "warm", k: int = 4, ticks: int = 4, shapes: Sequence[tuple[int, int]] = SHAPES_OF_ROWS
) -> list[Row]:
    """The ledger rows of a short, seeded run: weights that drift, one from zero, one that breaks at the end."""
    generator = Generator().manual_seed(5)

    def draw(shape: tuple[int, int]) -> Tensor:
        return torch.randn(shape, generator=generator)

    names = [f"check.{i}.{shape[0]}x{shape[1]}" for i, shape in enumerate(shapes)]
    weights = {name: draw(shape) for name, shape in zip(names, shapes, strict=True)}
    weights[names[-1]] = torch.zeros(shapes[-1])
    tracker = Tracker(k=k, oversample=4, engine=engine, exact_every_n_ticks=2, seed=0)
    rows: list[Row] = []
    for tick in range(ticks):
        if tick == 1:
            weights[names[-1]] = draw((shapes[-1][0], 2)) @ draw((2, shapes[-1][1]))  # rank 2: fewer than k directions
        if tick == ticks - 1:
            weights[names[0]] = torch.full(shapes[0], torch.nan)
        gradients = {name: draw(shape) for name, shape in zip(names, shapes, strict=True)}
        updates = {name: -0.01 * gradient for name, gradient in gradients.items()}
        diagnoses = tracker.tick(tick, weights, gradients, updates)
        rows += [row_of(diagnoses[name], step=20 * (tick + 1), layer=name, mode="full", rank=None) for name in names]
        weights = {name: weights[name] + 20 * updates[name] * (name != names[-1]) for name in names}
    return rows


def _demand(holds: bool, sentence: str) -> None:
    if not holds:
        raise AssertionError(f"{sentence}.")


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
