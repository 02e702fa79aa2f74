"""Runs of a study on disk: the scan that planning starts from, what is dropped of them, and the forecast."""

import os
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab import record
from lab.errors import Refused, UsageError, visible
from lab.record.study import AA, RATE, Study, role_of
from lab.sweep import metrics
from lab.sweep.job import Seen
from lab.verdict.null_table import FIRST_LOOK
from lab.verdict.procedure import extensions_per_arm, fewest_jobs, most_jobs, tuning_jobs


def scan(study_dir: Path, study: Study) -> tuple[list[Seen], list[str]]:
    """Every run of the study below its directory, and a sentence for each whose record is none.

    Jobs may be writing, renaming and ending meanwhile. Raises UsageError for what is there and this user may not read:
    its job would be done twice.
    """
    seen, unreadable = [], []
    for path in sorted(folder / record.RESULT for folder in study_dir.iterdir()):
        try:
            path.lstat()
            seen.append(_seen(path, study))
        except (FileNotFoundError, NotADirectoryError):
            continue  # no run, or gone since it was listed
        except Refused:
            raise
        except UsageError as error:
            if path.exists():
                unreadable.append(str(error))
        except OSError as error:
            raise UsageError(
                f"{error.filename or path} cannot be read ({error.strerror}); let this user read it, or the job would "
                "be done again."
            ) from None
    return seen, unreadable


def _seen(path: Path, study: Study) -> Seen:
    """One run; raises UsageError where its record is none of a study's job."""
    # Asked first: a run that ends behind this has its ending in the record, and is not taken for interrupted.
    live = record.is_live(path.parent)
    read = record.read(path.parent)
    # A job that failed before its model was built has recorded nothing but its overrides.
    rate = record.setting(read, study.rate)
    seed = read.override_values.get("seed") if read.seed is None else read.seed
    if read.stage is None or read.arm is None or seed is None or rate is None:
        raise UsageError(f"{path} belongs to no stage, arm, seed or learning rate of a study.")
    try:
        learning_rate, number = float(rate), int(seed)
    except (TypeError, ValueError):
        raise UsageError(f"{path} has {study.rate}={rate!r} and seed={seed!r}, which are no numbers.") from None
    return Seen(
        path=path.parent,
        stage=read.stage,
        arm=read.arm,
        learning_rate=learning_rate,
        seed=number,
        status="interrupted" if read.status == "running" and not live else read.status,
        outcome=metrics.value_of(read, study.selection_metric),
        base=read.metrics.get(f"base_{study.selection_metric}"),
        value=metrics.value_of(read, study.metric),
        seconds=read.seconds.get("total"),
        size=_size(path.parent),
    )


def _size(run_dir: Path) -> int | None:
    """Bytes of a run's files, of those that are still there when they are looked at; None where not all may be seen."""
    faults: list[OSError] = []
    total = 0
    for folder, _, names in os.walk(run_dir, onerror=faults.append):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:  # renamed by its job, or a link to nothing
                continue
            except OSError as error:
                faults.append(error)
    return None if any(not isinstance(fault, FileNotFoundError) for fault in faults) else total


def drop_checkpoints(run_dir: Path, status: str) -> None:
    """Remove what only a continuation would need, and the best weights where the selected ones were exported."""
    exported = status in ("completed", "stopped") and any((run_dir / name).is_dir() for name in ("adapter", "model"))
    for name in ("last.ckpt", "previous.ckpt", *(["best.ckpt"] if exported else [])):
        (run_dir / "checkpoints" / name).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Cost of a study; None where nobody has measured a job."""

    jobs: int  # where every contrast is decided at the first look
    most: int  # where none is decided within the budget
    extensions: int  # at most, on top
    done: int
    hours: float | None  # of the fewest jobs still to run, one after another
    most_hours: float | None
    gigabytes: float | None  # of the whole study when it has ended, at most


@dataclass(frozen=True)
class Tried:
    """What a job would take, from a probe of this study's own model on this machine."""

    tune: float  # seconds
    verdict: float  # seconds
    bytes: float


