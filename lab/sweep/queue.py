"""Queue of submitted jobs, from submitit's own files: a planner that takes over submits none twice."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from lab.errors import UsageError
from lab.paths import quoted

SUBMITTED, RESULT = "_submitted.pkl", "_result.pkl"  # submitit's: <job id>_submitted.pkl, <job id>_<task>_result.pkl
SLURM, LOCAL = "SlurmLauncher", "LocalLauncher"  # the classes of hydra-submitit-launcher


def queued_jobs(study_dir: Path, jobs: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Keys of the jobs that submitit has accepted and that are queued or running, whoever submitted them.

    `jobs` is `Study.jobs`. Jobs of other launchers end with the process that started them. The pickles are searched
    for the job's directory and not loaded. Raises UsageError where Slurm's queue cannot be asked.
    """
    submitted = {key: entry for key, entry in jobs.items() if entry["launcher"] in (SLURM, LOCAL)}
    pending = {
        path.name.removesuffix(SUBMITTED): path
        for path in (study_dir / ".submitit").glob(f"*/*{SUBMITTED}")
        if not list(path.parent.glob(f"{path.name.removesuffix(SUBMITTED)}_*{RESULT}"))
    }
    kinds = {entry["launcher"] for entry in submitted.values()}
    in_slurm = _slurm_queue() if pending and SLURM in kinds else set()
    texts = [path.read_bytes() for name, path in pending.items() if name in in_slurm or _runs(name)]
    wanted = {key: f"hydra.sweep.subdir={quoted(entry['directory'])}".encode() for key, entry in submitted.items()}
    return {key for key, subdir in wanted.items() if any(subdir in text for text in texts)}


def _runs(job_id: str) -> bool:
    """True while the local executor's process lives; its job id is that process's id."""
    try:
        process = psutil.Process(int(job_id))
        return process.status() != psutil.STATUS_ZOMBIE and any("submitit" in part for part in process.cmdline())
    except (psutil.Error, ValueError):
        return False


def _slurm_queue() -> set[str]:
    """Ids of this user's pending and running jobs, array tasks one by one."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"Slurm's queue cannot be asked ({error}); resume the study where squeue works.") from None
    if done.returncode:
        raise UsageError(f"squeue failed ({done.stderr.strip()}); resume the study where it works.")
    return set(done.stdout.split())
