"""Low rank over optimizer steps: how many layers, and how much of their rank is left."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style
from lab.report.switching import Moment, Switching
from lab.report.switching_tables import by_arm


def low_rank_over_steps(analysis: Analysis) -> Figure | None:
    """Low-rank layers and the mean rank over optimizer steps, as shares, means over the runs of an arm."""
    arms = [(arm, own) for arm, own in by_arm(analysis) if any(each.switched for each in own)]
    if not arms:
        return None
    figure, (upper, lower) = style.new(6.0, 2, 1, sharex=True)
    for arm, own in arms:
        marker: dict[str, Any] = style.marker(analysis.arms.index(arm)) | {"markersize": style.points(4)}
        last = max(int(run.record.steps or 0) for run in arm.runs)
        full = own[0].moments[0].rank
        for axes, of in ((upper, _low(own[0].layers)), (lower, _rank(full))):
            steps, values = over_steps(own, of, last)
            line = {"drawstyle": "steps-post", "linewidth": style.points(1.3), "label": style.label(arm)}
            axes.plot(steps, values, **marker, **line, markevery=max(1, len(steps) // 6))
    upper.set_ylabel("low-rank layers\n(share)")
    lower.set_ylabel("mean rank\n(share of full)")
    lower.set_xlabel("optimizer steps")
    for axes in (upper, lower):
        axes.set_ylim(-0.04, 1.04)
    style.legend_below(figure, upper)
    return figure


def over_steps(own: Sequence[Switching], of: Callable[[Moment], float], last: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps at which any of the runs changes, from 0 to the last, and the mean over the runs from each on."""
    steps = sorted({moment.step for each in own for moment in each.after_start} | {0, last})
    each_run = [[of([m for m in each.moments if m.step <= step][-1]) for step in steps] for each in own]
    return np.array(steps), np.mean(each_run, axis=0)


def _low(layers: int) -> Callable[[Moment], float]:
    return lambda moment: moment.low / layers


def _rank(full: float) -> Callable[[Moment], float]:
    return lambda moment: moment.rank / full


LOW_RANK_OVER_STEPS = Drawing(
    low_rank_over_steps,
    caption="Low-rank layers, and the mean rank of all that may switch, over optimizer steps: means over an arm's "
    "runs. A full layer's rank is its smaller side.",
    section="Switching",
    nothing="",
)
