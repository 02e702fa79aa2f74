"""Runs of a study on disk: the scan that planning starts from, the two things a sweep writes, and the forecast."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import record
from lab.errors import UsageError, visible
from lab.record.study import Study
from lab.sweep.job import Seen, Stop
from lab.sweep.planner import extensions_per_arm, jobs_before_extensions


def scan(study_dir: Path, study: Study) -> tuple[list[Seen], list[str]]:
    """Every run of the study below its directory, and a sentence for each that cannot be read."""
    seen, unreadable = [], []
    for path in sorted(study_dir.glob(f"*/{record.RESULT}")):
        try:
            read = record.read(path.parent)
            status = record.status_of(path.parent)
        except UsageError as error:
            unreadable.append(str(error))
            continue
        # A job that failed before its model was built has recorded nothing but its overrides.
        rate = (read.config.get("optim") or {}).get("lr", read.override_values.get("optim.lr"))
        seed = read.override_values.get("seed") if read.seed is None else read.seed
        if read.stage is None or read.arm is None or seed is None or rate is None:
            unreadable.append(f"{path} belongs to no stage, arm, seed or learning rate of a study.")
            continue
        steps = (read.config.get("schedule") or {}).get("max_steps")
        rung = study.rungs.index(steps) if steps in study.rungs else 0
        seen.append(
            Seen(
                path=path.parent,
                stage=read.stage,
                arm=read.arm,
                learning_rate=float(rate),
                seed=int(seed),
                status=status,
                outcome=read.metrics.get(study.selection_metric),
                rung=rung if read.rung is None else read.rung,
                seconds=read.seconds.get("total"),
                size=sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file()),
            )
        )
    return seen, unreadable


def stop(one: Stop) -> None:
    """Write into a run's record that a rung ended it, and why."""
    read = record.read(one.path)
    read.status, read.error = "stopped", {"type": "Halved", "message": one.reason}
    record.write(one.path, read)


def drop_checkpoints(run_dir: Path) -> None:
    """Remove what only a continuation would need; the selected weights stay in adapter/ or model/."""
    for name in ("last.ckpt", "previous.ckpt"):
        (run_dir / "checkpoints" / name).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Cost of a study; None where nobody has measured a job."""

    jobs: int  # without extensions
    extensions: int  # at most
    done: int
    hours: float | None  # of the jobs still to run, one after another
    gigabytes: float | None  # of the whole study when it has ended


def forecast(study: Study, seen: Iterable[Seen] = ()) -> Forecast:
    """Jobs, hours and disk: from this study's own ended runs, before them from what its YAML says was measured."""
    ended = [run for run in seen if run.status in ("completed", "diverged", "stopped")]
    seconds = [run.seconds for run in ended if run.seconds is not None]
    sizes = [run.size for run in ended if run.size is not None]
    each = statistics.median(seconds) if seconds else study.seconds_per_job
    bytes_each = statistics.median(sizes) if sizes else study.bytes_per_job
    jobs = jobs_before_extensions(study)
    tuned = sum(len(grid) > 1 for grid in study.learning_rates.values())
    left = max(0, jobs - len(ended))
    return Forecast(
        jobs=jobs,
        extensions=extensions_per_arm(study) * tuned * len(study.tune_seeds),
        done=len(ended),
        hours=None if each is None else left * each / 3600,
        gigabytes=None if bytes_each is None else jobs * bytes_each / 1e9,
    )


def describe(study: Study, seen: Iterable[Seen] = ()) -> str:
    """The plan as it is printed before a study starts: arms, stages, jobs, hours, disk."""
    cost = forecast(study, seen)
    hours = "–" if cost.hours is None else f"{cost.hours:.2f}" if cost.hours < 10 else f"{cost.hours:.0f}"
    disk = "–" if cost.gigabytes is None else f"{cost.gigabytes:.2f}"
    tuned = {arm: grid for arm, grid in study.learning_rates.items() if len(grid) > 1}
    lines = [f"{study.name} ({study.size}): {study.question}"]
    for arm, overrides in study.arms.items():
        role = "baseline" if arm == study.baseline else "judged" if arm in study.contrasts else "described"
        rates = ", ".join(f"{rate:g}" for rate in study.learning_rates[arm])
        lines.append(f"  {arm:<20} {role:<10} {' '.join(overrides) or 'the defaults'}   lr {rates}")
    if tuned:
        grids = sum(map(len, tuned.values())) * len(study.tune_seeds)
        rungs = f", halved at steps {', '.join(map(str, study.rungs[:-1]))}" if len(study.rungs) > 1 else ""
        lines.append(f"  tune     {grids} jobs on tuning seed {', '.join(map(str, study.tune_seeds))}{rungs}")
        if cost.extensions:
            lines.append(f"           and at most {cost.extensions} more where a best learning rate is at an edge")
    lines.append(f"  verdict  {len(study.arms) * len(study.seeds)} jobs on seeds {', '.join(map(str, study.seeds))}")
    lines.append(f"  A/A      {len(study.twin_seeds)} jobs: {study.baseline} again on the same data orders")
    margin = study.margin if isinstance(study.margin, str) else f"{study.margin:g}"
    lines.append(f"  judged by {study.metric}, equivalent within {margin}")
    lines.append(f"  {cost.jobs} jobs, {cost.done} done; {hours} hours one after another; {disk} GB of disk")
    return visible("\n".join(lines))
