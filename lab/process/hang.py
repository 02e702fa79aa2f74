"""Hanging processes: told by their silence, from outside or from a thread within, and shown by their stacks."""

import faulthandler
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lab.process import heartbeat
from lab.process.heartbeat import Slot

# Asks a process for its stack. Nothing else uses it, and who does not listen, not yet or no longer, ignores it.
SHOW = signal.SIGURG
GRACE = 10.0  # seconds a hung process has to end by itself, or to show its stack
SHARE = 0.01  # of the time a process was silent; one that used the processor for longer was at work
LEAST_SECONDS = 0.05  # of processor time, which is counted in hundredths
# Where a process stands that waits for others: collectives, DDP's own, and backward passes, in which DDP waits.
WAITS = re.compile(r"/torch/(distributed/|nn/parallel/distributed\.py|autograd/graph\.py)")
_FRAME = re.compile(r'^ *File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$', re.MULTILINE)


class Hung(BaseException):
    """No sign of life for hardware.timeout_s. No Exception: what catches those must not take it for a failed call."""


class Watch:
    """Listens for signs of life: beats and, outside `heartbeat.strict`, use of the processor.

    `processor` gives the seconds of it that the process of a rank has used, None where the system does not tell:
    then one outside `strict` is taken for alive. Silence is counted only while the watcher itself runs, so that a
    machine or a job may be suspended. A process that is silent may wait for one that is not, so all must be.
    """

    def __init__(self, slots: Sequence[Slot], seconds: float, processor: Callable[[int], float | None]) -> None:
        self._slots, self.seconds, self._processor = slots, seconds, processor
        self._every = min(1.0, seconds / 10)
        self._looked = time.monotonic()
        self._silence = [0.0] * len(slots)
        self._seen = [(slot.count, processor(rank)) for rank, slot in enumerate(slots)]  # at the last sign of life

    def hangs(self, living: Sequence[int]) -> bool:
        """True where no living process has given a sign of life for so many seconds; to be asked often."""
        passed = time.monotonic() - self._looked
        if passed < self._every or not living:
            return False
        self._looked += passed
        for rank in living:
            self._silence[rank] += min(passed, 2 * self._every)
            count, used = self._slots[rank].count, self._processor(rank)
            if count != self._seen[rank][0] or (not self._slots[rank].strict and self._has_worked(rank, used)):
                self._seen[rank], self._silence[rank] = (count, used), 0.0
        return all(self._silence[rank] >= self.seconds for rank in living)

    def forgive(self) -> None:
        """Count all silence from here on."""
        self._silence = [0.0] * len(self._slots)

    def _has_worked(self, rank: int, used: float | None) -> bool:
        before = self._seen[rank][1]
        return used is None or before is None or used - before > LEAST_SECONDS + SHARE * self._silence[rank]


@dataclass(frozen=True)
class Stack:
    """The stack that a process shows: the frames of each thread, the main one first, the innermost first."""

    text: str  # "" where it shows none
    stopped: bool = False  # by SIGSTOP, say, or a debugger

    @classmethod
    def parse(cls, text: str, stopped: bool = False) -> "Stack":
        """From what faulthandler wrote, which begins with the latest thread."""
        return cls("\n\n".join(reversed(text.strip().split("\n\n"))), stopped)

    @property
    def where(self) -> str:
        """The innermost frame of the main thread."""
        frame = _FRAME.search(self.text)
        return "what shows no line" if frame is None else "{name}, {file}:{line}".format(**frame.groupdict())

    @property
    def waits(self) -> bool:
        """True where it stands in a call that waits for the other processes."""
        frame = _FRAME.search(self.text)
        return frame is not None and not self.stopped and WAITS.search(frame["file"]) is not None


def show_when_asked(path: Path) -> None:
    """In a worker: write the stack of every thread to a file whenever `SHOW` comes, whatever the process is at."""
    faulthandler.register(SHOW, file=path.open("w", encoding="utf-8"), all_threads=True, chain=False)


