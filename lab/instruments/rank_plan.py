"""Rank plan of a run, shown: a table in the console where it is uneven, a figure on the dashboard."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer

from lab.layer import Target
from lab.training.module import CausalLM
from lab.training.progress import console
from lab.training.step import Instrument


def print_plan(plan: Mapping[str, int], targets: Sequence[Target]) -> None:
    """Rank by block and role; nothing for a uniform plan, whose one rank the run's first lines state."""
    if len(set(plan.values())) == 1:
        return
    from lab.instruments.rank_plan_figure import table  # with matplotlib, which only an uneven plan is worth

    console.print(table(dict(plan), targets))


class RankPlanFigure(Instrument):
    """The figure of uneven ranks on every logger that takes figures: as training starts, and as editors left them."""

    def __init__(self, targets: Sequence[Target], edited: bool) -> None:
        self.targets, self.edited = targets, edited

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The plan of step 0."""
        if trainer.is_global_zero and pl_module.run.progress.step == 0:
            show_figure(trainer, "init/ranks", pl_module.run.model.structure.ranks, self.targets, 0)

    def after_step(self, trainer: Trainer, module: CausalLM, batch: dict[str, Any]) -> None:
        """The ranks that are left at the end."""
        if self.edited and trainer.is_global_zero and trainer.global_step == module.run.total_steps:
            ranks = module.run.model.structure.active_ranks
            show_figure(trainer, "ranks/final", ranks, self.targets, trainer.global_step)


def show_figure(trainer: Trainer, tag: str, plan: Mapping[str, int], targets: Sequence[Target], step: int) -> None:
    """Put the bars and the heat map of an uneven plan on every logger that takes figures."""
    if len(set(plan.values())) == 1:
        return
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        if add_figure is not None:
            from lab.instruments.rank_plan_figure import allocation_figure

            add_figure(tag, allocation_figure(dict(plan), targets), step)
