"""Signs of life: what a process counts while it works, where whoever watches it can read. Standard library only."""

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BEATS = "LAB_BEATS"  # the file in which the processes of our own group count
NOTHING, DONE, TOLD = 0, 1, 2  # a process's last word: none yet, all is done, its ending is written down for all
_COUNT = struct.Struct("=Q")
_STRICT, _WORD, _SIZE = 8, 9, 16  # bytes: where a slot holds what follows its count, and how long it is


class Slot:
    """Signs of life of a process: beats so far, whether only they count, its last word; `shared` with who watches."""

    def __init__(self, memory: bytearray | mmap.mmap, rank: int = 0) -> None:
        self._memory, self._start = memory, rank * _SIZE
        self.shared = isinstance(memory, mmap.mmap)

    @property
    def count(self) -> int:
        return int(_COUNT.unpack_from(self._memory, self._start)[0])

    @count.setter
    def count(self, value: int) -> None:
        _COUNT.pack_into(self._memory, self._start, value)

    @property
    def strict(self) -> bool:
        return bool(self._memory[self._start + _STRICT])

    @strict.setter
    def strict(self, value: bool) -> None:
        self._memory[self._start + _STRICT] = value

    @property
    def word(self) -> int:
        return int(self._memory[self._start + _WORD])

    @word.setter
    def word(self, value: int) -> None:
        self._memory[self._start + _WORD] = value


own = Slot(bytearray(_SIZE))  # this process's
_hearer: Callable[[], None] | None = None  # of this process, too


def slots(path: Path, processes: int) -> Sequence[Slot]:
    """The slots of a group's processes, in a new file."""
    path.write_bytes(bytes(processes * _SIZE))
    memory = _map(path)
    return [Slot(memory, rank) for rank in range(processes)]


def join(path: Path, rank: int) -> None:
    """Count from here on in the group's file."""
    global own
    own = Slot(_map(path), rank)


def beat() -> None:
    """Count one: a batch, a token, a layer, a file."""
    own.count += 1
    if _hearer is not None:
        _hearer()


@contextmanager
def heard(by: Callable[[], None]) -> Iterator[None]:
    """Within the context each beat of this process calls `by`, and nobody else's."""
    global _hearer
    before, _hearer = _hearer, by
    try:
        yield
    finally:
        _hearer = before


@contextmanager
def strict() -> Iterator[None]:
    """Where beats come often, only they are signs of life.

    Elsewhere using the processor is one too: nobody knows how long a library loads, decomposes or writes in one call.
    A process that waits for others, or for a GPU, may use the processor for nothing, so it waits in here.
    """
    with _counting(only_beats=True):
        yield


@contextmanager
def long() -> Iterator[None]:
    """Inside `strict`, a part in which one call may take long."""
    with _counting(only_beats=False):
        yield


@contextmanager
def _counting(only_beats: bool) -> Iterator[None]:
    before, own.strict = own.strict, only_beats
    beat()
    try:
        yield
    finally:
        own.strict = before
        beat()


def _map(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 0)
