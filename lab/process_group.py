"""The processes of one job: started together, signalled together, ended together. No torch here.

`torch.distributed.run` is not used for our own groups: its agent kills workers at the first signal, hides which rank
failed first, costs an import of torch, and needs a free port.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lab.errors import UsageError

RENDEZVOUS = "LAB_RENDEZVOUS"  # a file through which the ranks of our own group find each other; no port to be in use
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # USR1, USR2: Slurm's warning before the end
STOPPED = 3  # a worker's exit status after an ending that is in the record: interrupted or diverged
FAILURE_GRACE = 10.0  # seconds the other ranks have to notice that one has died
STOP_GRACE = 300.0  # seconds from a signal to the checkpoint; a scheduler that is in more of a hurry kills us itself

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
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    if found is None:
        raise UsageError(f"SLURM_STEP_NODELIST={nodes!r} names no host; set MASTER_ADDR to the first node.")
    return found[1] + (found[2] or "")


def agree_on(run_dir: Path, group: Outside, accelerator: str) -> Path:
    """Rank 0's run directory, on every rank of a group that someone else started; joins the process group."""
    import torch
    import torch.distributed as dist

    cuda = accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("nccl" if cuda else "gloo")
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


@dataclass(frozen=True)
class Ending:
    """How the processes of a job ended: exit statuses by rank, and the signal that we were sent, if any."""

    statuses: tuple[int, ...]
    signalled: str | None

    @property
    def dead(self) -> str:
        """Which process ended without leaving a word, and how, for a message."""
        for rank, status in enumerate(self.statuses):
            if status not in (0, STOPPED):
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
                hint = "; the system kills a process that way when memory runs out" if status == -9 else ""
                return f"the process of rank {rank} {how}{hint}"
        return "every process ended, and none said how"


def run(run_dir: Path, devices: int, threads: int | None, extra: dict[str, str]) -> Ending:
    """Start a worker per device on this machine, hand our signals on to them, and wait until all have ended."""
    env = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED and not k.startswith("TORCHELASTIC")}
    env.setdefault("OMP_NUM_THREADS", str(threads or max(1, len(os.sched_getaffinity(0)) // devices)))
    env |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices), **extra}
    command = [sys.executable, "-m", "lab.worker", str(run_dir)]
    with tempfile.TemporaryDirectory(prefix="lab-rendezvous-") as folder:
        env[RENDEZVOUS] = str(Path(folder) / "ranks")
        workers: list[subprocess.Popen[bytes]] = []
        try:
            with _handed_on(workers) as received:
                for rank in range(devices):
                    place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                    # A session of its own: Ctrl-C reaches a worker once, through us. The pipe tells it if we die.
                    worker = subprocess.Popen(command, env=env | place, stdin=subprocess.PIPE, start_new_session=True)
                    workers.append(worker)
                _wait(workers, received)
        finally:
            for worker in workers:
                _kill(worker)
        return Ending(tuple(worker.returncode for worker in workers), received[0] if received else None)


def _wait(workers: Sequence[subprocess.Popen[bytes]], received: list[str]) -> None:
    """Until all have ended; returns early, for the others to be killed, some time after one failed or a signal."""
    deadline: float | None = None
    stopping = False
    while None in (statuses := [worker.poll() for worker in workers]):
        failed = any(status not in (None, 0) for status in statuses)
        if failed and deadline is None:
            deadline = time.monotonic() + FAILURE_GRACE
        elif received and not stopping:
            stopping, deadline = True, time.monotonic() + STOP_GRACE
        if deadline is not None and time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever it started, such as loader processes."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert worker.stdin is not None
    worker.stdin.close()


@contextmanager
def _handed_on(workers: list[subprocess.Popen[bytes]]) -> Iterator[list[str]]:
    """While the context lasts, signals to this process go to the workers; their names are collected.

    Only the main thread can take signals; elsewhere a launcher keeps its own.
    """
    received: list[str] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_when_orphaned() -> None:
    """In a worker: when the process that started us is gone, ask ourselves to stop with a checkpoint."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()
