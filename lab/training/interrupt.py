"""The two ways a run ends early, and the signals that ask for one of them."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class Diverged(RuntimeError):
    """A loss or gradient that is not finite; raised before the optimizer sees it."""

    def __init__(self, what: str, step: int, examples: list[int], module: str | None) -> None:
        self.what, self.step, self.examples, self.module = what, step, examples, module
        where = f"; the first module that is not finite is {module}" if module else ""
        super().__init__(f"{what} is not finite at step {step} (training examples {examples}){where}")


class Interrupted(RuntimeError):
    """A signal asked the run to stop; its state is in checkpoints/last.ckpt."""

    def __init__(self, message: str, signal: str | None) -> None:
        self.signal = signal
        super().__init__(message)


class StopRequest:
    """Set by SIGTERM, Ctrl-C or a scheduler's warning (SIGUSR1, SIGUSR2), read at the next optimizer step.

    A second Ctrl-C interrupts at once, and so does every signal where `at_once` is set: behind the last checkpoint
    there is nothing left to save.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        self.at_once: str | None = None  # the message to end with

    def listen(self) -> None:
        """Take the signals; again after Lightning, whose own SIGTERM handler would stop between micro-batches.

        Only the main thread can: in a launcher's thread the launcher keeps its handlers.
        """
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name
        if self.at_once is not None:
            raise Interrupted(self.at_once, self.signal)
        print(f"{self.signal}: stopping with a checkpoint after this optimizer step", file=sys.stderr)


@contextmanager
def stop_on_signal(request: StopRequest) -> Iterator[None]:
    """Let the signals set the request while the context lasts."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    request.listen()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
