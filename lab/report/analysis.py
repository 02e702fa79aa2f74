"""Analysis of a study: its arms and every comparison, computed once from the run directories."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.record import strict
from lab.record.study import Study
from lab.report import statistics
from lab.report.arms import Arm, arms, on_shared_seeds
from lab.report.comparison import Comparison, compare
from lab.report.jobs import jobs_of
from lab.report.judgement import Judgement, judgement_of
from lab.report.looks import looks, with_rates
from lab.report.ranks import RankAnswers, rank_answers
from lab.report.run import Run
from lab.report.statistics import mean_sd
from lab.report.study import LoadedStudy, Problem, load_study
from lab.report.switching import Switching, switching_of
from lab.verdict import aim
from lab.verdict.aim import Aim

STATUSES = ("completed", "diverged", "failed", "stopped", "interrupted", "running")

ONE_BY_ONE = "BasicLauncher"  # Hydra's own


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """A study, its arms, and the comparisons between them."""

    study: LoadedStudy
    arms: tuple[Arm, ...]
    again: Arm | None = None  # the A/A arm, which no summary counts
    judgement: Judgement
    comparisons: tuple[Comparison, ...]
    ranks: RankAnswers | None
    switching: Mapping[Path, Switching] = field(default_factory=dict)  # of the runs whose policy may switch layers

    @property
    def aa(self) -> Comparison | None:
        """The baseline against itself."""
        return next((row for row in self.comparisons if row.kind == "aa"), None)

    @property
    def contrasts(self) -> list[Comparison]:
        """Rows with a verdict: the declared contrasts with the baseline."""
        return [row for row in self.comparisons if row.kind == "contrast"]

    @property
    def described(self) -> list[Comparison]:
        """Rows of the primary metric that no one declared a contrast."""
        primary = self.judgement.metric
        return [row for row in self.comparisons if row.kind == "described" and row.metric == primary]

    @property
    def aims(self) -> list[Aim]:
        """What the study declared that it was to reach."""
        return [aim.parse(words) for words in self.study.declared.aims] if self.study.declared else []

    @property
    def unfinished(self) -> list[Run]:
        """Every run that did not complete, tuning included."""
        return [run for run in self.study.runs if run.status != "completed"]

    @property
    def counts(self) -> dict[str, int]:
        """Runs by status; only statuses that occur."""
        counts = {status: sum(run.status == status for run in self.study.runs) for status in STATUSES}
        return {status: count for status, count in counts.items() if count}


def analyse(study_dir: str | Path, *, baseline: str | None = None, margin: str | None = None) -> Analysis:
    """Load, sort and judge a study; raises UsageError for a directory, baseline or margin that is none."""
    return analysis_of(load_study(study_dir), baseline=baseline, margin=margin)


def analysis_of(study: LoadedStudy, *, baseline: str | None = None, margin: str | None = None) -> Analysis:
    """The analysis of a study already loaded; raises UsageError for a baseline or margin that is none."""
    every, again, declared = arms(study), list[Arm](), study.declared
    jobs = jobs_of(declared, study.runs) if declared is not None and declared.procedure > 1 else None
    chosen = jobs.chosen() if jobs is not None else None
    if declared is not None and chosen is not None:
        every, again = with_rates(declared, chosen, every)
    if not every and baseline is not None:
        raise UsageError(f"--baseline {baseline!r}: {study.path} holds no run to compare.")
    judgement, looked = judgement_of(declared, every, baseline=baseline, margin=margin), None
    if jobs is not None and chosen is not None:
        looked = looks(jobs, replace(chosen, margin=judgement.margin), [*every, *again])
    rows = compare(every, judgement, looked, again[0] if again else None)
    switching, problems = _switching(study.runs)
    return Analysis(
        study=replace(study, problems=(*study.problems, *problems)),
        arms=tuple(every),
        again=again[0] if again else None,
        judgement=judgement,
        comparisons=tuple(rows),
        ranks=rank_answers(every, judgement, rows, beside=_ran_beside(declared)),
        switching=switching,
    )


def _ran_beside(study: Study | None) -> bool:
    """True where a launcher that may start several jobs at once was given any of a study's."""
    return any(entry.get("launcher") != ONE_BY_ONE for entry in (study.jobs if study else {}).values())


def _switching(runs: Iterable[Run]) -> tuple[dict[Path, Switching], list[Problem]]:
    """What the layers of the runs did that have ended, and the files that could not be read."""
    found, problems = {}, []
    for run in (run for run in runs if run.status != "running"):  # whose last row may be half written
        try:
            own = switching_of(run)
        except UsageError as error:
            problems.append(Problem(run.path, str(error)))
            continue
        if own is not None:
            found[run.path] = own
    return found, problems


def ranking(analysis: Analysis) -> list[tuple[Arm, float]]:
    """Arms by their mean, best first; an arm without a completed run has no place."""
    judgement = analysis.judgement
    means = [(arm, mean) for arm in analysis.arms if (mean := mean_sd(arm.values(judgement.metric))[0]) is not None]
    return sorted(means, key=lambda each: judgement.sign * each[1])


