"""Planner of a study, a pure function: what is on disk goes in, the next jobs come out. Asked again, it agrees."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from lab.record.study import Study, verdict_seeds_of
from lab.sweep.job import Plan, Seen, State, outcomes_of
from lab.verdict import procedure


def plan(
    study: Study, seen: Iterable[Seen], queued: Collection[str] = (), attempts: Mapping[str, int] | None = None
) -> Plan:
    """Next jobs of a study: tune every arm, then judge it at its own learning rate, a seed at a time.

    `queued` holds the ids of jobs that a launcher has accepted and that have not ended; `attempts` how often one was
    submitted since the sweep was last started, so that what cannot end is given up. The plan depends on nothing else,
    so a planner that died is replaced by calling it again. Verdicts wait for the last arm's rate and come seed by seed,
    arms in turns, so that a machine that slows down slows all arms.
    """
    result, state = Plan(), State(study, tuple(seen), frozenset(queued), attempts or {})

    def ran(arm: str, rate: float, seeds: Sequence[int]) -> list[float | None] | None:
        runs = [state.want(result, "tune", arm, rate, seed, seed) for seed in seeds]
        return None if None in runs else outcomes_of(run for run in runs if run is not None)

    def ends(stage: str, rate: float, seeds: Sequence[int]) -> list[tuple[float | None, float | None]] | None:
        runs = [state.ended(stage, study.baseline, rate, seed) for seed in seeds]
        return None if None in runs else [(run.base, run.outcome) for run in runs if run is not None]

    def ended(arm: str, rate: float, seed: int) -> tuple[bool, float | None]:
        run = state.ended("verdict", arm, rate, seed)
        return run is not None, run.value if run is not None and run.status == "completed" else None

    chosen = procedure.choose(study, ran, ends)
    result.tuned, result.margin = chosen.tuned, chosen.margin
    for arm, tuned in chosen.tuned.items():
        if tuned.rate is None:
            result.notes.append(f"{arm}: {tuned.reason}, so it gets no verdict")
        elif tuned.rule == "edge":
            result.notes.append(f"{arm}: {tuned.reason}, {tuned.rate:g}")
    if len(chosen.tuned) < len(study.arms):
        return result
    verdicts = Plan()
    for arm, count in procedure.look(study, chosen, ended).wanted.items():
        rate = chosen.tuned[arm].rate
        assert rate is not None
        for seed, data_seed in verdict_seeds_of(study, arm)[:count]:
            state.want(verdicts, "verdict", arm, rate, seed, data_seed)
    result.jobs += sorted(verdicts.jobs, key=lambda job: study.seeds.index(job.data_seed))
    result.waiting += verdicts.waiting
    result.given_up += verdicts.given_up
    result.notes += verdicts.notes
    return result
