"""Pool of processes that do tasks beside each other: none outlives us, and one that dies takes one task along."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Of this process. A pool that was collected just before the end would close its pipes while Python, which ends all
# pools then, still writes to them.
_pools: list["Pool"] = []
_busy = threading.Lock()  # in a process of a pool: held while it works on a task


class NotBegun(Exception):
    """A task that was left where it was, since we were asked to stop."""


class Died(Exception):
    """The process of a task ended in the middle of it."""


class Pool:
    """`count` processes, each started when there is a task for it and kept for later ones, until ours ends.

    A `count` that is lowered leaves the processes beyond it without tasks.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._slots: list[_Slot] = []
        _pools.append(self)

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What became of each task: the function's value, or the exception it raised, Died or NotBegun.

        SIGTERM and Ctrl-C are handed on to the processes, each once; no further task is begun then.
        """
        outcomes: list[Any] = [NotBegun()] * len(tasks)
        running: dict[Future[Any], tuple[int, _Slot]] = {}
        left = list(enumerate(tasks))
        self._slots += [_Slot() for _ in range(self.count - len(self._slots))]
        with self._handing_on() as received:
            while running or (left and not received):
                used = [slot for _, slot in running.values()]
                free = [slot for slot in self._slots[: self.count] if slot not in used]
                while free and left and not received:
                    slot, (number, task) = free.pop(0), left.pop(0)
                    running[slot.submit(function, task)] = number, slot
                for done in wait(running, return_when=FIRST_COMPLETED).done:
                    number, slot = running.pop(done)
                    outcomes[number] = _outcome(done)
                    if isinstance(outcomes[number], Died):
                        self._slots[self._slots.index(slot)] = _Slot()
        return outcomes

    @contextmanager
    def _handing_on(self) -> Iterator[list[int]]:
        """While the context lasts, signals to this process go to the pool's; only the main thread can take them."""
        received: list[int] = []

        def hand_on(number: int, frame: FrameType | None) -> None:
            received.append(number)
            for slot in self._slots:
                slot.send(number)

        if threading.current_thread() is not threading.main_thread():
            yield received
            return
        before = {number: signal.signal(number, hand_on) for number in SIGNALS}
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Slot:
    """One process of a pool, from its first task on."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_begin)
        self._pid: Future[int] | None = None

    def submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Future[Any]:
        if self._pid is None:
            self._pid = self._executor.submit(os.getpid)
        return self._executor.submit(_work, function, task)

    def send(self, number: int) -> None:
        """Send a signal to the process, if it lives; one that is still starting has nothing to stop."""
        if self._pid is not None and self._pid.done():
            with suppress(ProcessLookupError, BrokenProcessPool):
                os.kill(self._pid.result(), number)


def _outcome(done: Future[Any]) -> Any:
    error = done.exception()
    if isinstance(error, BrokenProcessPool):
        return Died("the process of this task ended in the middle of it, as by a kill or for want of memory")
    return done.result() if error is None else error


def _begin() -> None:
    """In a process of the pool: a session of its own, so that Ctrl-C reaches it once, through us; it ends with us."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between tasks there is nothing to interrupt
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # a task that takes signals stops in its own way
        with _busy:
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()


def _work(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    with _busy:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return function(*task)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
