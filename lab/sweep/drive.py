"""Loop of a study: scan the disk, plan, submit, scan again. Whoever takes over goes on from there."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lab import record
from lab.errors import UsageError
from lab.paths import quoted
from lab.record.study import Study, write_study
from lab.sweep import runs
from lab.sweep.job import Job, Plan, Seen
from lab.sweep.planner import plan
from lab.sweep.queue import queued_jobs

POLL_SECONDS = 5.0  # between two looks at jobs that another process runs
LAUNCHER_WAITS = (5.0, 30.0, 120.0, 600.0)  # s, before a launcher that began no job is asked again
ENDED = ("completed", "diverged", "stopped")


def drive(
    study_dir: Path,
    study: Study,
    launch: Callable[[Sequence[Sequence[str]], int], None],
    *,
    launcher: str,
    one_by_one: bool,
    keep_checkpoints: bool,
    poll_seconds: float = POLL_SECONDS,
    begin: Callable[[], Study] | None = None,
) -> list[str]:
    """Run every job the study still needs; the keys of the jobs that failed for good.

    `launch` takes the overrides of several jobs and the number of the first, and returns when they have ended; what
    they achieved is read from their directories, never from what it returns. `launcher` is the name of its class,
    `one_by_one` submits one job at a time. `begin` is called when the directory is this process's alone, and gives the
    study as it stands then, which another may have changed since it was read. What raises before a job has begun is no
    attempt at it, and is asked again after a while.

    Raises UsageError where another process is driving the same directory, and where a launcher begins no job however
    often it is asked; passes on a launcher's, which is of all jobs.
    """
    attempts: dict[str, int] = {}
    waits = iter(LAUNCHER_WAITS)
    named: set[str] = set()
    with record.lock(study_dir):
        study = study if begin is None else begin()
        write_study(study_dir, study)
        while True:
            seen, unreadable = runs.scan(study_dir, study)
            for problem in unreadable:
                if problem not in named:
                    print(f"left out: {problem}", file=sys.stderr, flush=True)
            named.update(unreadable)
            now = plan(study, seen, queued_jobs(study_dir, study.jobs), attempts)
            if now.margin is not None and study.margin_value is None:
                study = replace(study, margin_value=now.margin)
                write_study(study_dir, study)
            if not keep_checkpoints:
                _drop_checkpoints(seen, now)
            if now.finished:
                break
            if now.jobs:
                batch = now.jobs[:1] if one_by_one else now.jobs
                _print_progress(study, seen, batch)
                study, begun, error = _submit(study_dir, study, batch, launch, launcher)
                for job in begun:
                    attempts[job.id] = attempts.get(job.id, 0) + 1
                if begun:
                    waits = iter(LAUNCHER_WAITS)
                elif error is not None:
                    _wait(next(waits, None), error, study_dir)
            else:
                time.sleep(poll_seconds)
    for note in now.notes:
        print(note, file=sys.stderr)
    print(f"{study.name}: {sum(run.status in ENDED for run in seen)} jobs done. Its report: lab-report {study_dir}")
    return now.given_up


def _submit(
    study_dir: Path,
    study: Study,
    batch: Sequence[Job],
    launch: Callable[[Sequence[Sequence[str]], int], None],
    launcher: str,
) -> tuple[Study, Sequence[Job], Exception | None]:
    """Write down what is about to be submitted, then submit it; with the jobs that were begun, and what was raised."""
    number = first = _next_number(study_dir, study)
    entries, overrides = {}, []
    for job in batch:
        directory = _directory(study_dir, study, job)
        if directory is None:
            directory, number = job.folder(number), number + 1
        submitted = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        entries[job.id] = {"directory": directory, "launcher": launcher, "submitted": submitted}
        overrides.append(_overrides(job, directory))
    study = replace(study, jobs={**study.jobs, **entries})
    write_study(study_dir, study)
    folders = {job.id: study_dir / entries[job.id]["directory"] for job in batch}
    before = {name: _changed(folder) for name, folder in folders.items()}
    try:
        launch(overrides, first)
    except UsageError:
        raise  # of all jobs, and at every attempt
    except Exception as error:
        # A launcher gives up on all jobs when it loses one; what became of each is on disk, and is looked at next.
        print(f"the launcher raised {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return study, [job for job in batch if _changed(folders[job.id]) != before[job.id]], error
    return study, batch, None


def _changed(folder: Path) -> list[int]:
    """When a job was begun in a folder: it makes a record there, and before that Hydra writes its own file anew."""
    return [path.stat().st_mtime_ns for path in (folder, folder / ".hydra" / "config.yaml") if path.exists()]


def _wait(seconds: float | None, error: Exception, study_dir: Path) -> None:
    """Wait until a launcher is asked again; raises UsageError where it has been asked often enough."""
    if seconds is None:
        raise UsageError(
            f"the launcher began no job in {len(LAUNCHER_WAITS) + 1} attempts ({type(error).__name__}: {error}); no "
            f"job is given up: when it works again, go on by resume_study={study_dir}."
        ) from error
    print(f"no job was begun; the launcher is asked again in {seconds:g} s", file=sys.stderr, flush=True)
    time.sleep(seconds)


def _directory(study_dir: Path, study: Study, job: Job) -> str | None:
    """Its own where it continues, the one it was given where it died before it wrote anything; None for a new one."""
    if job.resume is not None:
        return job.resume.name
    given = study.jobs.get(job.id, {}).get("directory")
    if given is None or "/" in given:  # by an earlier version, after an arm: no scan would find it there
        return None
    return None if (study_dir / given / record.RESULT).exists() else str(given)


def _overrides(job: Job, directory: str) -> list[str]:
    """Hydra's overrides of one job, its directory quoted: arms are named as `svd[gradient]` is."""
    own = list(job.overrides)
    if job.resume is not None:
        own += [f"resume={quoted(str(job.resume))}", "hydra.output_subdir=null"]
    return [*own, f"hydra.sweep.subdir={quoted(directory)}"]


def _next_number(study_dir: Path, study: Study) -> int:
    """One more than any directory or submission has."""
    names = [path.name for path in study_dir.iterdir() if path.is_dir()]
    heads = [name.split("_")[0] for name in [*names, *(entry["directory"] for entry in study.jobs.values())]]
    return max((int(head) for head in heads if head.isdigit()), default=-1) + 1


def _drop_checkpoints(seen: Sequence[Seen], now: Plan) -> None:
    """Remove what no run goes on from: an interrupted one that is given up does, when the study is started again."""
    for run in seen:
        goes_on = run.status == "interrupted" and run.job in now.given_up
        if run.status in ENDED or (now.finished and not goes_on):
            runs.drop_checkpoints(run.path, run.status)


def _print_progress(study: Study, seen: Sequence[Seen], batch: Sequence[Job]) -> None:
    cost = runs.forecast(study, seen)
    left = "" if cost.hours is None else f", {cost.hours:.2f} hours of jobs left at least"
    count = f"{cost.jobs}" if cost.most == cost.jobs else f"{cost.jobs} to {cost.most}"
    what = batch[0].id if len(batch) == 1 else f"{len(batch)} jobs"
    print(f"\n{study.name}: {cost.done} of {count} jobs done{left}. Now {what}", flush=True)
