"""Looks of a study's planner, replayed from its runs: each arm's learning rate, and each contrast as it was decided."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lab.record.study import AA, Study, pairs_of
from lab.report.arms import Arm
from lab.report.run import Run
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


def chosen_rates(study: Study, runs: Sequence[Run]) -> Chosen:
    """The learning rates, from the tuning runs, as the planner chose them."""
    tuning = {(run.record.arm, run.learning_rate, run.record.seed): run for run in runs if run.record.stage == "tune"}
    verdicts = {(run.learning_rate, run.record.seed): run for run in runs if _is_baseline_verdict(run, study)}

    def ran(arm: str, rate: float, seeds: Sequence[int]) -> list[float | None] | None:
        found = [tuning.get((arm, rate, seed)) for seed in seeds]
        if any(run is None or run.status not in ("completed", "diverged", "stopped", "failed") for run in found):
            return None
        each = [run for run in found if run is not None]
        if any(run.status == "failed" for run in each):
            return []
        return [run.value(study.selection_metric) if run.status == "completed" else None for run in each]

    def ends(stage: str, rate: float, seeds: Sequence[int]) -> list[tuple[float | None, float | None]] | None:
        held = (
            verdicts
            if stage == "verdict"
            else {(r, s): run for (arm, r, s), run in tuning.items() if arm == study.baseline}
        )
        found = [held.get((rate, seed)) for seed in seeds]
        if None in found:
            return None
        base = f"base_{study.selection_metric}"
        return [(run.value(base), run.value(study.selection_metric)) for run in found if run is not None]

    return procedure.choose(study, ran, ends)


def _is_baseline_verdict(run: Run, study: Study) -> bool:
    return run.record.stage == "verdict" and run.record.arm == study.baseline


def looks(study: Study, chosen: Chosen, arms: Iterable[Arm]) -> dict[str, Looked]:
    """Every contrast whose arms have a rate, and the A/A arm's, by name, replayed seed by seed; empty without looks."""
    by_name = {arm.name: arm for arm in arms}
    if study.horizon is None:
        return {}
    ready = {name: tuned for name, tuned in chosen.tuned.items() if name in by_name}

    def ended(arm: str, rate: float, seed: int) -> tuple[bool, float | None]:
        own = by_name[arm]
        for run in (*own.runs, *own.unfinished):
            if run.pair[0] == seed:
                if run.status == "completed":
                    return True, run.value(study.metric)
                return run.status in ("diverged", "stopped", "failed"), None
        return False, None

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
