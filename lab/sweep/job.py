"""Jobs of a study: the runs seen on disk, the jobs to submit, and whether a job still has to be done."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.paths import quoted
from lab.record.study import Study

MOST_ATTEMPTS = 2  # a failed job is retried once


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One run directory, reduced to what planning needs."""

    path: Path
    stage: str
    arm: str
    learning_rate: float
    seed: int
    status: str  # with `running` meaning that a process holds its lock
    outcome: float | None = None  # the selection metric
    rung: int = 0
    seconds: float | None = None
    size: int | None = None  # bytes on disk


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job to submit now. `resume` is the run directory it continues, in place."""

    stage: str  # tune | halve | verdict
    arm: str
    learning_rate: float
    seed: int
    data_seed: int
    rung: int | None = None
    max_steps: int | None = None  # optimizer steps at which a rung ends
    overrides: tuple[str, ...] = ()
    resume: Path | None = None

    @property
    def id(self) -> str:
        """The name of its directory after the running number."""
        return f"{self.stage}_{self.arm}_lr={self.learning_rate:g}_seed={self.seed}"

    @property
    def key(self) -> str:
        """Name of the submission in study.json: a directory is submitted once per rung."""
        return self.id if self.rung is None else f"{self.id}_rung={self.rung}"


@dataclass(frozen=True, kw_only=True)
class Stop:
    """A run that a rung ended, and why."""

    path: Path
    reason: str


@dataclass(kw_only=True)
class Plan:
    """The next jobs, the runs to stop first, and what has been decided so far."""

    jobs: list[Job] = field(default_factory=list)
    stops: list[Stop] = field(default_factory=list)
    waiting: int = 0  # jobs that are queued or running
    chosen: dict[str, float] = field(default_factory=dict)  # arm -> its tuned learning rate
    given_up: list[str] = field(default_factory=list)  # keys of jobs that failed for good
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True when nothing is left to submit, to stop or to wait for."""
        return not (self.jobs or self.stops or self.waiting)


@dataclass(frozen=True)
class State:
    """State of a study on disk, and the one question planning asks of it."""

    study: Study
    seen: tuple[Seen, ...]
    queued: frozenset[str]
    attempts: Mapping[str, int]

    def runs(self, stage: str, arm: str, rate: float, seed: int) -> list[Seen]:
        """Every attempt at a job, in the order of their directories."""
        wanted = (stage, arm, rate, seed)
        return [run for run in self.seen if (run.stage, run.arm, run.learning_rate, run.seed) == wanted]

    def want(
        self, result: Plan, stage: str, arm: str, rate: float, seed: int, data_seed: int, rung: int | None = None
    ) -> Seen | None:
        """The run that did this job, or None after adding to the plan what it still takes."""
        study = self.study
        steps = None if not study.rungs else study.rungs[-1 if rung is None else rung]
        chosen_by_validation = study.selection_metric.startswith(("val_", "best_val_"))
        overrides = [
            *(["evaluate.test=false"] if stage == "tune" and chosen_by_validation else []),  # what nobody would look at
            *study.common,
            *study.arms[arm],
            f"optim.lr={rate!r}",
            f"seed={seed}",
            f"data_seed={data_seed}",
            *([] if steps is None else [f"schedule.max_steps={steps}"]),
            f"study={quoted(study.name)}",
            f"stage={stage}",
            f"arm={quoted(arm)}",
        ]
        job = Job(
            stage=stage,
            arm=arm,
            learning_rate=rate,
            seed=seed,
            data_seed=data_seed,
            rung=rung,
            max_steps=steps,
            overrides=tuple(overrides),
        )
        runs = self.runs(stage, arm, rate, seed)
        for run in runs:
            if rung is not None and run.rung > rung:
                return run  # it has passed this rung and may be on its way to a later one
            behind = rung is not None and run.rung < rung and run.status == "completed"
            if run.status in ("completed", "diverged", "stopped") and not behind:
                return run
        if job.key in self.queued or any(run.status == "running" for run in runs):
            result.waiting += 1
            return None
        failures = [run for run in runs if run.status == "failed"]
        to_continue = [run for run in runs if run.status in ("interrupted", "completed")]
        attempts = self.attempts.get(job.key, 0)
        # What failed twice before this start is tried once more: its cause may have been mended since.
        if attempts >= MOST_ATTEMPTS or (attempts and len(failures) >= MOST_ATTEMPTS):
            result.given_up.append(job.key)
            result.notes.append(f"{job.key} did not end well in {attempts} attempts and is given up")
            return replace(runs[-1], status="failed") if runs else _failure(job)
        result.jobs.append(_continuation(job, to_continue[-1]) if to_continue else job)
        return None


def _failure(job: Job) -> Seen:
    """A job that left no run directory, as a failure."""
    return Seen(
        path=Path(job.id),
        stage=job.stage,
        arm=job.arm,
        learning_rate=job.learning_rate,
        seed=job.seed,
        status="failed",
    )


def _continuation(job: Job, run: Seen) -> Job:
    """The same job as a continuation: the saved config holds everything but a larger number of steps."""
    more = () if job.max_steps is None else (f"schedule.max_steps={job.max_steps}",)
    return replace(job, resume=run.path, overrides=more)


def outcomes_of(runs: Iterable[Seen]) -> list[float | None]:
    """The selection metric of each run, None for one that diverged or was stopped; a failed one is left out."""
    return [run.outcome if run.status == "completed" else None for run in runs if run.status != "failed"]
