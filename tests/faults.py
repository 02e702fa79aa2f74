"""Jobs of several processes, started as `python -m lab.train` starts them, in which a rank meets a fault.

Every process is forked from a server that has imported everything once, so that a job of two takes a few seconds; what
is sent, waited for and killed are real processes.
"""

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from jobs import SMALL

from lab.errors import UsageError

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["jobs", "lab.run.host"])

TWO = ("hardware=cpu_ddp2", "hardware.threads=1", "hardware.precision=32-true")
QUIET = ("evaluate.accuracy=false", "evaluate.num_samples=0", "schedule.max_steps=6", "schedule.max_epochs=null")
Call = Callable[[], Any]


def a_measure(net: Any, tokenizer: Any) -> float:
    """Of a user's own."""
    return 1.0


def _stop(seconds: float | None = None) -> None:
    if seconds is not None and os.fork() == 0:
        time.sleep(seconds)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)  # another thread may take the signal: this one goes on for a moment, and shall be found here


def _memory(call: Call) -> None:
    raise MemoryError


def _usage(call: Call) -> None:
    raise UsageError("this rank's data are gone; bring them back.")


def _bug(call: Call) -> None:
    raise KeyError("a bug of this rank")


FAULTS: dict[str, Callable[[Call], Any]] = {
    "is killed": lambda call: os.kill(os.getpid(), signal.SIGKILL),
    "is stopped": lambda call: (_stop(), call())[1],
    "leaves": lambda call: os._exit(0),
    "calls exit": lambda call: sys.exit(0),
    "sleeps": lambda call: (time.sleep(1000), call())[1],
    "spins": lambda call: [None for _ in iter(int, 1)],
    "is slow": lambda call: (time.sleep(0.4), call())[1],
    "is stopped for a while": lambda call: (_stop(1.0), call())[1],
    "runs out of memory": _memory,
    "meets a mistake": _usage,
    "meets a bug": _bug,
    "computes nan": lambda call: call() * (float("nan") if torch.is_grad_enabled() else 1.0),  # in training
    "is killed behind it": lambda call: (call(), os.kill(os.getpid(), signal.SIGKILL)),
}


@dataclass(frozen=True)
class Fault:
    """What a rank meets in place of the n-th call of `module:name` or `module:Class.name`; at 0, of every call."""

    what: str
    where: str
    call: int = 1

    def put(self) -> None:
        """Into this process."""
        module, _, path = self.where.partition(":")
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        real, calls = getattr(owner, name), []

        def faulty(*args: Any, **kwargs: Any) -> Any:
            calls.append(None)
            if self.call in (0, len(calls)):
                return FAULTS[self.what](lambda: real(*args, **kwargs))
            return real(*args, **kwargs)

        setattr(owner, name, faulty)


Faults = dict[int, tuple[Fault, ...]]  # by rank


class Job:
    """A job under way: SMALL with two ranks, in a folder of its own; `faults` by rank."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        faults: Mapping[int, Fault | tuple[Fault, ...]] | None = None,
        grace: float = 1.0,
        **env: str,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run_dir, self.console = folder / "out", folder / "console"
        given = arguments
        if not any(argument.startswith("resume=") for argument in arguments):
            kept = [item for item in SMALL if not item.startswith(("hardware", "schedule.max_epochs"))]
            given = (*kept, *TWO, *QUIET, f"hydra.run.dir={self.run_dir}", *arguments)
        each = {rank: fault if isinstance(fault, tuple) else (fault,) for rank, fault in (faults or {}).items()}
        self.process = _forks.Process(target=_launch, args=(folder, given, each, grace, env))
        self.process.start()

    def end(self, seconds: float = 100) -> tuple[int, str]:
        """Its exit status and all it has said; raises TimeoutError where it does not end."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                process.kill()
            raise TimeoutError(f"the job in {self.run_dir} did not end:\n{self.console.read_text()}")
        return self.process.exitcode, self.console.read_text()


def _launch(folder: Path, arguments: tuple[str, ...], faults: Faults, grace: float, env: dict[str, str]) -> None:
    from lab import train
    from lab.process import workers

    os.chdir(folder)
    console = (folder / "console").open("w", buffering=1)
    for stream in (1, 2):
        os.dup2(console.fileno(), stream)
    os.environ |= env
    sys.argv = ["lab.train", *arguments]
    workers.FAILURE_GRACE = grace
    if "RANK" in env or "hardware=cpu" in arguments:  # no process but this one
        for fault in faults.get(int(env.get("RANK", "0")), ()):
            fault.put()
    else:
        workers.start_worker = lambda command, env: _Forked(command, env, faults)  # type: ignore[assignment]
    train.main()


class _Forked:
    """The part of subprocess.Popen that a process group uses, for a worker that is forked."""

    def __init__(self, command: list[str], env: dict[str, str], faults: Faults) -> None:
        read, write = os.pipe()
        self.pid, self.returncode = os.fork(), None
        if self.pid == 0:
            os.close(write)
            _work(command, faults.get(int(env["RANK"]), ()), env, read)
        os.close(read)
        self.stdin = os.fdopen(write, "wb")

    def wait(self) -> int:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):  # the thread that waits for it has its status
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            while self.returncode is None:
                time.sleep(0.01)
        return self.returncode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _work(command: list[str], faults: tuple[Fault, ...], env: dict[str, str], stdin: int) -> None:
    """In a forked process: the worker, from start to end."""
    status = 1
    try:
        os.setsid()
        os.dup2(stdin, 0)
        os.environ.clear()
        os.environ |= env
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL if number != signal.SIGINT else signal.default_int_handler)
        import logging

        from lab.launch import worker

        for handler in list(logging.getLogger().handlers):  # Hydra's, of the process that forked this one
            logging.getLogger().removeHandler(handler)
        for fault in faults:
            fault.put()
        sys.argv = command
        sys.argv[:] = command[2:]
        worker.main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
