"""Figure of a policy's clauses over a run: each layer's value against the limit and against chance."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.svd_policy.decisions import Decided

# Okabe and Ito 2008: told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")


def write(decisions: Sequence[Decided], path: Path, marked: str | None = None) -> Path | None:
    """A panel per clause, a line per layer, coloured by the layer's role; one layer may be drawn boldly.

    None where no decision has clauses. Gaps in a line are ticks at which the value was not defined.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = _lines(decisions)
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
            axes.plot(steps, values, **style)
        item = next(iter(per_layer.values()))[0][2]
        axes.axhline(item["limit"], color="black", ls="--", lw=1)
        by_chance = {clause["chance"] for points in per_layer.values() for *_, clause in points} - {None}
        for level in by_chance:
            axes.axhline(level, color="black", ls=":", lw=1)
        dotted = ", chance dotted" if by_chance else ""
        axes.set_title(f"{name} {item['op']} {item['limit']:g} (dashed{dotted})", fontsize=9)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(lines) :]:
        axes.set_axis_off()
    for axes in figure.axes[max(0, len(lines) - 2) : len(lines)]:
        axes.set_xlabel("optimizer step", fontsize=9)
        axes.xaxis.set_tick_params(labelbottom=True)
    for role in roles:
        figure.axes[0].plot([], [], color=COLOURS[roles.index(role) % len(COLOURS)], label=role)
    if marked is not None:
        figure.axes[0].plot([], [], color="black", lw=2.0, label=marked)
    figure.legend(loc="outside lower center", ncols=min(4, len(roles)), fontsize=8, frameon=False)
    figure.savefig(path, dpi=160)
    return path


def _lines(decisions: Sequence[Decided]) -> dict[str, dict[str, list[tuple[int, float | None, dict[str, Any]]]]]:
    """Clause -> layer -> (step, value, clause)."""
    lines: dict[str, dict[str, list[tuple[int, float | None, dict[str, Any]]]]] = {}
    for row in decisions:
        for item in row["clauses"]:
            points = lines.setdefault(item["name"], {}).setdefault(row["layer"], [])
            points.append((row["step"], item["value"], item))
    return lines
