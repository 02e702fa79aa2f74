"""One job: in this process, or in a process group of its own. No torch here; a worker brings it."""

import math
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lab import config as configuration
from lab import record
from lab.config import RunConfig, trust
from lab.errors import UsageError
from lab.launch import checks, ending, fetch
from lab.launch.beside import one_line
from lab.paths import PACKAGE, quoted
from lab.process import gpus, process_group, workers
from lab.process.hang import Hung
from lab.record.study import STUDY


class JobFailed(RuntimeError):
    """A process of the job died of something that is not its user's mistake."""


def launch(
    config: RunConfig,
    run_dir: Path,
    choices: dict[str, str],
    overrides: list[str],
    alone: bool,
    beside: int = 0,
    start: Path | None = None,
) -> float:
    """Run one job and return the validation loss of its selected weights; inf where it diverged.

    With `beside`, the number of jobs at once on a machine, 1 for as many as it has GPUs, a single-device job takes its
    place on a GPU, and the console has one line of it: what it says goes to console.log in its folder. The
    folder where the command was given, `start` (None: the working directory), is importable. A finished job is not run
    again; an interrupted one goes on. Raises UsageError for a user's mistake, JobFailed where a process died or hangs;
    exits with a status other than 0 where the job was interrupted or (as the only job) diverged.
    """
    with _environment_restored():
        start = start or Path.cwd()
        make_importable(start)
        config = checks.with_limits(config)
        if config.dry_run:
            return _dry_run(config)
        try:
            with one_line(run_dir) if beside else nullcontext(lambda _: None) as say:
                result = _launch(config, run_dir, choices, overrides, alone, beside, start)
                say(_told(run_dir, result))
        except Hung as hung:
            raise JobFailed(f"the job in {run_dir} failed: {hung}") from hung
    error = result.error or {}
    if result.status == "failed":
        raise _failure(run_dir, error, config.hardware.devices)
    if result.status == "interrupted":
        print(f"interrupted: {error['message']}", file=sys.stderr)
        _hand_back(error.get("signal"))
        sys.exit(130)
    if result.status == "diverged":
        where = f" on rank {error['rank']}" if config.hardware.devices > 1 else ""
        print(f"diverged{where}: {error['message']}. The weights from before are kept.", file=sys.stderr)
        if alone:
            sys.exit(1)
    return _objective(result)


def _launch(
    config: RunConfig,
    run_dir: Path,
    choices: dict[str, str],
    overrides: list[str],
    alone: bool,
    beside: int,
    start: Path,
) -> record.RunRecord:
    group = process_group.outside()
    if group is not None:
        _check_outside(group, config.hardware.devices, alone)
    if group is not None and group.rank > 0:
        return _join(process_group.agree_on(run_dir, group, config.hardware.accelerator, config.hardware.timeout_s))
    previous = record.read(run_dir) if (run_dir / record.RESULT).exists() else None
    if previous is not None and previous.status == "completed" and not _extends(config, previous):
        print(f"{run_dir} is completed: skipped.")
        return previous
    if record.is_live(run_dir):
        raise UsageError(f"{run_dir} is still live: another process is running it.")
    checks.early(config)
    configuration.save(config, run_dir, start)
    if previous is None:
        previous = record.RunRecord(study=config.study, stage=config.stage, arm=config.arm, choices=choices)
    previous.overrides = [*previous.overrides, *overrides]
    previous.status = "running"
    record.write(run_dir, previous)
    from lab.launch import worker

    ending.forget(run_dir)
    if group is not None:
        process_group.agree_on(run_dir, group, config.hardware.accelerator, config.hardware.timeout_s)
        return worker.run(run_dir)
    with ExitStack() as stack:
        extra = {}
        separate = config.hardware.devices > 1
        if beside and config.hardware.devices == 1 and config.hardware.accelerator != "cpu" and gpus.visible():
            # A process of its own also where CUDA may be awake here already, on another job's GPU.
            extra["CUDA_VISIBLE_DEVICES"], separate = stack.enter_context(gpus.claim(beside)), True
        if not separate:
            return worker.run(run_dir)
        if "HF_HUB_OFFLINE" not in os.environ:  # where a launcher has not done so for all jobs
            fetch.fetch([configuration.plain_of(config)])  # once, and not by every rank
        wanted = config.hardware
        ended = workers.run(run_dir, wanted.devices, wanted.threads, wanted.timeout_s, {**extra, **fetch.OFFLINE})
    return _after(ended, run_dir, config)


def _dry_run(config: RunConfig) -> float:
    """Print what the run would take; nothing is trained, and nothing written."""
    checks.of_files(config)
    from lab.launch import worker

    with worker.no_garbage():
        from lab.run import dry_run
    worker.quiet_not_ours()
    print(dry_run.report(config))
    return math.inf


def _check_outside(group: process_group.Outside, devices: int, alone: bool) -> None:
    if not alone:
        raise UsageError(
            f"{group.starter} has started {group.world} processes, and each would run the whole sweep; start the "
            f"sweep once, without it: every job starts its own processes."
        )
    if group.world != devices:
        raise UsageError(
            f"{group.starter} has started {group.world} processes and hardware.devices={devices}; give both the same "
            f"number, or start without {group.starter}: a job starts its own processes."
        )


