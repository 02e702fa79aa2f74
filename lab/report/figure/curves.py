"""Loss curves: over optimizer steps, and over learning rates."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from lab.record.study import RATE
from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.figure import Drawing, style
from lab.report.run import Run
from lab.report.statistics import mean_sd
from lab.verdict.margin import missing

ABOVE = r"$\uparrow$"  # no arm's own marker
FEWEST_POINTS = 3  # fewer are not joined: two points of several arms under their bands are one wedge


def loss_curves(analysis: Analysis) -> Figure | None:
    """Validation and training loss over optimizer steps: the mean over seeds, with one standard deviation as band.

    Few points of an arm are no curve: they stand side by side with error bars, and nothing is drawn between them.
    """
    with_curves = [arm for arm in analysis.arms if any(run.curve("val_loss")[0] for run in arm.runs)]
    if not with_curves:
        return None
    figure, (upper, lower) = style.new(6.0, 2, 1, sharex=True)
    for place, arm in enumerate(with_curves):
        marker: dict[str, Any] = style.marker(analysis.arms.index(arm)) | {"markersize": style.points(4)}
        for axes, column in ((upper, "val_loss"), (lower, "train_loss")):
            steps, mean, sd = over_seeds(arm.runs, column)
            if len(steps) < FEWEST_POINTS:
                shift = style.points(5) * (place - (len(with_curves) - 1) / 2) / 72
                beside = axes.transData + ScaledTranslation(shift, 0, figure.dpi_scale_trans)
                bars = marker | {"linestyle": "none", "capsize": style.points(2), "elinewidth": style.points(1.1)}
                axes.errorbar(steps, mean, yerr=sd, **bars, transform=beside, label=style.label(arm))
                # A shifted point does not widen the axes, so an unseen one at its true place does.
                axes.plot([*steps, *steps], [*(mean - sd), *(mean + sd)], linestyle="none")
                continue
            every = max(1, len(steps) // 8)
            axes.plot(steps, mean, **marker, markevery=every, linewidth=style.points(1.3), label=style.label(arm))
            axes.fill_between(steps, mean - sd, mean + sd, color=marker["color"], alpha=0.13, linewidth=0)
    upper.set_ylabel(style.axis("validation_loss"))
    lower.set_ylabel(style.axis("training_loss"))
    lower.set_xlabel("optimizer steps")
    style.legend_below(figure, upper)
    return figure


LOSS_CURVES = Drawing(
    loss_curves,
    caption="Loss over optimizer steps: mean over seeds; the band, or the bar where points are few, is one standard "
    "deviation.",
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
    """The selection metric against the learning rate of every arm, its choice ringed.

    Above the ceiling a point is worth its rate only: it stands at the top as an arrow, one without value as a cross.
    """
    tuned = _tuned(analysis)
    if not tuned:
        return None
    study, metric = analysis.study.declared, _selection_metric(analysis)
    figure, axes = style.new(4.2)
    losses = {arm.name: means(arm) for _, arm in tuned}
    top, what = _ceiling(analysis)
    above: list[tuple[float, str, str]] = []
    for index, arm in tuned:
        marker, points = style.marker(index), losses[arm.name]
        size: dict[str, Any] = {"markersize": style.points(5), "linewidth": style.points(1.3)}
        axes.plot([], [], **marker, **size, label=style.short(arm.name))
        axes.plot(*below(points, top), **marker | {"marker": "none"}, **size)
        kept = {rate: mean for rate, mean in points.items() if mean <= top}
        axes.plot(list(kept), list(kept.values()), **marker | {"linestyle": "none"}, **size)
        if arm.learning_rate is not None and points and min(points) <= arm.learning_rate <= max(points):
            # A vertex lies between the rates that were run, and is ringed where the line passes it.
            height = np.interp(math.log(arm.learning_rate), [math.log(rate) for rate in points], list(points.values()))
            _ring(axes, arm.learning_rate, float(height), marker["color"], style.points(12))
        above += [(rate, ABOVE, marker["color"]) for rate, mean in points.items() if mean > top]
        above += [(rate, "x", marker["color"]) for rate, values in (arm.outcomes or {}).items() if None in values]
    if above:
        shown = [mean for points in losses.values() for mean in points.values() if mean <= top] or [0.0, 1.0]
        low, high = min(shown), top if math.isfinite(top) else max(shown)
        room = (high - low) or 1.0
        axes.set_ylim(low - 0.06 * room, high + 0.14 * room)  # the marks at the top meet no point
    if math.isfinite(top):
        axes.axhline(top, color="#999999", linewidth=style.points(0.9), linestyle=(0, (1, 2)))
    room_for(axes, [rate for _, arm in tuned for rate in arm.outcomes or {}])
    _at_the_top(figure, axes, above)
    _ring(axes, math.nan, math.nan, "black", style.points(10), label="chosen")
    keys = {ABOVE: f"above {top:.3g} ({what})", "x": f"a seed {missing(metric)}"}
    for shape in [shape for shape in keys if shape in {shape for _, shape, _ in above}]:
        axes.plot([], [], marker=shape, color="black", linestyle="none", markersize=style.points(6), label=keys[shape])
    axes.set_xlabel(f"{'learning rate' if study is None or study.rate == RATE else study.rate} (log scale)")
    fewest, most = (each(len(own) for _, arm in tuned for own in (arm.outcomes or {}).values()) for each in (min, max))
    count = f"{most}" if fewest == most else f"{fewest} to {most}"
    axes.set_ylabel(f"{style.axis(metric)}\nmean of n = {count} seed{'s' * (most > 1)}")
    style.legend_below(figure, axes)
    return figure


def _selection_metric(analysis: Analysis) -> str:
    return analysis.study.declared.selection_metric if analysis.study.declared else "val_loss"


def _tuned(analysis: Analysis) -> list[tuple[int, Arm]]:
    """The arms that were run at several rates, and their places."""
    return [(i, arm) for i, arm in enumerate(analysis.arms) if arm.outcomes and len(arm.outcomes) > 1]


def _ceiling(analysis: Analysis) -> tuple[float, str]:
    losses = {arm.name: means(arm) for _, arm in _tuned(analysis)}
    rates = {arm.name: arm.learning_rate for _, arm in _tuned(analysis)}
    return ceiling(
        [mean for points in losses.values() for mean in points.values()],
        [points[rate] for name, points in losses.items() if (rate := rates[name]) is not None and rate in points],
        [base for _, arm in _tuned(analysis) for base in arm.values(f"base_{_selection_metric(analysis)}")],
    )


def _said_of_points(analysis: Analysis) -> str:
    """How the points of this study's figure are to be read, where they are not plain means."""
    counts = [
        {len([v for v in own if v is not None]) for own in arm.outcomes.values()}
        for _, arm in _tuned(analysis)
        if arm.outcomes
    ]
    said = ["What lies above the dotted line is marked at the top and not drawn to scale."] * math.isfinite(
        _ceiling(analysis)[0]
    )
    said += [
        "A rate that fewer seeds were run at is moved by what these differ from all of them at the rates that have all."
    ] * any(len(own - {0}) > 1 for own in counts)
    return " ".join(said)


