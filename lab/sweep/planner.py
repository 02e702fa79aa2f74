"""Planner of a study, a pure function: what is on disk goes in, the next jobs come out. Asked again, it agrees."""

import math
from collections.abc import Collection, Iterable, Mapping

from lab.record.study import AA, Study, tune_seeds_of, verdict_seeds_of
from lab.sweep.job import Plan, Seen, State, outcomes_of
from lab.verdict import family, margin, tuning
from lab.verdict.null_table import FIRST_LOOK
from lab.verdict.tuning import MOST_EXTENSIONS, Scale, Tuned


def plan(
    study: Study, seen: Iterable[Seen], queued: Collection[str] = (), attempts: Mapping[str, int] | None = None
) -> Plan:
    """Next jobs of a study: tune every arm, then judge it at its own learning rate, a seed at a time.

    `queued` holds the ids of jobs that a launcher has accepted and that have not ended; `attempts` how often one was
    submitted since the sweep was last started, so that what cannot end is given up. The plan depends on nothing else,
    so a planner that died is replaced by calling it again. Verdict jobs come seed by seed, arms in turns, so that a
    machine that slows down slows all arms.
    """
    result, state = Plan(), State(study, tuple(seen), frozenset(queued), attempts or {})
    for arm in sorted(study.arms, key=lambda arm: arm != study.baseline):
        tuned = _tune(state, arm, result)
        if tuned is not None:
            result.tuned[arm] = tuned
            if tuned.rate is None:
                result.notes.append(f"{arm}: {tuned.reason}, so it gets no verdict")
            elif tuned.rule == "edge":
                result.notes.append(f"{arm}: {tuned.reason}, {tuned.rate:g}")
    if len(result.tuned) == len(study.arms):  # not before: arms are to take turns
        _judge(state, result)
    verdicts = [job for job in result.jobs if job.stage == "verdict"]
    verdicts.sort(key=lambda job: study.seeds.index(job.data_seed))
    result.jobs = [job for job in result.jobs if job.stage != "verdict"] + verdicts
    return result


def fewest_jobs(study: Study) -> int:
    """Tuning as long as no best rate lies at an edge, and verdicts that end at the first look."""
    return tuning_jobs(study) + sum(first_seeds(study, arm) for arm in study.arms)


def most_jobs(study: Study) -> int:
    """The same with verdicts up to the budget; extensions of the grids come on top."""
    judged = {study.baseline, *study.contrasts, AA} & set(study.arms)
    more = (study.budget or 0) - FIRST_LOOK if study.horizon is not None else 0
    return fewest_jobs(study) + len(judged) * more


