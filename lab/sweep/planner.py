"""Planner of a study, a pure function: what is on disk goes in, the next jobs come out. Asked again, it agrees."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from lab.record.study import Study, best_learning_rate
from lab.sweep.halving import halve
from lab.sweep.job import Plan, Seen, State, outcomes_of

MOST_EXTENSIONS = 4  # half-decades beyond the grid: two orders of magnitude are enough to see a runaway


def plan(
    study: Study, seen: Iterable[Seen], queued: Collection[str] = (), attempts: Mapping[str, int] | None = None
) -> Plan:
    """Next jobs of a study: tune every arm, then judge it on all seeds at its own learning rate.

    `queued` holds the keys of jobs that a launcher has accepted and that have not ended; `attempts` how often a key
    was submitted since the sweep was last started, so that what cannot end is given up. The plan depends on nothing
    else, so a planner that died is replaced by calling it again. Verdict jobs come seed by seed, arms in turns, so
    that a machine that slows down slows all arms. Source: issue 6, "Sweeping".
    """
    result, state = Plan(), State(study, tuple(seen), frozenset(queued), attempts or {})
    for arm, grid in study.learning_rates.items():
        rate = grid[0] if len(grid) == 1 else _tune(state, arm, grid, result)
        if rate is None:
            continue
        result.chosen[arm] = rate
        for seed in study.seeds:
            state.want(result, "verdict", arm, rate, seed, seed)
        if arm == study.baseline:
            for twin, seed in zip(study.twin_seeds, study.seeds, strict=True):
                state.want(result, "verdict", arm, rate, twin, seed)
    verdicts = [job for job in result.jobs if job.stage == "verdict"]
    verdicts.sort(key=lambda job: study.seeds.index(job.data_seed))
    result.jobs = [job for job in result.jobs if job.stage != "verdict"] + verdicts
    return result


def next_rate(rate: float, upward: bool) -> float:
    """The neighbour half a decade away, in the 1, 3, 10 series where the rate is in it."""
    digits = f"{rate:.6e}"
    mantissa, exponent = float(digits.split("e")[0]), int(digits.split("e")[1])
    if mantissa == 1.0:
        return float(f"3e{exponent if upward else exponent - 1}")
    if mantissa == 3.0:
        return float(f"1e{exponent + 1 if upward else exponent}")
    return float(f"{rate * math.sqrt(10) ** (1 if upward else -1):.3g}")


def jobs_before_extensions(study: Study) -> int:
    """Tuning on the declared grids, then every arm's verdict seeds and the baseline's twins."""
    tuning = sum(len(grid) * len(study.tune_seeds) for grid in study.learning_rates.values() if len(grid) > 1)
    return tuning + len(study.arms) * len(study.seeds) + len(study.twin_seeds)


def extensions_per_arm(study: Study) -> int:
    """Half-decades by which an arm's grid may grow: an equal share of the jobs left, whatever the other arms do."""
    tuned = sum(len(grid) > 1 for grid in study.learning_rates.values())
    left = study.max_jobs - jobs_before_extensions(study)
    return max(0, min(MOST_EXTENSIONS, left // max(1, tuned * len(study.tune_seeds))))


def _tune(state: State, arm: str, grid: Sequence[float], result: Plan) -> float | None:
    """The arm's best learning rate, or None while runs are missing; the grid grows while its best is at an edge."""
    search = halve if state.study.rungs else _outcomes
    outcomes = search(state, arm, grid, result)
    if outcomes is None:
        return None
    allowed = extensions_per_arm(state.study)
    for extension in range(allowed + 1):
        best = best_learning_rate(outcomes)
        rates = sorted(outcomes)
        if best is None and not any(outcomes.values()):
            result.notes.append(f"{arm}: every tuning job failed, so it gets no verdict")
            return None
        # Where everything diverged the only way out is down.
        upward = best == rates[-1] and len(rates) > 1
        if best is not None and best not in (rates[0], rates[-1]):
            return best
        if extension == allowed:
            break
        more = _outcomes(state, arm, [next_rate(rates[-1] if upward else rates[0], upward)], result)
        if more is None:
            return None
        outcomes = {**outcomes, **more}
    edge = "no learning rate converged" if best is None else f"the best learning rate {best:g} is still at the edge"
    result.notes.append(f"{arm}: {edge} after {allowed} extensions")
    return best


def _outcomes(state: State, arm: str, rates: Sequence[float], result: Plan) -> dict[float, list[float | None]] | None:
    """Selection metric per rate and tuning seed (None: diverged; absent: failed); None while any is missing."""
    done = {
        rate: [state.want(result, "tune", arm, rate, seed, seed) for seed in state.study.tune_seeds] for rate in rates
    }
    if any(run is None for runs in done.values() for run in runs):
        return None
    return {rate: outcomes_of(run for run in runs if run is not None) for rate, runs in done.items()}
