"""Progress on the console: a live bar on a terminal, plain lines elsewhere, and a word about whatever takes long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lab.process import heartbeat

console = Console(highlight=False)
PLAIN_LINES = 10  # lines over a whole run where there is no terminal, at least
QUIET = 20.0  # seconds: the longest that a user waits without a word


@contextmanager
def aloud(what: str) -> Iterator[None]:
    """Within the context, while there are signs of life, a line every QUIET seconds says what is at work."""
    began = said = time.monotonic()

    def tell() -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= QUIET:
            said = now
            console.print(f"{what}: {now - began:.0f} s so far")

    with heartbeat.heard(tell):
        yield


class ProgressBar:
    """One bar over all optimizer steps, with loss, validation loss and tokens per second."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self.total, self.live = total, enabled and console.is_terminal
        self.enabled = enabled
        self.every, self.said = max(1, total // PLAIN_LINES), time.monotonic()
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            transient=False,
        )
        self.task = self.bar.add_task("", total=total, completed=done)

    def __enter__(self) -> "ProgressBar":
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.live:
            self.bar.stop()

    def update(self, step: int, row: dict[str, float | int | None], seconds_left: float | None) -> None:
        """Show a logged row."""
        if not self.enabled:
            return
        parts = [
            f"{name} {value:.{digits}f}"
            for name, value, digits in (
                ("loss", row.get("train_loss"), 4),
                ("val", row.get("val_loss"), 4),
                ("tokens/s", row.get("tokens_per_second"), 0),
            )
            if value is not None
        ]
        text = " · ".join(parts)
        if self.live:
            self.bar.update(self.task, completed=step, description=text)
            return
        now = time.monotonic()
        due = step % self.every == 0 or step == self.total or row.get("val_loss") is not None
        if due or now - self.said >= QUIET:
            self.said = now
            left = f" · ETA {seconds_left:.0f} s" if seconds_left is not None else ""
            console.print(f"step {step}/{self.total} · {text}{left}")
