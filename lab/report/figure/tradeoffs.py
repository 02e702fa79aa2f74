"""Trade-offs: quality against trainable parameters, and gain against forgetting."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from lab.report.analysis import Analysis, frontier_arms
from lab.report.arms import on_shared_seeds
from lab.report.figure import Drawing, style
from lab.report.statistics import mean_sd

SAME = 0.01  # counts this close are one budget, which leaves the axis no width of its own
BESIDE = 12.0  # points between markers of one count; a marker is 7 wide
WIDE = 0.7  # of a figure its axes are, at least


def frontier(analysis: Analysis) -> Figure | None:
    """Trainable parameters against the metric; None where every arm trains the same number of them."""
    metric = analysis.judgement.metric
    points, shared = [], on_shared_seeds(analysis.arms, metric)
    for index, arm in enumerate(analysis.arms):
        counts = [run.record.trainable_params for run in arm.runs if run.record.trainable_params]
        mean, sd = mean_sd(shared.get(arm.name, []))
        if counts and mean is not None:
            points.append((counts[0], mean, sd or 0.0, arm, style.marker(index)))
    if len({count for count, *_ in points}) < 2:
        return None
    figure, axes = style.new(4.2)
    best = frontier_arms(analysis)
    line = sorted((p, m) for p, m, _, arm, _ in points if arm.name in best)
    low, high = min(p for p, *_ in points), max(p for p, *_ in points)
    log = high > 3 * low
    axes.plot(
        *zip(*line, strict=True),
        color="#999999",
        linewidth=style.points(1),
        drawstyle="steps-post",
        label="best mean so far",
    )
    width = 72 * figure.get_figwidth() * WIDE
    shifts = beside([(count, arm.name in best) for count, _, _, arm, _ in points], width, log)
    for (parameters, mean, sd, arm, marker), shift in zip(points, shifts, strict=True):
        beside_it = ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
        # A shifted point does not widen the axes, so an unseen one at its true place does.
        axes.plot([parameters] * 2, [mean - sd, mean + sd], alpha=0)
        axes.errorbar(
            parameters,
            mean,
            yerr=sd,
            **marker | {"linestyle": "none", "markersize": style.points(6), "elinewidth": style.points(1.5)},
            capsize=style.points(3),
            transform=axes.transData + beside_it,
            label=style.label(arm, len(shared[arm.name])),
        )
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _si(value)))
    if not log:
        axes.locator_params(axis="x", nbins=5)
    axes.margins(x=0.08)
    if high < (1 + SAME) * low:
        axes.set_xlim(0.98 * low, 1.02 * high)
    axes.set_xlabel("trainable parameters" + (" (log scale)" if log else ""))
    axes.set_ylabel(f"{style.axis(metric)}\nmean ± 1 SD over seeds")
    style.legend_below(figure, axes)
    return figure


def beside(points: Sequence[tuple[float, bool]], width: float, log: bool) -> list[float]:
    """Shifts to the right of (count, is on the frontier), in points of axes so wide: of equal counts alone.

    One of the frontier stays where its line leads, and no marker comes half way to that of the next count.
    """
    place = math.log if log else float
    counts = sorted({count for count, _ in points})
    span = place(counts[-1]) - place(counts[0])
    gaps = [width * (place(b) - place(a)) / span for a, b in pairwise(counts)]
    room = dict(zip(counts, map(min, zip([math.inf, *gaps], [*gaps, math.inf], strict=True)), strict=True))
    shifts, taken = [0.0] * len(points), dict.fromkeys(counts, 0)
    for i in sorted(range(len(points)), key=lambda i: not points[i][1]):
        count, turn = points[i][0], taken[points[i][0]]
        taken[count] += 1
        most = max(1, sum(other == count for other, _ in points) // 2)
        shifts[i] = (1 if turn % 2 else -1) * ((turn + 1) // 2) * min(BESIDE, room[count] / (2 * most + 1))
    return shifts


FRONTIER = Drawing(
    frontier,
    caption="Trainable parameters against the primary metric, over the seeds that all arms completed. Every marker "
    "stands at its arm's own count; those of one count stand side by side, the best of them at it.",
    section="Arms",
    nothing="every arm trains the same number of parameters",
)


def _si(value: float) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.4g} {unit}"
    return f"{value:.3g}"


def forgetting_gain(analysis: Analysis) -> Figure | None:
    """Gain on the task against loss on the retention text, a point per run; None where neither was measured."""
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
        drawn, marker = True, style.marker(index) | {"linestyle": "none"}
        axes.plot(*zip(*both, strict=True), **marker, alpha=0.35, markersize=style.points(4), markeredgewidth=0)
        axes.plot(
            *np.mean(both, axis=0),
            **marker,
            markersize=style.points(8),
            markeredgecolor="white",
            label=style.label(arm, len(both)),
        )
    if not drawn:
        return None
    lowest, highest = axes.get_ylim()
    if lowest < 0 < highest:
        axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("gain: base test loss − test loss (nats per token)")
    axes.set_ylabel("forgetting: loss on the retention text\n− the base's (nats per token)")
    style.legend_below(figure, axes)
    return figure


FORGETTING_GAIN = Drawing(
    forgetting_gain,
    caption="Gain on the task against loss on the retention text. Small: runs; large: their mean.",
    section="Arms",
    nothing="no run measured forgetting",
)
