"""The retention text at every evaluation, so that forgetting can be read off at a validation loss."""

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Trainer

from lab.record.forgetting import COLUMNS, FILE, at_loss
from lab.training.evaluate import Evaluation
from lab.training.metrics_file import MetricsFile


class ForgettingCurve:
    """retention.csv: a row per evaluation, from the base's on."""

    def __init__(self, run_dir: Path, evaluate: Callable[[], Evaluation]) -> None:
        self.run_dir, self.evaluate = run_dir, evaluate

    @staticmethod
    def start(run_dir: Path, val_loss: float | None, retention_loss: float | None) -> None:
        """Begin anew with the base's losses."""
        MetricsFile(run_dir, FILE, COLUMNS).start({"step": 0, "val_loss": val_loss, "retention_loss": retention_loss})

    def evaluated(self, trainer: Trainer, step: int, val_loss: float) -> None:
        """Evaluate the retention text too, on every process; rank 0 writes."""
        found = self.evaluate()
        if trainer.is_global_zero:
            file = MetricsFile(self.run_dir, FILE, COLUMNS)
            file.append({"step": step, "val_loss": val_loss, "retention_loss": found.loss})
            for logger in trainer.loggers:
                logger.log_metrics({"retention/loss": found.loss}, step=step)

    def forgotten_at(self, level: float) -> float | None:
        """How far the retention loss was above the base's where the validation loss first came down to a level."""
        rows = MetricsFile(self.run_dir, FILE, COLUMNS).rows()
        kept = [row["retention_loss"] for row in rows]
        reached = at_loss([row["val_loss"] for row in rows], kept, level)
        return None if reached is None else reached - kept[0]
