"""The process group that a process finds itself in, and how the ranks of one meet. No torch before they do."""

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.process.heartbeat import BEATS

RENDEZVOUS = "LAB_RENDEZVOUS"  # a file through which the ranks of our own group find each other; no port to be in use

# How long a process waits for others in a collective. In our own groups one may wait for another's long work, and who
# hangs is seen from outside; in others' nobody else would ever end the wait, and half an hour is gloo's own limit.
LONGEST_WAIT, DEFAULT_WAIT = timedelta(days=1), 1800.0  # s

# What a process group leaves in the environment; a job must not inherit it from another.
DISTRIBUTED = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    RENDEZVOUS,
    BEATS,
)


@dataclass(frozen=True)
class Outside:
    """A group that someone else started, and this process's place in it."""

    starter: str
    rank: int
    world: int


def outside() -> Outside | None:
    """The group that torchrun, or Slurm's srun with several tasks, has put this process in; None where nobody has.

    Under srun the variables torch reads are derived from Slurm's; the address is the first host of the step.
    """
    env = os.environ
    if "RANK" in env and int(env.get("WORLD_SIZE", "1")) > 1:
        return Outside("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]))
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env and tasks > 1:
        env["RANK"], env["LOCAL_RANK"] = env["SLURM_PROCID"], env["SLURM_LOCALID"]
        env["WORLD_SIZE"] = str(tasks)
        env.setdefault("MASTER_ADDR", first_host(env.get("SLURM_STEP_NODELIST", "127.0.0.1")))
        env.setdefault("MASTER_PORT", str(15_000 + int(env.get("SLURM_JOB_ID", "0")) % 20_000))
        return Outside("srun", int(env["RANK"]), tasks)
    return None


def first_host(nodes: str) -> str:
    """The first host of a Slurm node list such as gpu[03-05,9],login1."""
    match = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    if match is None:
        raise UsageError(f"SLURM_STEP_NODELIST={nodes!r} names no host; set MASTER_ADDR to the first node.")
    return match[1] + (match[2] or "")


def agree_on(run_dir: Path, group: Outside, accelerator: str, timeout_s: float | None) -> Path:
    """Rank 0's run directory, on every rank of a group that someone else started; joins the process group."""
    import torch
    import torch.distributed as dist

    cuda = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    waits = LONGEST_WAIT if timeout_s is None else timedelta(seconds=max(DEFAULT_WAIT, timeout_s))
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=waits)
    except dist.DistNetworkError as error:
        raise UsageError(
            f"the ranks cannot meet at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).splitlines()[0][:160]}); set MASTER_PORT to a port that is free on the first node, or let "
            f"torchrun --standalone find one."
        ) from error
    shared: list[Any] = [str(run_dir.resolve()) if group.rank == 0 else None]
    dist.broadcast_object_list(shared, src=0)
    return Path(shared[0])


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Wait until a file that another process has written can be seen here; a shared file system may be slow.

    Raises UsageError after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not path.is_file():
        if time.monotonic() > deadline:
            raise UsageError(
                f"{path} is not visible on this node after {seconds:.0f} s; the run directory must lie on a file "
                f"system that all processes share (hydra.run.dir=…)."
            )
        with suppress(OSError):
            next(path.parent.iterdir(), None)  # makes NFS look again
        time.sleep(0.1)