def tuning_jobs(study: Study) -> int:
    """The baseline's grid, three rates of every arm that shares it, and the refinement of each."""
    total = 0
    for arm, grid in study.learning_rates.items():
        if len(grid) > 1:
            around = grid[len(grid) // 2] if _follows(study, arm) else None
            last = 3 * (len(study.tune_seeds) - 1)
            total += len(tuning.first_rates(grid, around)) + 2 + last
    return total


def first_seeds(study: Study, arm: str) -> int:
    """Verdict seeds of an arm that are run without a look."""
    return min(FIRST_LOOK, len(study.seeds)) if study.horizon is not None else len(verdict_seeds_of(study, arm))


def extensions_per_arm(study: Study) -> int:
    """Half-decades by which an arm's grid may grow: an equal share of the jobs left, whatever the other arms do."""
    tuned = sum(len(grid) > 1 for grid in study.learning_rates.values())
    return max(0, min(MOST_EXTENSIONS, (study.max_jobs - fewest_jobs(study)) // max(1, tuned)))


def _follows(study: Study, arm: str) -> bool:
    """True for an arm whose search starts around the baseline's best rate."""
    grids = study.learning_rates
    return arm != study.baseline and sorted(grids[arm]) == sorted(grids[study.baseline]) and len(grids[arm]) > 3


def _tune(state: State, arm: str, result: Plan) -> Tuned | None:
    """The arm's learning rate, or None while runs are missing.

    The baseline's first refinement gives the margin, and with it the scale on which every arm is refined.
    """
    study, around = state.study, None
    if arm != study.baseline:
        baseline = result.tuned.get(study.baseline)
        if baseline is None:
            if not _follows(study, arm):  # its own grid need not wait
                _search(state, arm, result, None, Scale())
            return None
        around = _coarse_best(study, baseline) if _follows(study, arm) else None
        return _search(state, arm, result, around, Scale.of(result.margin))
    first = _search(state, arm, result, None, Scale())
    if first is None:
        return None
    result.margin = _margin(state, first)
    return _search(state, arm, result, None, Scale.of(result.margin)) if result.margin is not None else first


def _coarse_best(study: Study, baseline: Tuned) -> float | None:
    return tuning.best_rate(study.learning_rates[study.baseline], {r: [v] for r, v in baseline.curve.items()})


def _search(state: State, arm: str, result: Plan, around: float | None, scale: Scale) -> Tuned | None:
    study, seeds = state.study, tune_seeds_of(state.study, arm)

    def ran(rate: float, count: int) -> list[float | None] | None:
        runs = [state.want(result, "tune", arm, rate, seed, seed) for seed in seeds[:count]]
        return None if None in runs else outcomes_of(run for run in runs if run is not None)

    return tuning.search(
        study.learning_rates[arm],
        ran,
        around=around,
        seeds=len(seeds),
        scale=scale,
        most_extensions=extensions_per_arm(study),
    )


def _margin(state: State, tuned: Tuned) -> float | None:
    """The margin in units of the metric: as it was written down, else by the baseline's run of the tuning seed.

    Where nothing was tuned there is none, and its first verdict seeds stand for it.
    """
    study, rate = state.study, tuned.rate
    if study.margin_value is not None or rate is None:
        return study.margin_value
    stage, seeds, near = "verdict", study.seeds[: first_seeds(study, study.baseline)], rate
    if tuned.curve:
        near = min(tuned.curve, key=lambda each: abs(math.log(each / rate)))
        stage, seeds = "tune", study.tune_seeds[:1]
    runs = [state.ended(stage, study.baseline, near, seed) for seed in seeds]
    known = [(run.base, run.outcome) for run in runs if run is not None]
    return margin.value(study.margin, known) if len(known) == len(runs) else None


def _judge(state: State, result: Plan) -> None:
    """Ask for the runs of the next looks."""
    study = state.study
    ready = {arm: own for arm, own in result.tuned.items() if own.rate is not None}
    wanted = {arm: first_seeds(study, arm) for arm in ready}
    if study.horizon is not None and study.baseline in ready:
        rules = family.Rules(horizon=study.horizon, budget=study.budget or study.horizon, give_up=study.give_up)
        for names in (study.contrasts, [AA] if AA in study.arms else []):
            judged = [name for name in names if name in ready or name not in result.tuned]
            families = family.judge(
                {name: _differences(state, result, name) if name in ready else [] for name in judged},
                result.margin,
                higher_is_better=study.higher_is_better,
                rules=rules,
                regrets={name: _regrets(result, name, study.baseline) for name in judged},
            )
            wanted |= {name: seeds for name, seeds in families.wanted.items() if name in ready}
        wanted[study.baseline] = max(wanted.values())
    for arm, count in wanted.items():
        rate = ready[arm].rate
        assert rate is not None
        for seed, data_seed in verdict_seeds_of(study, arm)[:count]:
            state.want(result, "verdict", arm, rate, seed, data_seed)


def _differences(state: State, result: Plan, arm: str) -> list[float | None]:
    """Arm − baseline, seed by seed up to the first that has not ended for both; None for a pair that is lost."""
    study, differences = state.study, list[float | None]()
    rates = [result.tuned[name].rate for name in (arm, study.baseline)]
    pairs = zip(verdict_seeds_of(study, arm), study.seeds, strict=True)
    for (seed, _), other in pairs:
        ended = [
            state.ended("verdict", name, rate, own)
            for name, rate, own in zip((arm, study.baseline), rates, (seed, other), strict=True)
            if rate is not None
        ]
        values = [run.value if run.status == "completed" else None for run in ended if run is not None]
        if len(values) < 2:
            break
        a, b = values
        differences.append(None if a is None or b is None else a - b)
    return differences


def _regrets(result: Plan, arm: str, baseline: str) -> tuple[float, float]:
    """What tuning may have cost the arm and the baseline."""
    return tuple(result.tuned[name].cost if name in result.tuned else 0.0 for name in (arm, baseline))  # type: ignore[return-value]
