"""Accuracy of every arm beside the base's, with what the number of questions leaves open."""

from typing import Any

from matplotlib.figure import Figure

from lab.report.accuracy import accuracy_of
from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style

BASE = "#7F7F7F"
BESIDE = 0.24  # of a row: seeds lie below the interval, which would hide them


def accuracy(analysis: Analysis) -> Figure | None:
    """Share of right answers, a row per arm; None where no run measured it."""
    found = [(arm, of_arm) for arm in analysis.arms if (of_arm := accuracy_of(arm)) is not None]
    if not found:
        return None
    dot: dict[str, Any] = {"alpha": 0.6, "markersize": style.points(4), "markeredgewidth": 0}
    figure, axes = style.new(1.9 + 0.42 * len(found))
    bases = {of_arm.base for _, of_arm in found if of_arm.base is not None}
    for base in sorted(bases):
        name = f"the base: {100 * base:.1f} %"
        axes.axvline(100 * base, color=BASE, linestyle="--", linewidth=style.points(1.2), label=name)
    for y, (arm, of_arm) in enumerate(reversed(found)):
        colour = style.marker(analysis.arms.index(arm))["color"]
        if of_arm.interval is not None:
            low, high = (100 * end for end in of_arm.interval)
            axes.plot([low, high], [y, y], color=colour, linewidth=style.points(1.4), marker="|")
        shares = [100 * share for share in of_arm.shares]
        axes.plot(shares, [y - BESIDE] * len(shares), "o", color=colour, **dot)
        axes.plot(
            100 * of_arm.mean, y, "|", color=colour, markersize=style.points(13), markeredgewidth=style.points(1.4)
        )
    stroke, line = style.points(10), style.points(1.4)
    label = "mean over seeds, and Wilson's 95 % interval"
    axes.plot([], [], color="black", marker="|", linewidth=line, markersize=stroke, markeredgewidth=line, label=label)
    axes.plot([], [], "o", color="black", **dot, label="a seed")
    most = int(0.32 * style.letters())  # of a name: a third of the width
    names = [f"{style.short(arm.name, most)} (n = {len(of_arm.shares)})" for arm, of_arm in reversed(found)]
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(-0.6, len(found) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("right answers on the test side (%)")
    style.legend_below(figure, axes, columns=1)
    return figure


ACCURACY = Drawing(
    accuracy,
    caption="Right answers on the test side: seeds as dots, their mean as a stroke, and Wilson's 95 % interval of the "
    "mean share over the questions of one run, which more seeds do not narrow. Dashed: the base before training.",
    section="Accuracy",
    nothing="no run measured accuracy",
)
