"""Pool of processes that do tasks beside each other: none outlives us, and one that dies takes one task along."""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import active_children, connection, get_context, parent_process
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


class NoProcess(Exception):
    """A task that was left where it was, since no process for it could be started."""


class Pool:
    """`count` processes, each started when there is a task for it and kept for later ones, until ours ends.

    A `count` that is lowered leaves the processes beyond it without tasks. `received` are the signals that came while
    tasks were done; after one the pool does no more.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.received: list[int] = []
        self._slots: list[_Slot] = []
        _pools.append(self)

    def map(self, function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What became of each task: the function's value, or the exception it raised, Died, NoProcess or NotBegun.

        SIGTERM and Ctrl-C are handed on to the processes, each once; no further task is begun then. A process that
        ended between two tasks is replaced.
        """
        outcomes: list[Any] = [NotBegun()] * len(tasks)
        left = list(range(len(tasks)))
        waiting: dict[Future[Any], tuple[int, _Slot, bool]] = {}  # for the task's process, and then for the task
        with self._handing_on():
            self._slots += [_Slot() for _ in range(self.count - len(self._slots))]
            while waiting or (left and not self.received):
                used = [slot for _, slot, _ in waiting.values()]
                free = [slot for slot in self._slots[: self.count] if slot not in used]
                while free and left and not self.received:
                    slot = self._living(free.pop(0))
                    waiting[slot.start()] = left.pop(0), slot, False
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    number, slot, begun = waiting.pop(done)
                    if begun and isinstance(done.exception(), BrokenProcessPool) and not slot.began_last:
                        left.insert(0, number)
                    elif begun:
                        outcomes[number] = _outcome(done)
                    elif done.exception() is not None:
                        outcomes[number] = NoProcess("a process to do tasks in ended while it started")
                    elif not self.received:  # only now, when a signal would reach it
                        waiting[slot.submit(function, tasks[number])] = number, slot, True
        return outcomes

    def _living(self, slot: "_Slot") -> "_Slot":
        """The slot, or another in its place where its process has ended."""
        if slot.has_ended:
            self._slots[self._slots.index(slot)] = slot = _Slot()
        return slot

    @contextmanager
    def _handing_on(self) -> Iterator[None]:
        """While the context lasts, signals to this process go to the pool's; only the main thread can take them."""

        def hand_on(number: int, frame: FrameType | None) -> None:
            self.received.append(number)
            for slot in self._slots:
                slot.send(number)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, hand_on) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Slot:
    """One process of a pool, from its first task on."""

    def __init__(self) -> None:
        spawn = get_context("spawn")
        self._begun, self._given = spawn.RawValue("Q", 0), 0  # tasks
        self._executor = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin, initargs=(self._begun,))
        self._pid: Future[int] | None = None

    def start(self) -> Future[int]:
        """Start the process, unless that has been done; its id is there when it takes signals."""
        self._pid = self._pid or self._executor.submit(os.getpid)
        return self._pid

    @property
    def has_ended(self) -> bool:
        """True where the process has been started and is gone."""
        if self._pid is None or not self._pid.done():
            return False
        living = [process.pid for process in active_children()]
        return self._pid.exception() is not None or self._pid.result() not in living

    def submit(self, function: Callable[..., Any], task: tuple[Any, ...]) -> Future[Any]:
        """The task's outcome, to come; BrokenProcessPool where the process ends."""
        self._given += 1
        try:
            return self._executor.submit(_work, function, task)
        except BrokenProcessPool as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed

    @property
    def began_last(self) -> bool:
        """True where the process has begun the last task that it was given."""
        return self._begun.value == self._given

    def send(self, number: int) -> None:
        """Send a signal to the process, if it lives; one that is still starting has nothing to stop."""
        if self._pid is not None and self._pid.done() and self._pid.exception() is None:
            with suppress(ProcessLookupError):
                os.kill(self._pid.result(), number)


def _outcome(done: Future[Any]) -> Any:
    error = done.exception()
    if isinstance(error, BrokenProcessPool):
        return Died("the process of this task ended in the middle of it, as by a kill or for want of memory")
    return done.result() if error is None else error


# In a process of a pool: the number of tasks begun, where our parent sees it, and the signals that came between tasks.
_begun: Any = None
_asked: list[int] = []


def _begin(begun: Any) -> None:
    """In a process of the pool: a session of its own, so that Ctrl-C reaches it once, through us; it ends with us."""
    global _begun
    _begun = begun
    os.setsid()
    for number in SIGNALS:
        signal.signal(number, _note)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)  # a task that takes signals stops in its own way
        with _busy:
            os._exit(1)

    threading.Thread(target=watch, daemon=True, name="orphan watch").start()


def _note(number: int, frame: FrameType | None) -> None:
    """Between tasks there is nothing to interrupt; the next, which may be on its way, is not begun."""
    _asked.append(number)


def _work(function: Callable[..., Any], task: tuple[Any, ...]) -> Any:
    with _busy:
        try:
            for number in SIGNALS:  # both raise KeyboardInterrupt, until the task takes them itself
                signal.signal(number, signal.default_int_handler)
            if _asked:
                raise NotBegun
            _begun.value += 1
            return function(*task)
        finally:
            for number in SIGNALS:
                signal.signal(number, _note)
