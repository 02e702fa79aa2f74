"""AdaLoRA in a run, from its start to the record: updated after each step, shown on disk and on the dashboard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lab.config import instantiate
from lab.editors.adalora import AdaptiveRanks
from lab.instruments.rank_plan import print_plan, show_figure
from lab.layer import Target
from lab.rank_strategy import RankPlan
from lab.rank_strategy.adalora import Adalora
from lab.record import RunRecord
from lab.training.callbacks import AfterStep
from lab.training.metrics_file import MetricsFile
from lab.training.module import CausalLM

FILE = "adalora.csv"
COLUMNS = ("step", "asked", "used", "orthogonality", "rank_min", "rank_mean", "rank_max")
TAG = "ranks/final"


def start(module: CausalLM, run_dir: Path, targets: Sequence[Target]) -> "list[RankSchedule]":
    """Give the module its AdaLoRA, where the rank strategy is it, and return the callback that keeps it going."""
    config = module.config
    strategy = instantiate.make(config.rank_strategy)
    if config.method != "lora" or not isinstance(strategy, Adalora):
        return []
    module.adaptive = AdaptiveRanks(module.net, targets, strategy, config.rank, module.total_steps)
    return [RankSchedule(run_dir, module.adaptive, targets)]


def finish(module: CausalLM, targets: Sequence[Target], result: RunRecord, main: bool) -> None:
    """Record the ranks AdaLoRA left, read back, in place of those it began with; raises Mismatch if it did not act."""
    if module.adaptive is None:
        return
    module.adaptive.finish()
    result.ranks = module.adaptive.ranks()
    result.budget = {
        "asked": module.config.rank * sum(target.cost for target in targets),
        "used": sum(result.ranks[target.name] * target.cost for target in targets),
        "at_start": sum(layer.A.numel() + layer.B.numel() for layer in module.adaptive.layers.values()),
    }
    if main:
        print_plan(result.ranks, targets)


def plan_left(module: CausalLM) -> RankPlan | None:
    """The ranks above 0 that AdaLoRA left, None where the ranks are those of step 0."""
    if module.adaptive is None:
        return None
    return {name: rank for name, rank in module.adaptive.ranks().items() if rank > 0}


class RankSchedule(AfterStep):
    """Stands before every callback that evaluates or saves, so that they see the model with its ranks cut."""

    def __init__(self, run_dir: Path, adaptive: AdaptiveRanks, targets: Sequence[Target]) -> None:
        self.run_dir, self.adaptive, self.targets = run_dir, adaptive, targets
        self.file: MetricsFile | None = None

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Begin the file, or cut it back to where the run goes on from."""
        if trainer.is_global_zero:
            self.file = MetricsFile(self.run_dir, FILE, COLUMNS)
            self.file.cut_back(pl_module.progress.step)
            if (row := self.file.row_at(pl_module.progress.step)) is not None:  # which loggers have dropped
                _show(trainer, row)

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """Update and allocate; then a row, and at the end the figure of the ranks that are left."""
        step = trainer.global_step
        self.adaptive.after_step(step)
        if self.file is None:
            return
        if step % module.config.schedule.log_every_n_steps == 0 or step == module.total_steps:
            ranks = list(self.adaptive.ranks().values())
            row: dict[str, float | int | None] = {
                "step": step,
                "asked": self.adaptive.schedule.budget(step),
                "used": self.adaptive.used(),
                "orthogonality": module.orthogonality,
                "rank_min": min(ranks),
                "rank_mean": sum(ranks) / len(ranks),
                "rank_max": max(ranks),
            }
            self.file.append(row)
            _show(trainer, row)
        if step == module.total_steps:
            show_figure(trainer, TAG, self.adaptive.ranks(), self.targets, step)


def _show(trainer: Trainer, row: Mapping[str, float | int | None]) -> None:
    """A row of the file on the dashboard."""
    shown = {f"adalora/{name}": float(value) for name, value in row.items() if name != "step" and value is not None}
    for logger in trainer.loggers:
        logger.log_metrics(shown, step=int(row["step"] or 0))
