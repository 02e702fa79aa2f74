"""Tables and words on a study's switches: which layers, when and back, and what that changed of memory and time."""

from collections.abc import Callable, Sequence

from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.document import MISSING, Block, Bullets, Table, number, span
from lab.report.statistics import mean_sd
from lab.report.switching import Switching

SHARES: dict[str, Callable[[Switching], float]] = {
    "parameters, least": lambda own: own.least.trained / own.whole,
    "parameters at the end": lambda own: own.end.trained / own.whole,
    "memory, peak": lambda own: own.peak_bytes / own.full_bytes,
    "memory, least": lambda own: own.least_bytes / own.full_bytes,
    "memory at the end": lambda own: own.end.bytes / own.full_bytes,
}
SECONDS = ("s a step, full", "s a step, switched")


def by_arm(analysis: Analysis) -> list[tuple[Arm, list[Switching]]]:
    """The arms with a policy that switches layers, and what each of their completed runs did."""
    each = [
        (arm, [analysis.switching[run.path] for run in arm.runs if run.path in analysis.switching])
        for arm in analysis.arms
    ]
    return [(arm, own) for arm, own in each if own]


def words(analysis: Analysis) -> list[Block]:
    """What may be said of the peak of memory: that it is lower only where no step trained all layers full."""
    arms = by_arm(analysis)
    if not arms:
        return []
    lower = [arm.name for arm, own in arms if all(each.lowers_peak for each in own)]
    rest = [arm.name for arm, own in arms if arm.name not in lower]
    lines = []
    if rest:
        lines.append(
            f"No lower peak of memory: {', '.join(rest)}. Most often: a run that trains its layers full at any step "
            "holds all of their weights, gradients and moments then; what it saves later is memory at that moment, and "
            "time."
        )
    if lower:
        lines.append(
            f"A lower peak of memory: {', '.join(lower)}, some or all layers low-rank from before the first step to "
            "the end. Counted are weights, gradients and moments of the layers that may switch, no activations."
        )
    return [Bullets(lines)]


def tables(analysis: Analysis) -> list[Block | None]:
    """What switched, and what that changed; nothing for a study without a policy that switches."""
    arms = by_arm(analysis)
    return [_switches(arms), _cost(arms)] if arms else []


def _switches(arms: Sequence[tuple[Arm, list[Switching]]]) -> Table:
    rows = [
        [
            arm.name,
            str(len(own)),
            f"{span(each.switched for each in own)} of {own[0].layers}",
            span(each.first for each in own if each.first is not None) or MISSING,
            span(each.returned for each in own),
            span(each.rolled_back for each in own),
            span(each.end.low for each in own),
            number(_mean([each.least_rank for each in own]), 1),
            number(_mean([each.end.rank for each in own]), 1),
        ]
        for arm, own in arms
    ]
    columns = [
        "arm", "runs", "layers switched", "first at step", "returned", "rolled back", "low-rank at the end",
        "mean rank, least", "mean rank at the end",
    ]  # fmt: skip
    caption = (
        "Layers that went low-rank, from the least to the most of an arm's runs. Returned: full again, other than by a "
        "roll-back after the loss rose. A full layer's rank is its smaller side; ranks are means over layers and runs."
    )
    return Table("switching", caption, columns, rows, text=("layers switched",), screen=("runs",))


def _cost(arms: Sequence[tuple[Arm, list[Switching]]]) -> Table:
    rows = []
    for arm, own in arms:
        full, low = (_mean([each.step_seconds[i] for each in own]) for i in (0, 1))
        rows.append(
            [
                arm.name,
                *(_share(_mean([share(each) for each in own])) for share in SHARES.values()),
                number(full, 3),
                number(low, 3),
                number(None if full is None or low is None else low / full, 2),
                number(_mean([each.step_ratio for each in own]), 2),
            ]
        )
    columns = ["arm", *SHARES, *SECONDS, "their ratio", "ratio by FLOPs"]
    caption = (
        "Of the layers that may switch: trained parameters and memory (weights, gradients, moments, and what rides "
        "along), as shares of what they are when all are full; a switch's own working memory is not counted. Seconds a "
        "step are medians over stretches of training without a switch, with all layers full and with the run's fewest "
        "FLOPs a step; by the FLOPs of both passes alone the latter would take the last column's share of the former: "
        "Muon's part, which falls further, is not counted."
    )
    return Table("switching_cost", caption, columns, rows, screen=SECONDS)


def _mean(values: Sequence[float | None]) -> float | None:
    return mean_sd([value for value in values if value is not None])[0]


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.0f} %"