def forecast(study: Study, seen: Iterable[Seen] = (), tried: Tried | None = None) -> Forecast:
    """Jobs, hours and disk: by this study's own ended runs, before them by a probe, else by what its YAML says."""
    ended = [run for run in seen if run.status in ("completed", "diverged", "stopped")]
    seconds = [run.seconds for run in ended if run.seconds is not None]
    sizes = [run.size for run in ended if run.size is not None]
    jobs, most, tuning = fewest_jobs(study), most_jobs(study), tuning_jobs(study)
    each = statistics.median(seconds) if seconds else study.seconds_per_job
    bytes_each = statistics.median(sizes) if sizes else study.bytes_per_job if tried is None else tried.bytes
    tuned = sum(len(grid) > 1 for grid in study.learning_rates.values())
    hours: list[float | None]
    if tried is not None and not seconds:
        hours = [(tuning * tried.tune + (count - tuning) * tried.verdict) / 3600 for count in (jobs, most)]
    else:
        hours = [None if each is None else max(0, count - len(ended)) * each / 3600 for count in (jobs, most)]
    return Forecast(
        jobs=jobs,
        most=most,
        extensions=extensions_per_arm(study) * tuned,
        done=len(ended),
        hours=hours[0],
        most_hours=hours[1],
        gigabytes=None if bytes_each is None else most * bytes_each / 1e9,
    )


def describe(study: Study, seen: Iterable[Seen] = (), tried: Tried | None = None) -> str:
    """The plan as it is printed before a study starts: arms, stages, jobs, hours, disk."""
    cost = forecast(study, seen, tried)
    disk = "–" if cost.gigabytes is None else f"{cost.gigabytes:.2f}"
    tuned = [arm for arm, grid in study.learning_rates.items() if len(grid) > 1]
    lines = [f"{study.name} ({study.size}): {study.question}"]
    for arm, overrides in study.arms.items():
        rates = ", ".join(f"{rate:g}" for rate in study.learning_rates[arm])
        key = "lr" if study.rate == RATE else study.rate
        lines.append(f"  {arm:<20} {role_of(study, arm):<10} {' '.join(overrides) or 'the defaults'}   {key} {rates}")
    if tuned:
        seeds = ", ".join(map(str, study.tune_seeds))
        how = "half decades, then quarters round the best" if study.refine else "the best of those declared"
        lines.append(f"  tune     {tuning_jobs(study)} jobs on tuning seed {seeds}: {how}")
        if cost.extensions:
            lines.append(f"           and at most {cost.extensions} more where a best learning rate is at an edge")
    if study.horizon is None:
        lines.append(f"  verdict  none: numbers of {len(study.seeds)} seeds, and four are the fewest to judge by")
    else:
        lines.append(
            f"  verdict  {_range(FIRST_LOOK, study.budget)} seeds an arm: a look after each from the 4th on, "
            f"and no more for what is decided"
        )
        if any(role_of(study, arm) == "described" for arm in study.arms) and study.described_seeds is not None:
            lines.append(f"           {study.described_seeds} of an arm that is only described")
    if AA in study.arms:
        lines.append(f"  A/A      {study.baseline} once more as arm {AA}, tuned and judged on seeds of its own")
    margin = study.margin if isinstance(study.margin, str) else f"{study.margin:g}"
    contrasts = ", ".join(each for each in study.contrasts if each not in study.arms)
    lines.append(f"  judged by {study.metric}, equivalent within {margin}{f': {contrasts}' if contrasts else ''}")
    count = _range(cost.jobs, cost.most)
    hours = dict.fromkeys((_hours(cost.hours), _hours(cost.most_hours)))
    lines.append(f"  {count} jobs, {cost.done} done; {' to '.join(hours)} hours one after another; {disk} GB of disk")
    return visible("\n".join(lines))


def _range(fewest: int, most: int | None) -> str:
    return str(fewest) if most in (None, fewest) else f"{fewest} to {most}"


def _hours(hours: float | None) -> str:
    return "–" if hours is None else f"{hours:.2f}" if hours < 10 else f"{hours:.0f}"