def best_run(arms: Iterable[Arm], judgement: Judgement) -> tuple[Run, float, Arm] | None:
    """The single best run of some arms, by the primary metric; None where none has it."""
    runs = [(run, value, arm) for arm in arms for run in arm.runs if (value := run.value(judgement.metric)) is not None]
    return min(runs, key=lambda each: judgement.sign * each[1], default=None)


def frontier_arms(analysis: Analysis) -> list[str]:
    """Names of the arms whose mean no arm with at most as many trainable parameters beats, over the seeds all share."""
    judgement, points = analysis.judgement, []
    values = on_shared_seeds(analysis.arms, judgement.metric)
    for arm in (arm for arm in analysis.arms if arm.name in values):
        mean, _ = mean_sd(values[arm.name])
        counts = [run.record.trainable_params for run in arm.runs if run.record.trainable_params]
        if counts and mean is not None:
            points.append((counts[0], judgement.sign * mean, arm.name))
    return [
        name for p, m, name in sorted(points) if not any((q <= p and k < m) or (q < p and k <= m) for q, k, _ in points)
    ]


def all_results(analysis: Analysis) -> dict[str, Any]:
    """The content of all_results.json in plain, strict types."""
    study, judgement = analysis.study, analysis.judgement
    return strict(
        {
            "study": study.name,
            "declared": asdict(study.declared) if study.declared else None,
            "judgement": asdict(judgement),
            "counts": analysis.counts,
            "missing": study.missing,
            "problems": [{"path": problem.path, "reason": problem.reason} for problem in study.problems],
            "arms": [_arm(arm, judgement.metric) for arm in (*analysis.arms, *filter(None, [analysis.again]))],
            "aa": _against_itself(analysis.aa),
            "comparisons": [
                row.row()
                | {
                    "p_equivalence_adjusted": row.p_equivalence_adjusted,
                    "differences": row.differences,
                    "sd_difference": row.statistics.sd,
                    "bootstrap_interval": statistics.bootstrap_interval(row.differences),
                    "wilcoxon_p": statistics.wilcoxon_p(row.differences) if row.differences else None,
                    "seeds_to_decide": row.seeds_to_decide,
                    "lost": row.lost,
                    "dropped": row.dropped,
                }
                for row in analysis.comparisons
            ],
            "ranks": asdict(analysis.ranks) if analysis.ranks else None,
            "runs": [run_row(run, analysis.switching.get(run.path)) for run in study.runs],
        }
    )


def _arm(arm: Arm, metric: str) -> dict[str, Any]:
    mean, sd = mean_sd(arm.values(metric))
    return {
        "name": arm.name,
        "differs": dict(arm.differs),
        "n": len(arm.values(metric)),
        "mean": mean,
        "sd": sd,
        "learning_rate": arm.learning_rate,
        "learning_rate_at_edge": arm.at_edge,
        "learning_rate_chosen_on": arm.chosen_on,
        "tuning": None if arm.tuned is None else asdict(arm.tuned) | {"decades_to_cliff": arm.tuned.to_cliff},
        "learning_rate_outcomes": {f"{rate:g}": values for rate, values in (arm.outcomes or {}).items()},
        "runs": [run.name for run in arm.runs],
        "unfinished": [{"run": run.name, "status": run.status, "error": run.error} for run in arm.unfinished],
    }


def _against_itself(aa: Comparison | None) -> dict[str, Any] | None:
    if aa is None:
        return None
    s = aa.statistics
    largest = max(map(abs, aa.differences), default=None)
    return {"pairs": s.pairs, "mean": s.mean, "sd": s.sd, "largest": largest, "p_value": s.p_value}


def run_row(run: Run, switching: Switching | None = None) -> dict[str, Any]:
    """A run as one flat row: what runs.csv and all_results.json hold; None where not measured."""
    record = run.record
    return {
        "run": run.name,
        "status": run.status,
        "study": record.study,
        "stage": record.stage,
        "rung": record.rung,
        "arm": record.arm,
        "seed": record.seed,
        "data_seed": record.data_seed,
        "learning_rate": run.learning_rate,
        **{f"choice.{group}": choice for group, choice in record.choices.items()},
        "rank": run.rank,
        "trainable_params": record.trainable_params,
        "total_params": record.total_params,
        "budget_asked": record.budget.get("asked"),
        "budget_used": record.budget.get("used"),
        "init_scheme": record.init.get("scheme"),
        "init_offset": record.init.get("offset"),
        **record.metrics,
        **{f"evaluate.{name}": value for name, value in run.evaluations.items()},
        "steps": record.steps,
        "tokens": record.tokens,
        **{f"seconds.{part}": value for part, value in record.seconds.items()},
        "peak_memory_bytes": record.peak_memory_bytes,
        "switches": record.switches,
        **(switching.row() if switching else {}),
        "base": run.base,
        "data": record.data.get("name"),
        "data_sha256": record.data.get("sha256"),
        "device": record.environment.get("device"),
        "precision": run.precision,
        "error": run.error or None,
    }
