"""The rank plan shown: a table in the console where it is uneven, a figure on the dashboard."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

from lab.layer import Target
from lab.training.progress import console

TAG = "init/ranks"


def print_plan(plan: Mapping[str, int], targets: Sequence[Target]) -> None:
    """Rank by block and role; nothing for a uniform plan, whose one rank the run's first lines state."""
    if len(set(plan.values())) == 1:
        return
    from lab.instruments.rank_plan_figure import table  # with matplotlib, which only an uneven plan is worth

    console.print(table(dict(plan), targets))


class PlanFigure(Callback):
    """Puts the figure of the plan on every logger that takes figures, once, as training starts."""

    def __init__(self, plan: Mapping[str, int], targets: Sequence[Target]) -> None:
        self.plan, self.targets = dict(plan), targets

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Draw and log it."""
        if trainer.is_global_zero and pl_module.progress.step == 0:
            show_figure(trainer, TAG, self.plan, self.targets, 0)


def show_figure(trainer: Trainer, tag: str, plan: Mapping[str, int], targets: Sequence[Target], step: int) -> None:
    """Put the bars and the heat map of a plan on every logger that takes figures."""
    for logger in trainer.loggers:
        add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
        if add_figure is not None:
            from lab.instruments.rank_plan_figure import allocation_figure

            add_figure(tag, allocation_figure(dict(plan), targets), step)
