"""Looks of a study's planner, replayed from its runs: each contrast as it was decided."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lab.record.study import AA, Study, pairs_of
from lab.report.arms import Arm
from lab.report.jobs import Jobs
from lab.verdict import procedure
from lab.verdict.choice import Tuned
from lab.verdict.family import Judged, Verdict
from lab.verdict.procedure import Chosen


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A contrast as the looks left it."""

    judged: Judged
    horizon: int
    arm: Tuned
    other: Tuned
    margin: float | None = None

    @property
    def at_best(self) -> bool:
        """True where both rates were searched for and found inside what was tried, and the claim clears the search.

        An equivalence does where both searches together may have cost no more than its margin.
        """
        clear = self.judged.clear or self.judged.verdict not in ("better", "worse")
        if self.judged.verdict == "equivalent":
            clear = self.margin is None or self.arm.cost + self.other.cost <= self.margin
        return self.arm.searched and self.other.searched and clear

    @property
    def regret(self) -> float | None:
        """What the tuning of both may have cost together; None where it is unbounded, or nothing was tuned."""
        regrets = [tuned.regret for tuned in (self.arm, self.other)]
        return None if None in regrets else sum(regret for regret in regrets if regret is not None)

    def turned(self) -> "Looked":
        """The same contrast with its arms in the other order: every difference has the other sign."""
        own, seen = self.judged, self.judged.contrast
        mean, low, high = (None if value is None else -value for value in (seen.mean, seen.ci_high, seen.ci_low))
        verdict: Verdict = "worse" if own.verdict == "better" else "better" if own.verdict == "worse" else own.verdict
        turned = replace(own, verdict=verdict, contrast=replace(seen, mean=mean, ci_low=low, ci_high=high))
        return replace(self, judged=turned, arm=self.other, other=self.arm)


@dataclass(frozen=True)
class Replay:
    """Contrasts of seeds that were taken one at a time, by their arms; a test of a fixed number does not hold there."""

    looked: Mapping[tuple[str, str], Looked] = field(default_factory=dict)
    declared: Collection[tuple[str, str]] = ()  # by which the seeds were taken

    def of(self, a: str, b: str) -> Looked | str:
        """What the looks left of a contrast, whichever way round it was declared, or why it has no verdict."""
        for pair in ((a, b), (b, a)):
            if pair in self.looked:
                return self.looked[pair] if pair == (a, b) else self.looked[pair].turned()
            if pair in self.declared:
                return "its learning rate is not known yet, so nothing was looked at"
        return (
            "its seeds were taken one at a time until contrasts that were declared had ended, and this is none of them"
        )


def looks(jobs: Jobs, chosen: Chosen, arms: Iterable[Arm]) -> Replay | None:
    """Every contrast whose arms have a rate, and the A/A arm's, replayed seed by seed; None without looks."""
    study = jobs.study
    by_name = {arm.name: arm for arm in arms}
    if study.horizon is None:
        return None
    ready = {name: tuned for name, tuned in chosen.tuned.items() if name in by_name}

    def ended(arm: str, rate: float, seed: int) -> tuple[bool, float | None]:
        own = by_name[arm]
        for run in (*own.runs, *own.unfinished):
            if run.pair[0] == seed and run.status == "completed":
                return True, run.value(study.metric)
        return jobs.ended("verdict", arm, rate, seed)[0], None

    found = procedure.look(study, Chosen(tuned=ready, margin=chosen.margin), ended)
    pairs = pairs_of(study)
    looked = {
        pairs[name]: Looked(
            judged=own,
            horizon=study.horizon,
            arm=ready[pairs[name][0]],
            other=ready[pairs[name][1]],
            margin=chosen.margin,
        )
        for name, own in found.judged.items()
    }
    return Replay(looked, pairs.values())


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
