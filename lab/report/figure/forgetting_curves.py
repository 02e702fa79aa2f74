"""Forgetting along training: loss on the retention text over the validation loss that was paid for with it."""

import math

from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style
from lab.report.forgetting import METRIC, at_level, common_level, curve
from lab.report.statistics import mean_sd

LEVELS = 24  # validation losses at which an arm's mean is taken


def forgetting_curves(analysis: Analysis) -> Figure | None:
    """Each arm's mean forgetting over the validation loss, as far down as all of its runs came; bands of one SD."""
    arms = [arm for arm in analysis.arms if any(curve(run)[0] for run in arm.runs)]
    if not arms:
        return None
    figure, axes = style.new(4.2)
    for arm in arms:
        marker = style.marker(analysis.arms.index(arm)) | {"markersize": style.points(4)}
        base, lowest = common_level([arm]) or (math.nan, math.nan)
        levels = [*(base + i / LEVELS * (lowest - base) for i in range(LEVELS)), lowest]
        each = [mean_sd(at_level(arm, level)) for level in levels]
        means, spreads = [math.nan if mean is None else mean for mean, _ in each], [sd or 0.0 for _, sd in each]
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.plot(levels, means, **marker, markevery=6, linewidth=style.points(1.3), label=style.label(arm))
        axes.fill_between(levels, low, high, color=marker["color"], alpha=0.13, linewidth=0)
    common = common_level(arms)
    if common is not None:
        axes.axvline(common[1], color="#999999", linewidth=style.points(1), linestyle=":")
    for level in levels_judged(analysis):
        name = f"{'judged' if analysis.judgement.metric == METRIC else 'measured'} at a validation loss of {level:g}"
        axes.axvline(level, color="black", linewidth=style.points(1), linestyle="--", label=name)
    axes.invert_xaxis()
    axes.set_xlabel("validation loss (nats per token)")
    axes.set_ylabel("forgetting: loss on the retention text\n− the base's (nats per token)")
    style.legend_below(figure, axes)
    return figure


def levels_judged(analysis: Analysis) -> list[float]:
    """Validation losses at which the runs measured their forgetting, as they were told."""
    asked = [
        (run.record.config.get("evaluate") or {}).get("forgetting_at") for arm in analysis.arms for run in arm.runs
    ]
    return sorted({float(level) for level in asked if isinstance(level, int | float)})


FORGETTING_CURVES = Drawing(
    forgetting_curves,
    caption="Forgetting against the validation loss, which falls to the right: mean and one standard deviation over "
    "seeds; lower at one place is better. Dotted: the lowest loss that every run of every arm reached; "
    "dashed: the one at which forgetting was measured.",
    section="Forgetting at equal loss",
    nothing="no run measured forgetting along training",
)
