"""Jobs beside each other on this machine: how many fit, and what each says on the console they share."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import psutil

from lab import config as configuration
from lab.config import RunConfig
from lab.errors import UsageError
from lab.process import gpus

CONSOLE = "console.log"  # in a run's folder: what it would have said alone
PROCESS_BYTES = 1.2e9  # of a job beside the tensors of a step: imports, evaluation (1.36 GB in all at 0.1 of step)
CGROUP = Path("/sys/fs/cgroup")


def check_count(n_jobs: object) -> None:
    """Raise ConfigError for a number of jobs at once that is none; None stands for as many as fit."""
    if n_jobs is not None and (type(n_jobs) is not int or n_jobs < 1):
        raise configuration.ConfigError(
            f"hydra.launcher.n_jobs={n_jobs} is no number of jobs; give 1 or more, or null for as many as fit."
        )


def jobs_at_once(configs: Sequence[RunConfig], forecast: Callable[[Sequence[RunConfig]], Sequence[float]]) -> int:
    """Jobs that fit: one per GPU and device, on a CPU one per `hardware.threads` cores while the memory lasts.

    `forecast` gives the bytes that each job will take; it is asked only where there is a core for a second one. A job
    that leaves its threads open takes all cores.
    """
    devices = max(config.hardware.devices for config in configs)
    if gpus.visible() and any(config.hardware.accelerator != "cpu" for config in configs):
        return max(1, len(gpus.visible()) // devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fit = cores // max((config.hardware.threads or cores) * config.hardware.devices for config in configs)
    if fit < 2:
        return 1
    largest, free = max(forecast(configs)), free_bytes()
    print(f"jobs beside each other: {cores} cores; {free / 1e9:.1f} GB free, a job takes {largest / 1e9:.1f} at most")
    return max(1, min(fit, int(free / largest)))


def free_bytes() -> float:
    """Memory that processes can still take, of the machine and of the container they run in."""
    free = [float(psutil.virtual_memory().available)]
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        free.append(limit - used)
    return max(0.0, min(free))


def _number(path: Path) -> float | None:
    """The number in a file of the kernel's; None where there is no file, or no limit."""
    text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    return float(text) if text.isdigit() else None


def forecast_bytes(config: RunConfig) -> float:
    """Bytes a job will take, by a dry run of its step; where the config cannot run, a process's: its job says why."""
    from lab.launch import worker
    from lab.run.plan import plan

    worker.quiet_not_ours()
    try:
        return PROCESS_BYTES + plan(config).cost.peak * config.hardware.devices
    except (UsageError, configuration.ConfigError):
        return PROCESS_BYTES


@contextmanager
def one_line(run_dir: Path) -> Iterator[Callable[[str], None]]:
    """Keep what a job prints in its folder, and say one line, given by the caller, when it has ended."""
    shown, said = sys.stdout, ""

    def say(text: str) -> None:
        nonlocal said
        said = text

    try:
        with (run_dir / CONSOLE).open("a", buffering=1, encoding="utf-8") as file, redirect_stdout(file):
            yield say
    finally:
        print(said or f"{run_dir.name}: ended without a result", file=shown, flush=True)
