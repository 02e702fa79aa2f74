"""Figure of a policy's clauses over a run: each layer's value against the limit and against chance."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lab.svd_policy.decisions import Decided

# Okabe and Ito 2008: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")

MARKS = {"v": ("to_low_rank", "guard"), "^": ("to_full", "rollback", "release")}


def write(decisions: Sequence[Decided], path: Path, marked: str | None = None) -> Path | None:
    """A panel per clause, a line per layer, coloured by the layer's role; one layer may be drawn boldly.

    None where no decision has clauses. Gaps in a line are ticks at which the clause was not tested, or not defined;
    triangles are where a layer went low-rank or under guard, and where it came back.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = lines_of(decisions)
    if not lines:
        return None
    roles = sorted({layer.rsplit(".", 1)[-1] for per_layer in lines.values() for layer in per_layer})
    rows = -(-len(lines) // 2)
    figure = Figure(figsize=(7.5, 0.6 + 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, min(2, len(lines)), squeeze=False, sharex=True).flat
    for axes, (name, per_layer) in zip(panels, lines.items(), strict=False):
        for layer, points in per_layer.items():
            role = layer.rsplit(".", 1)[-1]
            style: dict[str, Any] = {"color": COLOURS[roles.index(role) % len(COLOURS)], "lw": 0.8, "alpha": 0.7}
            if layer == marked:
                style = {"color": "black", "lw": 2.0, "zorder": 5}
            steps, values = zip(*((step, float("nan") if v is None else v) for step, v, _ in points), strict=True)
            axes.plot(steps, values, marker=".", ms=2, **style)
        tested = [clause for points in per_layer.values() for *_, clause in points if clause is not None]
        limits, by_chance = {clause["limit"] for clause in tested}, {clause["chance"] for clause in tested} - {None}
        if len(limits) > 1:  # a layer's own, or a tick's
            axes.axhspan(min(limits), max(limits), color="black", alpha=0.1, lw=0)
        else:
            axes.axhline(min(limits), color="black", ls="--", lw=1)
        for level in by_chance:
            axes.axhline(level, color="black", ls=":", lw=1)
        said = f"{min(limits):.3g} to {max(limits):.3g} (shaded" if len(limits) > 1 else f"{min(limits):g} (dashed"
        axes.set_title(f"{name} {tested[0]['op']} {said}{', chance dotted' if by_chance else ''})", fontsize=9)
        if all(clause["value"] is None or clause["value"] >= 0 for clause in tested):
            axes.set_ylim(bottom=0)
        for marker, actions in MARKS.items():
            there = [(row["step"], value) for row, value in _acted(decisions, name, actions)]
            if there:
                axes.plot(*zip(*there, strict=True), marker, color="black", ms=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(lines) :]:
        axes.set_axis_off()
    for axes in figure.axes[max(0, len(lines) - 2) : len(lines)]:
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.xaxis.set_tick_params(labelbottom=True)
    for role in roles:
        figure.axes[0].plot([], [], color=COLOURS[roles.index(role) % len(COLOURS)], label=role)
    for marker, actions in MARKS.items():
        if any(row["action"] in actions for row in decisions):
            said = "goes low-rank or under guard" if marker == "v" else "comes back"
            figure.axes[0].plot([], [], marker, color="black", ms=4, label=said)
    if marked is not None:
        figure.axes[0].plot([], [], color="black", lw=2.0, label=marked)
    figure.legend(loc="outside lower center", ncols=min(4, len(roles)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)
    return path


def _acted(decisions: Sequence[Decided], name: str, actions: Sequence[str]) -> Iterator[tuple[Decided, float]]:
    """The decisions to act, each with its value of a clause, where that has one."""
    for row in decisions:
        for item in row["clauses"] if row["action"] in actions else ():
            if item["name"] == name and item["value"] is not None:
                yield row, item["value"]


def lines_of(
    decisions: Sequence[Decided],
) -> dict[str, dict[str, list[tuple[int, float | None, dict[str, Any] | None]]]]:
    """Clause -> layer -> (step, value, clause) at each of the layer's ticks; None, None where it was not tested."""
    names = dict.fromkeys(item["name"] for row in decisions for item in row["clauses"])
    lines: dict[str, dict[str, list[tuple[int, float | None, dict[str, Any] | None]]]] = {name: {} for name in names}
    for row in decisions:
        tested = {item["name"]: item for item in row["clauses"]}
        for name in names:
            item = tested.get(name)
            point = row["step"], None if item is None else item["value"], item
            lines[name].setdefault(row["layer"], []).append(point)
    return lines
