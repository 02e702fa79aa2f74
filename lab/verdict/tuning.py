"""Search for an arm's learning rate, a pure function: outcomes so far go in, the next rates or the choice come out.

Half decades find the valley, a quarter decade on either side of the best measures it, and the vertex of the parabola
through the last three, in the logarithm of the rate, is used without being run. Standard library only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lab.verdict.choice import FINE, Outcomes, Scale, Tuned, best_rate, choose, curve_of, last_three, loss_of, rounded

COARSE = 0.5  # decades between the rates of the first step
MOST_EXTENSIONS = 4  # half decades beyond the grid: two orders of magnitude are enough to see a runaway
MOST_STEPS = 3  # rates that a refinement may add beyond its two, where the best moves on to an edge
NEAR = 1.4  # spacings within which a neighbour counts as one: half decades of the series 1, 3, 10 are 0.48 and 0.52


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Rates to run next, each on the first `seeds` tuning seeds."""

    rates: tuple[float, ...]
    seeds: int = 1


def tune(
    grid: Sequence[float],
    outcomes: Outcomes,
    *,
    around: float | None = None,
    seeds: int = 1,
    scale: Scale | None = None,
    most_extensions: int = MOST_EXTENSIONS,
    refine: bool = True,
) -> Wanted | Tuned:
    """Next rates to run, or the choice once enough are known.

    `outcomes` holds the loss per tuning seed, None for one that diverged, and an empty list for a rate with a run that
    failed otherwise, which is left out. Only the last three rates are run on all `seeds`, and compared on all of them.
    `around` is the baseline's best coarse rate: an arm of the same grid starts from three rates there. Where the regret
    exceeds `scale.tolerance`, the refinement is repeated once at half its spacing. A grid of one rate is a declaration.
    Without `refine` the best of the grid is the choice, by the mean of all tuning seeds, and nothing else is run.
    """
    scale = scale or Scale()
    if len(grid) == 1:
        return Tuned(rate=grid[0], rule="declared", reason="declared, not tuned", curve={})
    if not refine:
        return _best_of(grid, outcomes, seeds, scale.missing)
    coarse = first_rates(grid, around)
    wanted = _unknown(coarse, outcomes)
    for _ in range(most_extensions):
        if wanted:
            return wanted
        best = best_rate(coarse, outcomes)
        if not any(outcomes[rate] for rate in coarse):
            break
        edges = min(coarse), max(coarse)
        if best is not None and best not in edges:
            break
        # Where everything diverged the only way out is down.
        upward = best == edges[1]
        coarse.append(neighbour(edges[1] if upward else edges[0], upward))
        wanted = _unknown(coarse, outcomes)
    if wanted:
        return wanted
    best = best_rate(coarse, outcomes)
    if best is None:
        ran = any(outcomes[rate] for rate in coarse)
        reason = f"every learning rate {scale.missing}" if ran else "every tuning job failed"
        return Tuned(rate=None, rule="none", reason=reason, curve=curve_of(coarse, outcomes))
    known, spacing = coarse, FINE
    while True:
        more = _refine(known, outcomes, spacing)
        if isinstance(more, Wanted):
            return more
        known = more
        choice = choose(known, outcomes, 1, spacing, scale)
        if spacing < FINE or choice.regret is None or choice.regret <= scale.tolerance:
            break
        spacing /= 2
    if seeds == 1 or choice.rule == "edge":
        return choice
    last = last_three(known, outcomes) or []
    again = [rate for rate in last if len(outcomes[rate]) < seeds and math.isfinite(loss_of(outcomes[rate]))]
    if again:
        return Wanted(rates=tuple(again), seeds=seeds)
    return choose(known, outcomes, seeds, spacing, scale)


def search(
    grid: Sequence[float],
    ran: Callable[[float, int], list[float | None] | None],
    *,
    around: float | None = None,
    seeds: int = 1,
    scale: Scale | None = None,
    most_extensions: int = MOST_EXTENSIONS,
    refine: bool = True,
) -> Tuned | None:
    """The choice, fed by `ran(rate, seeds)`: outcomes as `tune` takes them, or None where a run is missing.

    All rates of a step are asked for before it is given up, so that `ran` may note what is to be run. None: not yet.
    """
    outcomes: dict[float, list[float | None]] = {}
    while True:
        step = tune(
            grid, outcomes, around=around, seeds=seeds, scale=scale, most_extensions=most_extensions, refine=refine
        )
        if isinstance(step, Tuned):
            return step
        found = {rate: ran(rate, step.seeds) for rate in step.rates}
        for rate, own in found.items():
            if own is None:
                return None
            outcomes[rate] = own


def first_rates(grid: Sequence[float], around: float | None) -> list[float]:
    """The rates an arm starts from: its whole grid, or three round the baseline's best where that is on the grid."""
    rates = sorted(grid)
    if around is None or around not in rates:
        return rates
    i = rates.index(around)
    lower = rates[i - 1] if i > 0 else neighbour(around, False)
    upper = rates[i + 1] if i + 1 < len(rates) else neighbour(around, True)
    return [lower, around, upper]


def neighbour(rate: float, upward: bool) -> float:
    """The neighbour half a decade away, in the 1, 3, 10 series where the rate is in it."""
    mantissa, exponent = f"{rate:.6e}".split("e")
    if float(mantissa) == 1.0:
        return float(f"3e{int(exponent) if upward else int(exponent) - 1}")
    if float(mantissa) == 3.0:
        return float(f"1e{int(exponent) + 1 if upward else int(exponent)}")
    return rounded(math.log10(rate) + (COARSE if upward else -COARSE))


def _best_of(grid: Sequence[float], outcomes: Outcomes, seeds: int, missing: str) -> Wanted | Tuned:
    """The best of a grid that is run as it is, on all `seeds`; a rate that diverged on one of them is lost."""
    unknown = tuple(rate for rate in sorted(grid) if rate not in outcomes)
    if unknown:
        return Wanted(rates=unknown, seeds=seeds)
    losses = {rate: loss_of(own, seeds) for rate, own in outcomes.items() if own}
    alive = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    curve = {rate: alive.get(rate) for rate in sorted(losses)}
    if not alive:
        reason = f"every learning rate {missing}" if losses else "every tuning job failed"
        return Tuned(rate=None, rule="none", reason=reason, curve=curve)
    best = min(sorted(alive), key=lambda rate: alive[rate])
    return Tuned(rate=best, rule="grid", reason=f"the best of the {len(grid)} tried", curve=curve)


def _refine(known: list[float], outcomes: Outcomes, spacing: float) -> list[float] | Wanted:
    """The known rates once the best of them has a neighbour on both sides at about `spacing` decades."""
    known = list(known)
    for _ in range(2 + MOST_STEPS):
        best = best_rate(known, outcomes)
        assert best is not None
        at = math.log10(best)
        gaps = [math.log10(rate) - at for rate in known if rate != best]
        missing = [s * spacing for s in (-1, 1) if not any(0 < s * gap <= NEAR * spacing for gap in gaps)]
        added = [rounded(at + step) for step in missing]
        if not added:
            break
        wanted = _unknown(added, outcomes)
        if wanted:
            return wanted
        known += added
    return known


def _unknown(rates: Sequence[float], outcomes: Outcomes) -> Wanted | None:
    missing = tuple(rate for rate in rates if rate not in outcomes)
    return Wanted(rates=missing) if missing else None
