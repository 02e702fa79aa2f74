"""Validation loss over optimizer steps less the baseline's: when an arm lost, when it gained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style
from lab.report.figure.curves import FEWEST_POINTS
from lab.report.run import Run


def loss_difference(analysis: Analysis) -> Figure | None:
    """Each arm's validation loss less the baseline's at the same step, paired by seed: the mean, a band of one SD."""
    baseline = next((arm for arm in analysis.arms if arm.name == analysis.judgement.baseline), None)
    if baseline is None:
        return None
    each = {arm.name: differences(arm.runs, baseline.runs) for arm in analysis.arms if arm is not baseline}
    if not any(len(steps) >= FEWEST_POINTS for steps, _ in each.values()):
        return None
    figure, axes = style.new(4.2)
    axes.axhline(0, color="black", linewidth=style.points(1), label=style.short(baseline.name))
    for index, arm in enumerate(analysis.arms):
        steps, pairs = each.get(arm.name, ((), np.empty((0, 0))))
        if len(steps) < FEWEST_POINTS:
            continue
        marker: dict[str, Any] = style.marker(index) | {"markersize": style.points(4)}
        mean, sd = pairs.mean(axis=0), pairs.std(axis=0, ddof=1) if len(pairs) > 1 else np.zeros(len(steps))
        label = f"{style.short(arm.name)} (n = {len(pairs)})"
        axes.plot(steps, mean, **marker, markevery=max(1, len(steps) // 8), linewidth=style.points(1.3), label=label)
        axes.fill_between(steps, mean - sd, mean + sd, color=marker["color"], alpha=0.13, linewidth=0)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(f"{style.axis('validation_loss')}\n− {style.short(baseline.name)}'s at the same step")
    style.legend_below(figure, axes)
    return figure


def differences(runs: Sequence[Run], others: Sequence[Run]) -> tuple[Sequence[float], np.ndarray]:
    """Steps at which all runs and their partners measured a validation loss, and run less partner (pairs, steps)."""
    partners = {run.pair: run for run in others}
    curves = [
        [dict(zip(*each.curve("val_loss"), strict=True)) for each in (run, partners[run.pair])]
        for run in runs
        if run.pair in partners
    ]
    if not curves:
        return (), np.empty((0, 0))
    steps = sorted(set.intersection(*(set(curve) for pair in curves for curve in pair)))
    return steps, np.array([[own[step] - other[step] for step in steps] for own, other in curves])


LOSS_DIFFERENCE = Drawing(
    loss_difference,
    caption="Validation loss less the baseline's at the same step, paired by seed; below 0 the arm is ahead. The band "
    "is one standard deviation of the pairs. Arms of different lengths or rates are at different places of their "
    "schedules at one step.",
    section="Training",
    nothing="",
)
