"""Progress on the console: a live bar on a terminal, plain lines elsewhere."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False)
PLAIN_LINES = 10  # lines over a whole run where there is no terminal


class ProgressBar:
    """One bar over all optimizer steps, with loss, validation loss and tokens per second."""

    def __init__(self, total: int, done: int, enabled: bool) -> None:
        self.total, self.live = total, enabled and console.is_terminal
        self.enabled = enabled
        self.every = max(1, total // PLAIN_LINES)
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
        elif step % self.every == 0 or step == self.total or row.get("val_loss") is not None:
            left = f" · ETA {seconds_left:.0f} s" if seconds_left is not None else ""
            console.print(f"step {step}/{self.total} · {text}{left}")
