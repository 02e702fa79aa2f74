"""Loss curves: over optimizer steps, and over learning rates."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style
from lab.report.statistics import mean_sd
from lab.report.study import Run


def loss_curves(analysis: Analysis) -> Figure | None:
    """Validation and training loss over optimizer steps: the mean over seeds, with one standard deviation as band."""
    with_curves = [arm for arm in analysis.arms if any(run.curve("val_loss")[0] for run in arm.runs)]
    if not with_curves:
        return None
    figure, (upper, lower) = style.new(6.0, 2, 1, sharex=True)
    for index, arm in enumerate(analysis.arms):
        if arm not in with_curves:
            continue
        marker = style.marker(index)
        for axes, column in ((upper, "val_loss"), (lower, "train_loss")):
            steps, mean, sd = over_seeds(arm.runs, column)
            every = max(1, len(steps) // 8)
            axes.plot(steps, mean, **marker, markevery=every, markersize=4, linewidth=1.3, label=style.label(arm))
            axes.fill_between(steps, mean - sd, mean + sd, color=marker["color"], alpha=0.13, linewidth=0)
    upper.set_ylabel(style.axis("validation_loss"))
    lower.set_ylabel(style.axis("training_loss"))
    lower.set_xlabel("optimizer steps")
    style.legend_below(figure, upper)
    return figure


LOSS_CURVES = Drawing(
    loss_curves,
    caption="Loss over optimizer steps: mean over seeds, band one standard deviation.",
    section="Training",
    nothing="no completed run has a metrics.csv",
)


def over_seeds(runs: Sequence[Run], column: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps that every run logged, with mean and standard deviation over runs (0 for a single run)."""
    curves = [dict(zip(*run.curve(column), strict=True)) for run in runs]
    curves = [curve for curve in curves if curve]
    shared = sorted(set.intersection(*map(set, curves))) if curves else []
    values = np.array([[curve[step] for step in shared] for curve in curves]).reshape(len(curves), len(shared))
    if not curves:
        return np.array([]), np.array([]), np.array([])
    return np.array(shared), values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else 0 * values[0]


def learning_rates(analysis: Analysis) -> Figure | None:
    """The selection metric against the learning rate of every arm, its choice ringed, divergence at the top."""
    tuned = [(i, arm) for i, arm in enumerate(analysis.arms) if arm.outcomes and len(arm.outcomes) > 1]
    if not tuned:
        return None
    study = analysis.study.declared
    figure, axes = style.new(4.2)
    diverged: list[tuple[float, str]] = []
    seeds = 0
    for index, arm in tuned:
        marker = style.marker(index)
        known = {r: [v for v in values if v is not None] for r, values in (arm.outcomes or {}).items()}
        seeds = max(seeds, *(len(values) for values in (arm.outcomes or {}).values()))
        points = {rate: mean_sd(values)[0] for rate, values in known.items() if values}
        label = style.short(arm.name)
        axes.plot(list(points), list(points.values()), **marker, markersize=5, linewidth=1.3, label=label)
        if arm.learning_rate in points:
            axes.plot(
                arm.learning_rate,
                points[arm.learning_rate],
                "o",
                color="none",
                markeredgecolor=marker["color"],
                markersize=12,
            )
        diverged += [(rate, marker["color"]) for rate, values in (arm.outcomes or {}).items() if None in values]
    for place, (rate, colour) in enumerate(diverged):
        axes.plot(
            rate,
            0.97 - 0.06 * (place % 3),
            "x",
            color=colour,
            transform=axes.get_xaxis_transform(),
            markersize=8,
            markeredgewidth=2,
        )
    axes.plot([], [], "o", color="none", markeredgecolor="black", markersize=10, label="chosen")
    if diverged:
        axes.plot(
            [], [], "x", color="black", linestyle="none", markersize=8, markeredgewidth=2, label="a seed diverged"
        )
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel(
        f"{style.axis(study.selection_metric if study else 'val_loss')}\nmean of n = {seeds} seed{'s' * (seeds > 1)}"
    )
    style.legend_below(figure, axes)
    return figure


LEARNING_RATES = Drawing(
    learning_rates,
    caption="The selection metric at every learning rate tried; the chosen one is ringed.",
    section="Training",
    nothing="one learning rate per arm",
)
