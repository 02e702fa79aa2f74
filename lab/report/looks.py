"""Looks of a study's planner, replayed from its runs: each contrast as it was decided."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lab.record.study import AA, Study, pairs_of
from lab.report.arms import Arm
from lab.report.jobs import Jobs
from lab.verdict import procedure
from lab.verdict.choice import Tuned
from lab.verdict.family import Judged
from lab.verdict.procedure import Chosen


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A contrast as the looks left it."""

    judged: Judged
    horizon: int
    arm: Tuned
    other: Tuned

    @property
    def at_best(self) -> bool:
        """True where both rates were searched for and found inside what was tried, and the claim clears the search."""
        clear = self.judged.clear or self.judged.verdict not in ("better", "worse")
        return self.arm.searched and self.other.searched and clear

    @property
    def regret(self) -> float | None:
        """What the tuning of both may have cost together; None where it is unbounded, or nothing was tuned."""
        regrets = [tuned.regret for tuned in (self.arm, self.other)]
        return None if None in regrets else sum(regret for regret in regrets if regret is not None)


def looks(jobs: Jobs, chosen: Chosen, arms: Iterable[Arm]) -> dict[str, Looked]:
    """Every contrast whose arms have a rate, and the A/A arm's, by name, replayed seed by seed; empty without looks."""
    study = jobs.study
    by_name = {arm.name: arm for arm in arms}
    if study.horizon is None:
        return {}
    ready = {name: tuned for name, tuned in chosen.tuned.items() if name in by_name}

    def ended(arm: str, rate: float, seed: int) -> tuple[bool, float | None]:
        own = by_name[arm]
        for run in (*own.runs, *own.unfinished):
            if run.pair[0] == seed and run.status == "completed":
                return True, run.value(study.metric)
        return jobs.ended("verdict", arm, rate, seed)[0], None

    found = procedure.look(study, Chosen(tuned=ready, margin=chosen.margin), ended)
    pairs = {name: pairs_of(study)[name] for name in found.judged}
    return {
        name: Looked(judged=own, horizon=study.horizon, arm=ready[pairs[name][0]], other=ready[pairs[name][1]])
        for name, own in found.judged.items()
    }


def with_rates(study: Study, chosen: Chosen, arms: Sequence[Arm]) -> tuple[list[Arm], list[Arm]]:
    """The arms with what is known of their rates, apart from the A/A arm, whose runs stand beside the baseline's."""
    every = [replace(arm, tuned=chosen.tuned.get(arm.name)) for arm in arms]
    again = [arm for arm in every if arm.name == AA and study.twin_seeds]
    others = [arm for arm in every if arm not in again]
    return [
        replace(arm, twins=again[0].runs, diverged_twins=again[0].diverged)
        if again and arm.name == study.baseline
        else arm
        for arm in others
    ], again
