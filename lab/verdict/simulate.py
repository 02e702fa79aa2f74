"""Error rates of the whole procedure, tuning included, on response curves.

A simulated study tunes its arms with `tune` and judges its contrasts with `looks` and `decide`, the functions a study
uses. Units are nats and decades. A curve is quadratic, steeper on its right, and its bottom is the arm's loss at its
own best rate: what is true of two arms is the difference of their bottoms.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from lab.verdict import family
from lab.verdict.choice import Scale, Tuned, best_rate
from lab.verdict.family import EQUIVALENT, Rules
from lab.verdict.sequential import LEVEL
from lab.verdict.tuning import Wanted, tune

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
CORRELATION = 0.35  # of two contrasts, through the baseline they share
DIVERGED = 10.0  # loss above the bottom of a judged run beyond the cliff: more than any margin
NULLS = (0.0,) * 4


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true in a simulated study."""

    effects: tuple[float, ...] = NULLS  # loss of each arm at its own best rate, over the baseline's
    curvature: float = 2.6  # left of the optimum
    steeper: float = 5.0  # curvature right of it, over that
    cliff: float = math.inf  # decades right of the optimum from which runs diverge
    apart: float = 0.25  # an arm's optimum lies uniformly within ± this of the baseline's
    shift: float | None = None  # if given, exactly this above it
    noise: float = 0.02  # standard deviation of a tuning run, beyond what all rates of a seed share
    sd: float = 0.025  # of a paired difference
    margin: float = 0.029
    shape: str = "normal"  # of the differences: normal | t3 | unequal (spreads from 0.6 to 1.6 times sd)


@dataclass(frozen=True, kw_only=True)
class Procedure:
    """How a study is tuned and judged."""

    seeds: int = 1  # tuning seeds of the last three rates
    scale: Scale = field(default_factory=lambda: Scale(tolerance=0.029))
    half_decades: bool = False  # the best of the coarse grid, and no regret stated
    rules: Rules = field(default_factory=Rules)
    until_clear: bool = True  # a difference gets seeds until it is clear of the loser's regret
    both: bool = False  # a difference must clear the regrets of both arms


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of studies, of contrasts or of arms; a claim is unqualified where it is clear of the tuning regret."""

    false_difference: float  # studies with a better or worse that is not true, qualified or not
    false_unqualified: float  # studies with one that does not say "at the rates tried"
    false_equivalence: float  # studies with an equivalent where the truth is at the margin or beyond
    found: float  # contrasts with a true effect that got its verdict, qualified or not
    found_unqualified: float
    equivalent: float  # contrasts
    honest: float  # arms whose regret stays within the one stated
    regret: float  # mean over arms
    stated: float  # median over arms
    tuning_jobs: float  # per study
    verdict_jobs: float


def simulate(world: World, procedure: Procedure, studies: int, seed: int = 0) -> Rates:
    """What so many studies claim; seeded."""
    rng = np.random.default_rng(seed)
    arms, budget = len(world.effects), procedure.rules.budget
    base = math.log10(GRID[len(GRID) // 2]) + rng.uniform(-0.25, 0.25, (studies, 1))
    apart = rng.uniform(-world.apart, world.apart, (studies, arms)) if world.shift is None else world.shift
    optima = np.concatenate([base, np.broadcast_to(base + apart, (studies, arms))], axis=1)
    positions, stated, tuning_jobs = _tune_all(world, procedure, optima, rng)
    cost = _loss(world, positions - optima)
    effects = np.array(world.effects)
    differences = (effects + cost[:, 1:] - cost[:, :1])[..., None] + world.sd * _noise(
        world.shape, (studies, arms, budget), rng
    )
    regrets = np.stack([stated[:, 1:], np.broadcast_to(stated[:, :1], (studies, arms))], axis=-1)
    seen = family.looks(differences, world.margin, procedure.rules, regrets=regrets)
    if procedure.both:
        sums = np.broadcast_to(regrets.sum(axis=-1, keepdims=True), regrets.shape)
        wider = family.looks(differences, world.margin, procedure.rules, regrets=sums)
        seen = replace(seen, p_clear=wider.p_clear, hopeless_clear=wider.hopeless_clear)
    ends = seen if procedure.until_clear else replace(seen, p_clear=seen.p, hopeless_clear=seen.hopeless)
    decided = family.decide(ends, np.full((studies, arms), budget))
    latest = decided.seeds[..., None] - 1
    mean = np.take_along_axis(differences.cumsum(axis=-1), latest, axis=-1)[..., 0]
    equal = decided.state == EQUIVALENT
    claimed = (decided.p_adjusted <= LEVEL) & ~equal
    clear = claimed & (family.holm(np.take_along_axis(seen.p_clear, latest, axis=-1)[..., 0]) <= LEVEL)
    right = np.sign(mean) == np.sign(effects)  # zero has no sign of its own, so no claim about it is right
    real = effects != 0
    return Rates(
        false_difference=_share((claimed & ~right).any(axis=-1)),
        false_unqualified=_share((clear & ~right).any(axis=-1)),
        false_equivalence=_share((equal & (np.abs(effects) >= world.margin)).any(axis=-1)),
        found=_share((claimed & right)[:, real]),
        found_unqualified=_share((clear & right)[:, real]),
        equivalent=_share(equal),
        honest=_share(cost <= stated),
        regret=float(cost.mean()),
        stated=float(np.median(stated)),
        tuning_jobs=float(tuning_jobs.mean()),
        verdict_jobs=float((decided.seeds.sum(axis=-1) + decided.seeds.max(axis=-1)).mean()),
    )


def _tune_all(
    world: World, procedure: Procedure, optima: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chosen position and stated regret of every arm (studies, arms), and tuning jobs of every study."""
    positions, stated, jobs = np.empty(optima.shape), np.empty(optima.shape), np.zeros(len(optima))
    noise = _stream(rng)
    for study, row in enumerate(optima.tolist()):
        around: float | None = None
        for arm, optimum in enumerate(row):
            known: dict[float, list[float | None]] = {}
            step = _step(procedure, known, around)
            while isinstance(step, Wanted):
                for rate in step.rates:
                    own = known.setdefault(rate, [])
                    own += [_run(world, math.log10(rate) - optimum, next(noise)) for _ in range(step.seeds - len(own))]
                step = _step(procedure, known, around)
            assert step.rate is not None, step.reason
            around = best_rate(GRID, known) if arm == 0 else around
            jobs[study] += sum(map(len, known.values()))
            positions[study, arm] = math.log10(step.rate)
            stated[study, arm] = math.inf if step.regret is None else step.regret
    return positions, stated, jobs


