"""What quality costs: parameters, and what the base forgets."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from lab.report.analysis import Analysis
from lab.report.figure import style
from lab.report.statistics import mean_sd


def frontier(analysis: Analysis) -> Figure | None:
    """Trainable parameters against the metric; arms that no cheaper arm beats form the frontier."""
    metric = analysis.judgement.metric
    points = []
    for index, arm in enumerate(analysis.arms):
        counts = [run.record.trainable_params for run in arm.runs if run.record.trainable_params]
        mean, sd = mean_sd(arm.values(metric))
        if counts and mean is not None:
            points.append((counts[0], mean, sd or 0.0, arm, style.look(index)))
    if len(points) < 2:
        return None
    figure, axes = style.new(4.2)
    best = frontier_arms(analysis)
    line = sorted((p, m) for p, m, _, arm, _ in points if arm.name in best)
    axes.plot(
        *zip(*line, strict=True), color="#999999", linewidth=1, drawstyle="steps-post", label="frontier of the means"
    )
    for parameters, mean, sd, arm, look in points:
        axes.errorbar(
            parameters,
            mean,
            yerr=sd,
            **look | {"linestyle": "none"},
            capsize=3,
            label=style.label(arm, len(arm.values(metric))),
        )
    low, high = min(p for p, *_ in points), max(p for p, *_ in points)
    if high > 3 * low:
        axes.set_xscale("log")
    axes.set_xlim(low - 0.08 * (high - low), high + 0.08 * (high - low)) if high - low > 0 and high <= 3 * low else None
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _si(value)))
    if high > 3 * low:
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("trainable parameters" + (" (log scale)" if high > 3 * low else ""))
    axes.set_ylabel(f"{style.axis(metric)}\nmean ± 1 SD over seeds")
    style.legend_below(figure, axes)
    return figure


def frontier_arms(analysis: Analysis) -> list[str]:
    """Names of the arms whose mean no arm with at most as many trainable parameters beats."""
    sign = -1.0 if analysis.judgement.higher_is_better else 1.0
    known = []
    for arm in analysis.arms:
        mean, _ = mean_sd(arm.values(analysis.judgement.metric))
        counts = [run.record.trainable_params for run in arm.runs if run.record.trainable_params]
        if mean is not None and counts:
            known.append((counts[0], sign * mean, arm.name))
    return [
        name for p, m, name in sorted(known) if not any((q <= p and k < m) or (q < p and k <= m) for q, k, _ in known)
    ]


def _si(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.3g}"


def forgetting_gain(analysis: Analysis) -> Figure | None:
    """What a run gained on its task against what it lost on the retention text, a point per run."""
    figure, axes = style.new(4.2)
    drawn = False
    for index, arm in enumerate(analysis.arms):
        both = [
            (base - after, lost)
            for run in arm.runs
            if (base := run.value("base_test_loss")) is not None
            and (after := run.value("test_loss")) is not None
            and (lost := run.value("forgetting")) is not None
        ]
        if not both:
            continue
        drawn, look = True, style.look(index) | {"linestyle": "none"}
        axes.plot(*zip(*both, strict=True), **look, alpha=0.35, markersize=4, markeredgewidth=0)
        axes.plot(
            *np.mean(both, axis=0), **look, markersize=8, markeredgecolor="white", label=style.label(arm, len(both))
        )
    if not drawn:
        return None
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("gain: base test loss − test loss (nats per token)")
    axes.set_ylabel("forgetting: loss on the retention text\n− the base's (nats per token)")
    style.legend_below(figure, axes)
    return figure