def stacks_of(pids: Mapping[int, int], paths: Mapping[int, Path]) -> dict[int, Stack]:
    """The stacks of processes, by rank; one that is stopped is woken for it."""
    stopped = {rank: _state(pid) in ("T", "t") for rank, pid in pids.items()}
    for pid in pids.values():
        for number in (SHOW, signal.SIGCONT):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
    texts = dict.fromkeys(pids, "")
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline:
        time.sleep(0.2)
        before, texts = (
            texts,
            {rank: paths[rank].read_text(encoding="utf-8") if paths[rank].exists() else "" for rank in pids},
        )
        if texts == before and all(texts.values()):
            break
    return {rank: Stack.parse(texts[rank], stopped[rank]) for rank in pids}


@dataclass(frozen=True)
class Hang:
    """The stacks of processes of which none has given a sign of life for some time, by rank."""

    stacks: Mapping[int, Stack]
    seconds: float

    @property
    def culprits(self) -> list[int]:
        """The ranks that hang: what waits for others does not, unless all wait for each other."""
        return [rank for rank, stack in self.stacks.items() if not stack.waits] or list(self.stacks)

    def __str__(self) -> str:
        states = []
        for rank in self.culprits:
            does = "is stopped" if self.stacks[rank].stopped else "waits" if self.stacks[rank].waits else "hangs"
            states.append(f"rank {rank} {does} in {self.stacks[rank].where}")
        return _sentence(self.seconds, ", ".join(states))


def _sentence(seconds: float, states: str) -> str:
    return f"no sign of life for {seconds:g} s: {states}; where it was only slow, raise hardware.timeout_s"


@contextmanager
def watch_self(seconds: float | None, remedy: str, group: bool, give_up: Callable[[str, str], None]) -> Iterator[None]:
    """A watch of this process over itself while the context lasts: Hung is raised in its main thread, where that hangs.

    A main thread that stands in C code does not hear it: then `give_up` is called, with the sentence, which ends in the
    `remedy`, and the stack, and the process ends with status 1. Code that holds the interpreter's lock hangs unseen. In
    a `group`, whose other processes nobody here sees, waiting for them is no silence: the collectives have a limit of
    their own. Outside the main thread nothing is watched.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    main, ended, heard = threading.get_ident(), threading.Event(), threading.Event()
    watch = Watch([heartbeat.own], seconds, lambda rank: time.process_time())

    def raise_hung(number: int, frame: FrameType | None) -> None:
        heard.set()
        raise Hung(f"{_sentence_at(frame, seconds)}; {remedy}")

    def look() -> None:
        while not ended.wait(min(1.0, seconds / 10)):
            if not watch.hangs([0]):
                continue
            watch.forgive()
            frame = sys._current_frames().get(main)
            if group and frame is not None and WAITS.search(frame.f_code.co_filename):
                continue
            signal.pthread_kill(main, SHOW)
            if heard.wait(GRACE):
                heard.clear()
            elif not ended.is_set():
                give_up(f"{_sentence_at(frame, seconds)}; {remedy}", _stack_here().text)
                os._exit(1)

    before = signal.signal(SHOW, raise_hung)
    thread = threading.Thread(target=look, daemon=True, name="hang watch")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.signal(SHOW, before)


def processor_seconds(pid: int) -> float | None:
    """Processor time of a process so far, seconds over all its threads; None where the system does not tell."""
    fields = _stat(pid)
    return None if fields is None else (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return None if fields is None else fields[0]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat behind the name, from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None


def _sentence_at(frame: FrameType | None, seconds: float) -> str:
    where = "what shows no line"
    if frame is not None:
        where = f"{frame.f_code.co_name}, {frame.f_code.co_filename}:{frame.f_lineno}"
    return _sentence(seconds, f"the process hangs in {where}")


def _stack_here() -> Stack:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return Stack.parse(file.read())
