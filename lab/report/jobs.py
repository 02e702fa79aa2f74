"""Jobs of a study as its runs left them, and which of them its planner gave up: how often it tried it only remembers.

A job that was killed may still go on, unless the study holds jobs that could only come after it had been given up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.record.study import Study, job_id, pairs_of, verdict_seeds_of
from lab.report.run import Run
from lab.verdict import procedure
from lab.verdict.procedure import Chosen

DONE = ("completed", "diverged", "stopped")


@dataclass(frozen=True, kw_only=True)
class Jobs:
    """Every attempt at each job, by the job's id; what was given up came to nothing, like a run that failed."""

    study: Study
    attempts: Mapping[str, Sequence[Run]]
    given_up: frozenset[str] = frozenset()

    def ended(self, stage: str, arm: str, rate: float, seed: int) -> tuple[bool, Run | None]:
        """Whether a job has ended, and the run that did it: None where it failed, or may still be done."""
        job = job_id(stage, arm, rate, seed)
        runs = self.attempts.get(job, ())
        done = next((run for run in runs if run.status in DONE), None)
        if done is not None or any(run.status == "running" for run in runs):
            return done is not None, done
        return job in self.given_up or any(run.status == "failed" for run in runs), None

    def ran(self, arm: str, rate: float, seeds: Sequence[int]) -> list[float | None] | None:
        """What an arm's tuning runs at a rate came to, as `procedure.Ran` has it."""
        found = [self.ended("tune", arm, rate, seed) for seed in seeds]
        if not all(ended for ended, _ in found):
            return None
        runs = [run for _, run in found if run is not None]
        if len(runs) < len(found):
            return []
        return [run.value(self.study.selection_metric) if run.status == "completed" else None for run in runs]

    def ends(self, stage: str, rate: float, seeds: Sequence[int]) -> list[tuple[float | None, float | None]] | None:
        """(loss of the base, loss) of the baseline's runs, as `procedure.Ends` has it."""
        found = [self.ended(stage, self.study.baseline, rate, seed) for seed in seeds]
        if not all(ended for ended, _ in found):
            return None
        metric = self.study.selection_metric
        return [(run.value(f"base_{metric}"), run.value(metric)) if run else (None, None) for _, run in found]

    def chosen(self) -> Chosen:
        """The learning rates, as the planner chose them."""
        return procedure.choose(self.study, self.ran, self.ends)


def jobs_of(study: Study, runs: Sequence[Run]) -> Jobs:
    """The jobs of a study, with those given up that explain most of what it holds: as few, the oldest first."""
    attempts: dict[str, list[Run]] = {}
    for run in runs:
        if run.record.stage in ("tune", "verdict") and run.record.arm and run.learning_rate is not None:
            seed = run.pair[0]
            if seed is not None:
                attempts.setdefault(job_id(run.record.stage, run.record.arm, run.learning_rate, seed), []).append(run)
    every = dict.fromkeys([*study.jobs, *attempts])
    killed = [job for job in every if all(run.status == "interrupted" for run in attempts.get(job, ()))]
    killed.sort(key=lambda job: str(study.jobs.get(job, {}).get("submitted", "")))
    each = [Jobs(study=study, attempts=attempts, given_up=frozenset(killed[:n])) for n in range(len(killed) + 1)]
    return min(each, key=lambda jobs: len(every.keys() - _planned(jobs)))


def _planned(jobs: Jobs) -> set[str]:
    """Ids of all jobs that the planner comes to ask for by what has ended."""
    study, asked = jobs.study, set[str]()

    def ran(arm: str, rate: float, seeds: Sequence[int]) -> list[float | None] | None:
        asked.update(job_id("tune", arm, rate, seed) for seed in seeds)
        return jobs.ran(arm, rate, seeds)

    def ended(arm: str, rate: float, seed: int) -> tuple[bool, float | None]:
        is_over, run = jobs.ended("verdict", arm, rate, seed)
        return is_over, run.value(study.metric) if run is not None and run.status == "completed" else None

    chosen = procedure.choose(study, ran, jobs.ends)
    if len(chosen.tuned) < len(study.arms):
        return asked
    looks, pairs = procedure.look(study, chosen, ended), pairs_of(study)
    counts = dict(looks.wanted)
    for name, own in looks.judged.items():
        counts |= {arm: max(counts[arm], own.seeds) for arm in pairs[name]}
    for arm, count in counts.items():
        rate = chosen.tuned[arm].rate
        assert rate is not None
        asked.update(job_id("verdict", arm, rate, seed) for seed, _ in verdict_seeds_of(study, arm)[:count])
    return asked