def below(points: Mapping[float, float], top: float) -> tuple[list[float], list[float]]:
    """The line through points (rate, loss) on a log axis as far as it lies below the top, with nan where it is cut."""
    rates, losses = list(points)[:1], [loss if loss <= top else math.nan for loss in points.values()][:1]
    for (rate, loss), (to, loss_to) in pairwise(points.items()):
        if (loss <= top) != (loss_to <= top):
            at = rate * (to / rate) ** ((top - loss) / (loss_to - loss))
            rates, losses = [*rates, at], [*losses, top]
        rates, losses = [*rates, to], [*losses, loss_to if loss_to <= top else math.nan]
    return rates, losses


def room_for(axes: Axes, rates: Sequence[float]) -> None:
    """A log axis of learning rates: all of them, also those without value.

    Ticks are the rates themselves where they are few and apart, otherwise whole and half decades.
    """
    room = (max(rates) / min(rates)) ** 0.06
    axes.set_xscale("log")
    axes.set_xlim(min(rates) / room, max(rates) * room)
    own = sorted(set(rates))
    apart = min((math.log(b / a) for a, b in pairwise(own)), default=1.0) > 0.13 * math.log(own[-1] / own[0])
    axes.xaxis.set_major_locator(FixedLocator(own) if apart else LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: scientific(rate)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def scientific(rate: float) -> str:
    """A rate as a person writes it, to two digits: 3e-4, 5.6e-4, 0.03."""
    if rate >= 0.01:
        return f"{rate:.2g}"
    mantissa, exponent = f"{rate:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def means(arm: Arm) -> dict[float, float]:
    """Mean outcome of every rate at which a seed survived, as if each had run on all seeds.

    What a rate has of some seeds alone is moved by how these differ from all of them at the rates that have all.
    """
    found = {
        rate: {seed: v for seed, v in zip(arm.tried_on[rate], values, strict=True) if v is not None}
        for rate, values in (arm.outcomes or {}).items()
    }
    seeds = {seed for own in found.values() for seed in own}
    whole = [own for own in found.values() if own.keys() == seeds]
    level = {seed: math.fsum(own[seed] for own in whole) / len(whole) if whole else 0.0 for seed in seeds}
    middle, _ = mean_sd(list(level.values()))
    moved = {
        rate: [value - level[seed] + (middle or 0.0) for seed, value in own.items()] for rate, own in found.items()
    }
    return {rate: mean for rate, values in moved.items() if (mean := mean_sd(values)[0]) is not None}


def ceiling(means: Sequence[float], chosen: Sequence[float], base: Sequence[float]) -> tuple[float, str]:
    """Loss above which points are not drawn to scale, and what it is; infinite where none lies above.

    The base's own loss, beyond which training has done harm, or three times as far above the best as the median lies
    where that is lower; never below a chosen rate's.
    """
    low = min(means, default=0.0)
    robust = low + 3 * (float(np.median(means)) - low) if len(means) else math.inf
    harm = min(base, default=math.inf)
    limit, what = (harm, "the base") if harm <= robust else (robust, "off scale")
    limit = max([limit, *(value + 0.1 * (value - low) for value in chosen)])
    return (limit, what) if max(means, default=-math.inf) > limit > low else (math.inf, "")


def _ring(axes: Axes, x: float, y: float, colour: str, size: float, label: str | None = None) -> None:
    edge: dict[str, Any] = {"markeredgecolor": colour, "markersize": size, "markeredgewidth": style.points(1)}
    axes.plot(x, y, "o", color="none", linestyle="none", **edge, label=label)


def _at_the_top(figure: Figure, axes: Axes, above: Sequence[tuple[float, str, str]]) -> None:
    """Marks of what lies above the axes, those of one rate side by side."""
    for rate in dict.fromkeys(rate for rate, *_ in above):
        own = [(shape, colour) for at, shape, colour in above if at == rate]
        for place, (shape, colour) in enumerate(own):
            shift = style.points(min(6, 26 / len(own))) * (place - (len(own) - 1) / 2) / 72
            beside = axes.get_xaxis_transform() + ScaledTranslation(shift, 0, figure.dpi_scale_trans)
            size: dict[str, Any] = {
                "markersize": style.points(5 if shape == "x" else 8),
                "markeredgewidth": style.points(1.4 if shape == "x" else 0.3),
            }
            axes.plot(rate, 0.965, marker=shape, color=colour, linestyle="none", transform=beside, **size)


LEARNING_RATES = Drawing(
    learning_rates,
    caption="The selection metric at every learning rate tried; the chosen one is ringed, on the line where it lies "
    "between two that were run.",
    section="Learning rates",
    nothing="one learning rate per arm",
    more=_said_of_points,
)
