"""Successive halving: at each rung but the last, the worse half of an arm's learning rates stops."""

import math
from collections.abc import Sequence

from lab.sweep.job import Plan, Seen, State, Stop, outcomes_of


def halve(state: State, arm: str, grid: Sequence[float], result: Plan) -> dict[float, list[float | None]] | None:
    """Outcome per rate and tuning seed at the last rung (None: diverged or stopped); None while runs are missing.

    Survivors continue in place from their checkpoints. Which runs passed a rung is read from the rungs of their
    records, and the number that may pass from how many entered: a planner that dies between two stops and is asked
    again stops no more than it would have. An arm keeps at least one rate, with all its seeds.
    Source: Jamieson and Talwalkar 2016; issue 6.
    """
    study = state.study
    alive, final = sorted(grid), dict[float, list[float | None]]()
    for rung in range(len(study.rungs)):
        open_work = len(result.jobs) + result.waiting
        done = {
            rate: [state.want(result, "halve", arm, rate, seed, seed, rung) for seed in study.tune_seeds]
            for rate in alive
        }
        if len(result.jobs) + result.waiting > open_work:
            return None
        runs = {rate: [run for run in per_seed if run is not None] for rate, per_seed in done.items()}
        final |= {rate: outcomes_of(per_seed) for rate, per_seed in runs.items()}
        if rung < len(study.rungs) - 1:
            alive = _survivors(state, arm, runs, rung, result)
    return {rate: values if rate in alive else [None] * len(values) for rate, values in final.items()}


def _survivors(state: State, arm: str, runs: dict[float, list[Seen]], rung: int, result: Plan) -> list[float]:
    """The better half of the rates that entered a rung; adds a Stop for each run that ends here."""
    passed = [rate for rate, per_seed in runs.items() if any(run.rung > rung for run in per_seed)]
    values = {rate: outcomes_of(per_seed) for rate, per_seed in runs.items() if rate not in passed}
    whole = {rate: math.fsum(v for v in own if v is not None) / len(own) for rate, own in values.items() if _whole(own)}
    ranked = sorted(whole, key=lambda rate: (whole[rate], rate))
    kept = ranked[: max(0, math.ceil(len(runs) / 2) - len(passed))]
    for rate in values:
        if rate in kept:
            continue
        why = (
            f"{state.study.selection_metric} {whole[rate]:.4g} at step {state.study.rungs[rung]} was in the worse half"
            if rate in whole
            else f"another seed did not reach step {state.study.rungs[rung]}"
        )
        reason = f"{why} of {len(runs)} learning rates of {arm}"
        result.stops += [Stop(path=run.path, reason=reason) for run in runs[rate] if run.status == "completed"]
    return sorted(passed + kept)


def _whole(values: Sequence[float | None]) -> bool:
    return bool(values) and None not in values