def _step(procedure: Procedure, known: dict[float, list[float | None]], around: float | None) -> Wanted | Tuned:
    if not procedure.half_decades:
        return tune(GRID, known, around=around, seeds=procedure.seeds, scale=procedure.scale)
    missing = tuple(rate for rate in GRID if rate not in known)
    if missing:
        return Wanted(rates=missing)
    return Tuned(rate=best_rate(GRID, known), rule="declared", reason="the best half decade", curve={}, regret=0.0)


def _run(world: World, distance: float, noise: float) -> float | None:
    """Outcome of a tuning run this many decades from the optimum; None where it diverges."""
    if distance > world.cliff:
        return None
    return (world.steeper if distance > 0 else 1.0) * world.curvature * distance**2 / 2 + world.noise * noise


def _loss(world: World, distance: np.ndarray) -> np.ndarray:
    """Loss above the bottom of a judged run, at distances in decades from the optimum."""
    side = np.where(distance > 0, world.steeper, 1.0)
    return np.where(distance > world.cliff, DIVERGED, side * world.curvature * distance**2 / 2)


def _noise(shape: str, size: tuple[int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Paired differences of unit standard deviation (studies, arms, seeds), correlated through the baseline."""
    draw: Callable[[tuple[int, ...]], np.ndarray] = rng.standard_normal
    if shape == "t3":
        draw = lambda size: rng.standard_t(3, size) / math.sqrt(3)  # noqa: E731
    shared = draw((size[0], 1, size[2]))
    each = math.sqrt(CORRELATION) * shared + math.sqrt(1 - CORRELATION) * draw(size)
    return each * np.linspace(0.6, 1.6, size[1])[:, None] if shape == "unequal" else each


def _stream(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.standard_normal(10_000).tolist()


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else math.nan
