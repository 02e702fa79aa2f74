"""File of AdaLoRA's ranks: a row per logged step, on disk and on the dashboard."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lab.editors.adalora import AdaloraEditor
from lab.training.metrics_file import MetricsFile
from lab.training.module import CausalLM
from lab.training.step import Instrument

FILE = "adalora.csv"
COLUMNS = ("step", "asked", "used", "orthogonality", "rank_min", "rank_mean", "rank_max")


class AdaloraFile(Instrument):
    """adalora.csv and its scalars on the dashboard: the budget, what is used of it, and the ranks."""

    def __init__(self, run_dir: Path, editor: AdaloraEditor) -> None:
        self.run_dir, self.editor = run_dir, editor
        self.file: MetricsFile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the file, or cut it back to where the run goes on from."""
        if trainer.is_global_zero:
            self.file = MetricsFile(self.run_dir, FILE, COLUMNS)
            step = pl_module.run.progress.step
            self.file.cut_back(step)
            if (row := self.file.row_at(step)) is not None:  # which loggers have dropped
                _show(trainer, row)

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """A row for each logged step."""
        step, editor = trainer.global_step, self.editor
        if self.file is None:
            return
        if step % module.run.config.schedule.log_every_n_steps == 0 or step == module.run.total_steps:
            ranks = list(editor.ranks().values())
            row: dict[str, float | int | None] = {
                "step": step,
                "asked": editor.schedule.budget(step),
                "used": editor.used(),
                "orthogonality": editor.last_orthogonality,
                "rank_min": min(ranks),
                "rank_mean": sum(ranks) / len(ranks),
                "rank_max": max(ranks),
            }
            self.file.append(row)
            _show(trainer, row)


def _show(trainer: Trainer, row: Mapping[str, float | int | None]) -> None:
    """A row of the file on the dashboard."""
    shown = {f"adalora/{name}": float(value) for name, value in row.items() if name != "step" and value is not None}
    for logger in trainer.loggers:
        logger.log_metrics(shown, step=int(row["step"] or 0))
