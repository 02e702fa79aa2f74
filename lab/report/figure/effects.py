"""Effect sizes: differences from the baseline with their intervals; and loss against rank with its knee."""

import math
from itertools import count

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style
from lab.report.statistics import half_width, mean_sd


def effect_sizes(analysis: Analysis) -> Figure | None:
    """Each arm's difference from the baseline with its intervals, against the margin and the noise floor."""
    rows = [row for row in [*analysis.contrasts, *analysis.described] if row.statistics.mean is not None]
    if not rows:
        return None
    figure, axes = style.new(1.9 + 0.42 * len(rows))
    margin, aa = analysis.judgement.margin, analysis.aa
    handles: list[Line2D | Patch] = []
    if margin is not None:
        axes.axvspan(-margin, margin, color="#56B4E9", alpha=0.22, linewidth=0)
        handles.append(Patch(color="#56B4E9", alpha=0.22, label=f"equivalence margin ±{margin:.3g}"))
    if aa and aa.statistics.sd:
        floor = aa.statistics.sd
        axes.axvspan(-floor, floor, ymin=0, ymax=1, facecolor="none", edgecolor="#888888", hatch="////", linewidth=0)
        label = f"noise floor: SD of A/A pairs, {floor:.2g} (n = {aa.statistics.pairs})"
        handles.append(Patch(facecolor="none", edgecolor="#888888", hatch="////", linewidth=0, label=label))
    axes.axvline(0, color="black", linewidth=0.8)
    for y, row in zip(count(len(rows) - 1, -1), rows, strict=False):
        s, judged = row.statistics, row.kind == "contrast"
        colour = "#0072B2" if judged else "#7F7F7F"
        if s.ci_low is not None and s.ci_high is not None and s.mean is not None and s.sd is not None:
            axes.plot([s.ci_low, s.ci_high], [y, y], color=colour, linewidth=1.4)
            ninety = half_width(s.sd, s.pairs, alpha=0.10)
            axes.plot([s.mean - ninety, s.mean + ninety], [y, y], color=colour, linewidth=4, solid_capstyle="butt")
        axes.plot(s.mean, y, "o" if judged else "D", color="white", markeredgecolor=colour, markersize=6)
    one_reference = len({row.arm_b for row in rows}) == 1
    names = [
        f"{style.short(row.arm_a, 30)}{'' if one_reference else chr(10) + 'vs ' + style.short(row.arm_b, 27)} "
        f"(n = {row.statistics.pairs})"
        for row in rows
    ]
    axes.set_yticks(range(len(rows) - 1, -1, -1), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.locator_params(axis="x", nbins=6)
    better = "higher" if analysis.judgement.higher_is_better else "lower"
    reference = f"from {style.short(rows[0].arm_b, 36)}\n" if one_reference else ""
    axes.set_xlabel(f"difference in {style.axis(analysis.judgement.metric)}\n{reference}{better} is better")
    for colour, marker, text in (("#0072B2", "o", "judged"), ("#7F7F7F", "D", "described, not judged")):
        if any((row.kind == "contrast") == (text == "judged") for row in rows):
            dot = Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                markerfacecolor="white",
                label=f"{text}: mean, 90 % thick, 95 % thin",
            )
            handles.append(dot)
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return figure


EFFECT_SIZES = Drawing(
    effect_sizes,
    caption="Difference of each arm from the baseline, paired by seed. Thick: the 90 % interval, which TOST compares "
    "with the margin; thin: 95 %.",
    section="Contrasts",
    nothing="no arm shares a completed seed with the baseline",
)


def rank_comparison(analysis: Analysis) -> Figure | None:
    """Loss against rank with its seeds, and the knee with its interval."""
    answers, metric = analysis.ranks, analysis.judgement.metric
    if answers is None:
        return None
    figure, axes = style.new(4.4)
    by_name = {arm.name: arm for arm in analysis.arms}
    ranks = list(answers.ranks)
    values_at = {rank: by_name[name].values(metric) for rank, name in answers.ranks.items()}
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
            linewidth=1.3,
            label=f"knee: rank {knee.rank}, {knee.reason.split(';')[0]}",
        )
    for rank, values in values_at.items():
        axes.plot([rank] * len(values), values, "o", color="#0072B2", alpha=0.3, markersize=4, markeredgewidth=0)
    means, sds = zip(*map(mean_sd, values_at.values()), strict=True)
    n = sorted({len(values) for values in values_at.values()})
    seeds = f"n = {n[0]}" if len(n) == 1 else f"n = {n[0]} to {n[-1]}"
    axes.errorbar(
        ranks,
        means,
        yerr=[sd or 0.0 for sd in sds],  # one seed has no spread
        color="#0072B2",
        marker="s",
        capsize=3,
        linewidth=1.3,
        label=f"mean ± 1 SD over seeds ({seeds})",
    )
    for arm in analysis.arms:
        values = arm.values(metric)
        if arm.name not in answers.ranks.values() and values:
            axes.axhline(
                float(np.mean(values)), color="#009E73", linestyle=":", label=f"mean of {style.label(arm, len(values))}"
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("LoRA rank (log scale)")
    axes.set_ylabel(style.axis(metric))
    style.legend_below(figure, axes, columns=1)
    return figure


RANK_COMPARISON = Drawing(
    rank_comparison,
    caption="Loss against rank: every seed, the mean, and the knee with its interval.",
    section="Rank",
    nothing="fewer than three arms that differ in one rank",
)
