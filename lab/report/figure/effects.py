"""Effect sizes: differences from the baseline with their intervals; and loss against rank with its knee."""

import math
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from lab.report.analysis import Analysis
from lab.report.arms import on_shared_seeds
from lab.report.comparison import Comparison
from lab.report.figure import Drawing, style
from lab.report.statistics import half_width, mean_sd

JUDGED, DESCRIBED = "#0072B2", "#7F7F7F"
FAR = 0.5  # spans of the ranks' own values beyond them: an arm without a rank that is farther would squash them


def effect_sizes(analysis: Analysis) -> Figure | None:
    """Each arm's difference from the baseline with its intervals, against the margin.

    The axis is as wide as the judged arms need; of one that is only described and lies beyond, an arrow and the number.
    """
    rows = [row for row in [*analysis.contrasts, *analysis.described] if row.statistics.mean is not None]
    if not rows:
        return None
    figure, axes = style.new(1.9 + 0.42 * len(rows))
    margin = analysis.judgement.margin
    handles: list[Line2D | Patch] = []
    if margin is not None:
        axes.axvspan(-margin, margin, color="#56B4E9", alpha=0.22, linewidth=0)
        handles.append(Patch(color="#56B4E9", alpha=0.22, label=f"equivalence margin ±{margin:.3g}"))
    axes.axvline(0, color="black", linewidth=style.points(0.8))
    low, high = reach(rows, margin)
    axes.set_xlim(low, high)
    for y, row in zip(count(len(rows) - 1, -1), rows, strict=False):
        _interval(axes, y, row, JUDGED if row.kind == "contrast" else DESCRIBED)
    one_reference = len({row.arm_b for row in rows}) == 1
    most = int(0.32 * style.letters())  # of a name: a third of the width
    names = [
        f"{style.short(row.arm_a, most)}{'' if one_reference else chr(10) + 'vs ' + style.short(row.arm_b, most - 3)} "
        f"(n = {row.statistics.pairs})"
        for row in rows
    ]
    axes.set_yticks(range(len(rows) - 1, -1, -1), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=5)
    better = "higher" if analysis.judgement.higher_is_better else "lower"
    wide = int(0.46 * style.letters())  # the axes, beside the names
    what = f"difference in {style.axis(analysis.judgement.metric)}"
    what = what if len(what) <= wide else what.replace(" (", "\n(")
    reference = f"from {style.short(rows[0].arm_b, wide - 5)}\n" if one_reference else ""
    axes.set_xlabel(f"{what}\n{reference}{better} is better")
    for colour, kind, text in ((JUDGED, "contrast", "judged"), (DESCRIBED, "described", "described, not judged")):
        if any(row.kind == kind for row in rows):
            repeated = any(row.looked for row in rows if row.kind == kind)
            drawn = any(row.statistics.ci_low is not None for row in rows if row.kind == kind)
            what = ", repeated 95 % interval" if repeated else ", 90 % thick, 95 % thin"
            label = f"{text}: mean{what if drawn else ''}"
            line: dict[str, Any] = {"linestyle": "-" if drawn else "none", "markeredgewidth": style.points(1.4)}
            handles.append(Line2D([], [], color=colour, marker="|", markersize=style.points(10), **line, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False)
    return figure


def reach(rows: Sequence[Comparison], margin: float | None) -> tuple[float, float]:
    """Limits of the axis: zero, the margin and every interval of a judged arm; of all arms where none is judged."""
    shown = [row for row in rows if row.kind == "contrast"] or rows
    ends = [end for row in shown for end in _ends(row)] + [0.0, -(margin or 0.0), margin or 0.0]
    room = 0.12 * (max(ends) - min(ends))
    return min(ends) - room, max(ends) + room


def _ends(row: Comparison) -> tuple[float, float]:
    s = row.statistics
    assert s.mean is not None
    return (s.mean, s.mean) if s.ci_low is None or s.ci_high is None else (s.ci_low, s.ci_high)


def _interval(axes: Axes, y: float, row: Comparison, colour: str) -> None:
    """A row: its mean as an upright stroke, which hides no interval however small, or the way to it as an arrow."""
    s, ends = row.statistics, _ends(row)
    assert s.mean is not None
    low, high = axes.get_xlim()
    arrow: dict[str, Any] = {"color": colour, "markersize": style.points(7), "clip_on": False}
    if not low <= s.mean <= high:
        edge, shape, side, away = (low, "<", "left", 1) if s.mean < low else (high, ">", "right", -1)
        axes.plot(edge, y, shape, **arrow)
        where: dict[str, Any] = {
            "xytext": (away * style.points(8), 0),
            "textcoords": "offset points",
            "ha": side,
            "va": "center",
        }
        text = f"{s.mean:+.3g}".replace("-", "−")
        axes.annotate(text, (edge, y), **where, color=colour, fontsize=rcParams["legend.fontsize"])
        return
    if s.sd is not None and s.ci_low is not None:
        axes.plot(ends, [y, y], color=colour, linewidth=style.points(1.4), marker="|", markersize=style.points(5))
        if row.looked is None:
            ninety = half_width(s.sd, s.pairs, alpha=0.10)
            thick: dict[str, Any] = {"linewidth": style.points(5), "solid_capstyle": "butt"}
            axes.plot([s.mean - ninety, s.mean + ninety], [y, y], color=colour, **thick)
    axes.plot(s.mean, y, "|", color=colour, markersize=style.points(13), markeredgewidth=style.points(1.4))
    for beyond, edge, shape in ((ends[0] < low, low, "<"), (ends[1] > high, high, ">")):
        if beyond:
            axes.plot(edge, y, shape, **arrow)


EFFECT_SIZES = Drawing(
    effect_sizes,
    caption="Difference of each arm from the baseline, or from the arm named with it, paired by seed. Thin: the 95 % "
    "interval, the repeated one where seeds were taken one at a time; thick, where their number was fixed: the 90 % "
    "interval, which TOST compares with the margin at its own level, before Holm. An arrow leads to what lies beyond "
    "the axis.",
    section="Contrasts",
    nothing="no arm shares a completed seed with the baseline",
)


def rank_comparison(analysis: Analysis) -> Figure | None:
    """Loss against rank with its seeds, and the knee with its interval; None where fewer than two ranks have a loss."""
    answers, metric = analysis.ranks, analysis.judgement.metric
    if answers is None:
        return None
    by_name = {arm.name: arm for arm in analysis.arms}
    ranked = [by_name[name] for name in answers.ranks.values()]
    shared = on_shared_seeds(ranked, metric)
    values_at = {rank: shared[name] for rank, name in answers.ranks.items() if name in shared}
    if len(values_at) < 2:
        return None
    figure, axes = style.new(4.4)
    ranks = list(values_at)
    knee = answers.knee
    if knee.rank is not None:
        if knee.low is not None and knee.high is not None:
            half = math.sqrt(2) ** 0.35  # a swept rank is a point; the band shows which ones the interval holds
            axes.axvspan(
                knee.low / half,
                knee.high * half,
                color="#E69F00",
                alpha=0.2,
                linewidth=0,
                label=f"95 % interval: {knee.low} to {knee.high}",
            )
        axes.axvline(
            knee.rank,
            color="#D55E00",
            linestyle="--",
            linewidth=style.points(1.3),
            label=f"knee: rank {knee.rank}, {knee.reason.split(';')[0]}",
        )
    for rank, values in values_at.items():
        axes.plot(
            [rank] * len(values), values, "o", color="#0072B2", alpha=0.3, markersize=style.points(4), markeredgewidth=0
        )
    means, sds = zip(*map(mean_sd, values_at.values()), strict=True)
    n = sorted({len(values) for values in values_at.values()})
    seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}, none in common"
    axes.errorbar(
        ranks,
        means,
        yerr=[sd or 0.0 for sd in sds],  # one seed has no spread
        color="#0072B2",
        marker="s",
        markersize=style.points(6),
        capsize=style.points(3),
        linewidth=style.points(1.3),
        label=f"mean ± 1 SD over seeds ({seeds})",
    )
    every = [value for values in values_at.values() for value in values]
    span = max(every) - min(every)
    for arm in analysis.arms:
        own = on_shared_seeds([*ranked, arm], metric).get(arm.name)
        if arm in ranked or not own:
            continue
        level, what = float(np.mean(own)), f"mean of {style.label(arm, len(own))}"
        if min(every) - FAR * span <= level <= max(every) + FAR * span:
            axes.axhline(level, color="#009E73", linestyle=":", linewidth=style.points(1.3), label=what)
        else:
            off = f"{what}: {level:.4g}, {'below' if level < min(every) else 'above'} the axis"
            axes.plot([], [], color="#009E73", linestyle=":", label=off)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("LoRA rank (log scale)")
    axes.set_ylabel(style.axis(metric))
    style.legend_below(figure, axes, columns=1)
    return figure


RANK_COMPARISON = Drawing(
    rank_comparison,
    caption="Loss against rank, over the seeds that every rank completed: each of them, the mean, and the knee with "
    "its interval, whose ends are ranks that were swept: the band is drawn a little wider than them.",
    section="Rank",
    nothing="fewer than three arms that differ in one rank",
)
