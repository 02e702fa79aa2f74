"""The workers of one job: started together, watched, signalled and ended together. No torch here.

`torch.distributed.run` is not used for our own groups: its agent kills workers at the first signal, hides which rank
failed first, costs an import of torch, and needs a free port.
"""

import math
import os
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
from queue import Empty, SimpleQueue
from types import FrameType

from lab.process import hang, heartbeat
from lab.process.hang import Hang
from lab.process.heartbeat import BEATS, DONE, NOTHING, Slot
from lab.process.process_group import DISTRIBUTED, RENDEZVOUS

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)  # USR1, USR2: Slurm's warning before the end
STOPPED = 3  # a worker's exit status after an ending that is in the record: interrupted or diverged
WORKER = (sys.executable, "-m", "lab.launch.worker")  # the command of one process, before the run directory
FAILURE_GRACE = 10.0  # seconds the other ranks have to notice that one has died
STOP_GRACE = 300.0  # seconds from a signal to the checkpoint; a scheduler that is in more of a hurry kills us itself


@dataclass(frozen=True)
class End:
    """The end of one process, as its parent saw it."""

    rank: int
    status: int  # the exit status; of one that a signal killed, the signal's number below 0
    at: float  # time.monotonic()
    word: int  # its last, of lab.process.heartbeat
    began: bool  # False where it never counted a beat

    @property
    def cause(self) -> str | None:
        """The name of the signal that killed it."""
        return signal.Signals(-self.status).name if self.status < 0 else None

    @property
    def how(self) -> str:
        """The way it ended, in words that follow the process's name."""
        if self.cause == "SIGKILL":
            return "was killed by SIGKILL, as the system does when memory runs out"
        if self.cause is not None:
            return f"was killed by {self.cause}"
        if not self.began:
            return f"could not start and exited with {self.status}; what it said is above, or in its log"
        return f"exited with {self.status} in the middle of the run"


@dataclass(frozen=True)
class Ending:
    """The ends of a job's processes by themselves, in the order of time, until we ended those that were left."""

    ends: tuple[End, ...]
    signals: tuple[str, ...] = ()  # that we were sent, and handed on
    hang: Hang | None = None

    @property
    def first(self) -> End | None:
        """The first process that ended without a word, which no ending of its own or of the user's explains."""
        unexplained = (end for end in self.ends if end.word == NOTHING and end.cause not in self.signals)
        return next(unexplained, None)


def run(run_dir: Path, devices: int, threads: int | None, timeout_s: float | None, extra: dict[str, str]) -> Ending:
    """Start a worker per device on this machine, hand our signals on to them, and wait until all have ended.

    Where no worker has given a sign of life for `timeout_s`, the stacks of all are taken, and all are ended.
    """
    env = {k: v for k, v in os.environ.items() if k not in DISTRIBUTED and not k.startswith("TORCHELASTIC")}
    env.setdefault("OMP_NUM_THREADS", str(threads or max(1, len(os.sched_getaffinity(0)) // devices)))
    env |= {"WORLD_SIZE": str(devices), "LOCAL_WORLD_SIZE": str(devices), **extra}
    with tempfile.TemporaryDirectory(prefix="lab-rendezvous-") as folder:
        beats = Path(folder) / "beats"
        env |= {RENDEZVOUS: str(Path(folder) / "ranks"), BEATS: str(beats)}
        group = _Group(heartbeat.slots(beats, devices))
        try:
            with _forward_signals(group.workers) as received:
                for rank in range(devices):
                    group.start([*WORKER, str(run_dir)], env | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                hung = group.wait(timeout_s, received, beats)
            ends = tuple(group.ends)
        finally:
            for worker in group.workers:
                _kill(worker)
        return Ending(ends, tuple(received), hung)


def stack_file(beats: Path, rank: int) -> Path:
    """The file in which a worker shows its stack, beside the file in which it counts."""
    return beats.with_name(f"stack{rank}")


def start_worker(command: list[str], env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A process in a session of its own, so that Ctrl-C reaches it once, through us; the pipe tells it if we die."""
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)


class _Group:
    """The workers of a job, by rank, and how those that ended did, in the order of time."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = slots
        self.workers: list[subprocess.Popen[bytes]] = []
        self.ends: list[End] = []
        self._ended: SimpleQueue[End] = SimpleQueue()

    def start(self, command: list[str], env: dict[str, str]) -> None:
        """Start the next rank's. A thread waits for its end, so that the order of ends is that of time."""
        worker = start_worker(command, env)
        self.workers.append(worker)
        threading.Thread(target=self._reap, args=(len(self.workers) - 1, worker), daemon=True).start()

    def _reap(self, rank: int, worker: subprocess.Popen[bytes]) -> None:
        status, slot = worker.wait(), self.slots[rank]
        self._ended.put(End(rank, status, time.monotonic(), slot.word, slot.count > 0))

    @property
    def living(self) -> list[int]:
        return sorted(set(range(len(self.workers))) - {end.rank for end in self.ends})

    def wait(self, timeout_s: float | None, received: list[str], beats: Path) -> Hang | None:
        """Until all have ended, or have to be: some time after a failure or a signal, or because they hang."""
        pids = [worker.pid for worker in self.workers]
        watch = None
        if timeout_s is not None:
            watch = hang.Watch(self.slots, timeout_s, lambda rank: hang.processor_seconds(pids[rank]))
        deadline, stopping = math.inf, False
        while self.living:
            with suppress(Empty):
                self.ends.append(self._ended.get(timeout=0.05))
            if deadline == math.inf and any(end.word != DONE for end in self.ends):
                deadline = time.monotonic() + FAILURE_GRACE
            elif received and not stopping:
                stopping, deadline = True, time.monotonic() + STOP_GRACE
            if time.monotonic() > deadline:
                return None
            if watch is not None and watch.hangs(self.living):
                paths = {rank: stack_file(beats, rank) for rank in self.living}
                return Hang(hang.stacks_of({rank: pids[rank] for rank in paths}, paths), watch.seconds)
        return None


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and whatever it started, such as loader processes."""
    with suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    assert worker.stdin is not None
    worker.stdin.close()


@contextmanager
def _forward_signals(workers: list[subprocess.Popen[bytes]]) -> Iterator[list[str]]:
    """While the context lasts, signals to this process go to the workers; their names are collected.

    Only the main thread can take signals; elsewhere a launcher keeps its own.
    """
    received: list[str] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name)
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show_signs_of_life() -> None:
    """In a worker: count, and show stacks, where the process that started us looks."""
    if BEATS in os.environ:
        beats, rank = Path(os.environ[BEATS]), int(os.environ["RANK"])
        heartbeat.join(beats, rank)
        hang.show_when_asked(stack_file(beats, rank))


def stop_when_orphaned() -> None:
    """In a worker: when the process that started us is gone, ask ourselves to stop with a checkpoint."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()
