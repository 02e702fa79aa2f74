"""Jobs of a study: the runs seen on disk, the jobs to submit, and whether a job still has to be done."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from lab.paths import quoted
from lab.record.study import Study, job_id
from lab.verdict.choice import Tuned

MOST_ATTEMPTS = 2  # a failed job is retried once
NO_NAME = re.compile(r'[/\\:*?"<>|$\x00-\x1f\x7f]')  # what some system's folders, or Hydra's settings, cannot hold
MOST_BYTES = 255  # of a folder's name


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
    base: float | None = None  # the selection metric of the base, before training
    value: float | None = None  # the metric that arms are judged by
    seconds: float | None = None
    size: int | None = None  # bytes on disk

    @property
    def job(self) -> str:
        """The id of the job that it is a run of."""
        return job_id(self.stage, self.arm, self.learning_rate, self.seed)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job to submit now. `resume` is the run directory it continues, in place."""

    stage: str  # tune | verdict
    arm: str
    learning_rate: float
    seed: int
    data_seed: int
    overrides: tuple[str, ...] = ()
    resume: Path | None = None

    @property
    def id(self) -> str:
        """Its name in study.json."""
        return job_id(self.stage, self.arm, self.learning_rate, self.seed)

    def folder(self, number: int) -> str:
        """The name of its directory: the running number and its id, its arm as any system takes it.

        The record has the arm's own name; two that read the same here differ in the number.
        """
        room = MOST_BYTES - len(f"{number}_{self._named('')}".encode())
        arm = NO_NAME.sub("-", self.arm).encode()[:room].decode(errors="ignore")
        return f"{number}_{self._named(arm)}"

    def _named(self, arm: str) -> str:
        return job_id(self.stage, arm, self.learning_rate, self.seed)


@dataclass(kw_only=True)
class Plan:
    """The next jobs, and what has been decided so far."""

    jobs: list[Job] = field(default_factory=list)
    waiting: int = 0  # jobs that are queued or running
    tuned: dict[str, Tuned] = field(default_factory=dict)  # arm -> its learning rate, and how it was chosen
    margin: float | None = None  # in units of the metric, as soon as it is known
    given_up: list[str] = field(default_factory=list)  # ids of jobs that failed for good
    notes: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """True when nothing is left to submit or to wait for."""
        return not (self.jobs or self.waiting)


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

    def ended(self, stage: str, arm: str, rate: float, seed: int) -> Seen | None:
        """The run that did a job, or failed at it for good; None while it may still be done."""
        runs = self.runs(stage, arm, rate, seed)
        done = next((run for run in runs if run.status in ("completed", "diverged", "stopped")), None)
        if done is not None or any(run.status == "running" for run in runs):
            return done
        job = Job(stage=stage, arm=arm, learning_rate=rate, seed=seed, data_seed=seed)
        failures, attempts = sum(run.status == "failed" for run in runs), self.attempts.get(job.id, 0)
        # What failed twice before this start is tried once more: its cause may have been mended since.
        if job.id in self.queued or not (attempts >= MOST_ATTEMPTS or (attempts and failures >= MOST_ATTEMPTS)):
            return None
        return replace(runs[-1], status="failed") if runs else _failure(job)

    def want(self, result: Plan, stage: str, arm: str, rate: float, seed: int, data_seed: int) -> Seen | None:
        """The run that did this job, or None after adding to the plan what it still takes."""
        study = self.study
        chosen_by_validation = study.selection_metric.startswith(("val_", "best_val_"))
        overrides = [
            *(["evaluate.test=false"] if stage == "tune" and chosen_by_validation else []),  # what nobody would look at
            *study.common,
            *study.arms[arm],
            f"{study.rate}={rate!r}",
            f"seed={seed}",
            f"data_seed={data_seed}",
            f"study={quoted(study.name)}",
            f"stage={stage}",
            f"arm={quoted(arm)}",
        ]
        job = Job(stage=stage, arm=arm, learning_rate=rate, seed=seed, data_seed=data_seed, overrides=tuple(overrides))
        ended = self.ended(stage, arm, rate, seed)
        if ended is not None:
            if ended.status == "failed" and job.id not in result.given_up:
                result.given_up.append(job.id)
                attempts = self.attempts.get(job.id, 0)
                result.notes.append(f"{job.id} did not end well in {attempts} attempts and is given up")
            return ended
        runs = self.runs(stage, arm, rate, seed)
        if job.id in self.queued or any(run.status == "running" for run in runs):
            result.waiting += 1
            return None
        interrupted = [run for run in runs if run.status == "interrupted"]
        # The saved config of an interrupted run holds everything.
        result.jobs.append(replace(job, resume=interrupted[-1].path, overrides=()) if interrupted else job)
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


def outcomes_of(runs: Iterable[Seen]) -> list[float | None]:
    """The selection metric of each run, None for one that diverged; empty where one failed, which tells nothing."""
    each = list(runs)
    if any(run.status == "failed" for run in each):
        return []
    return [run.outcome if run.status == "completed" else None for run in each]