@contextmanager
def directory_of_its_rank() -> Iterator[None]:
    """Under torchrun or srun, keep Hydra of the ranks above 0 from making run directories: only rank 0's is one."""
    group = process_group.outside()
    if group is None or group.rank == 0:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lab-rank-") as folder:
        given = [arg for arg in sys.argv[1:] if not arg.startswith(("hydra.run.dir=", "hydra.output_subdir="))]
        sys.argv[1:] = [f"hydra.run.dir={quoted(folder)}", "hydra.output_subdir=null", *given]
        yield


def _join(run_dir: Path) -> record.RunRecord:
    """A rank above 0 of a group that someone else started: no file of its own but its log."""
    from lab.launch import worker

    for name in ("config.yaml", record.RESULT):
        process_group.wait_for(run_dir / name)
    return worker.run(run_dir)


def _after(ended: workers.Ending, run_dir: Path, config: RunConfig) -> record.RunRecord:
    """The record the workers wrote, made true to how they ended."""
    from lab.launch import worker

    for rank, stack in ended.hang.stacks.items() if ended.hang is not None else ():
        with worker.log_file(run_dir, rank).open("a", encoding="utf-8") as file:
            print(f"{ended.hang}\n{stack.text}", file=file)
    result = record.read(run_dir)
    told = result.status, result.error
    result.status, result.error = ending.verdict(ended, run_dir, config.hardware.devices, told)
    if told != (result.status, result.error):
        record.write(run_dir, result)
    if result.status == "completed" and ended.first is not None:
        print(f"the process of rank {ended.first.rank} {ended.first.how}; nothing was missing by then", file=sys.stderr)
    if result.status == "interrupted" and ended.signals and result.error is not None:
        result.error["signal"] = ended.signals[0]
    return result


def _failure(run_dir: Path, error: dict[str, Any], devices: int) -> UsageError | JobFailed:
    """What to raise for the error of a failed job's record: a sentence, and behind a bug's its traceback."""
    if error.get("type") == "UsageError":
        return UsageError(error["message"])
    said = f"the job in {run_dir} failed"
    if error.get("type") in ("JobFailed", "Hung", "Lost"):  # where a process ended without a word of its own
        return JobFailed(f"{said}: {error['message']}")
    where = f" on rank {error['rank']}" if devices > 1 else ""
    return JobFailed(f"{said}{where}: {error['message']}\n{error['traceback']}")


def _hand_back(name: str | None) -> None:
    """Give a launcher the signal that we took from it: submitit requeues the job on SIGUSR2."""
    if name is not None and callable(signal.getsignal(signal.Signals[name])) and name.startswith("SIGUSR"):
        signal.raise_signal(signal.Signals[name])


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Jobs of a sweep share a process; what one leaves in the environment must not reach the next."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _extends(config: RunConfig, previous: record.RunRecord) -> bool:
    """True where more optimizer steps are asked for than a completed run has; its end in epochs is an end too."""
    most = config.schedule.max_steps
    return config.schedule.max_epochs is None and most is not None and (previous.steps or 0) < most


def _told(run_dir: Path, result: record.RunRecord) -> str:
    """The one line of a job beside others."""
    val, seconds = result.metrics.get("val_loss"), result.seconds.get("total")
    parts = [result.status, *([f"val_loss {val:.4f}"] if val is not None else [])]
    return f"{run_dir.name}: " + ", ".join([*parts, *([f"{seconds:.0f} s"] if seconds is not None else [])])


def _objective(result: record.RunRecord) -> float:
    value = result.metrics.get("val_loss")
    return math.inf if value is None else value


def make_importable(folder: Path) -> None:
    """A user's own classes live where the command was given; workers inherit the path."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    checkout = str(PACKAGE.parent)
    for path in (str(folder), checkout):
        if path not in paths:
            paths.append(path)
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def started_from(folder: Path) -> Path | None:
    """The folder from which a run was started, where it was here; None of anybody else's."""
    try:
        return trust.start_folder(folder, (folder / configuration.CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def resume_in_place(folder: Path) -> list[str]:
    """The Hydra arguments that make a resumed run write into its own directory; raises UsageError if it cannot."""
    if (folder / STUDY).is_file():
        raise UsageError(f"resume={folder} is a study; go on with it by resume_study={folder}.")
    if not folder.is_dir():
        raise UsageError(f"resume={folder} is no folder; name a run's, such as multirun/single/<time>.")
    record.read(folder)  # raises where there is none
    if record.is_live(folder):
        raise UsageError(f"resume={folder}: that run is still live; stop it first or wait for its end.")
    if not (folder / configuration.CONFIG).is_file():
        raise UsageError(f"resume={folder}: the folder holds no config.yaml, so it is no run directory.")
    if started_from(folder) is None:
        trust.check_links(folder)
    return [f"hydra.run.dir={quoted(str(folder.resolve()))}", "hydra.output_subdir=null"]
