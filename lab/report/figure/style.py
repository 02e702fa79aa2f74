"""Style of every figure: colours that colour-blind readers tell apart, markers that print, room for the legend."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.arms import Arm
from lab.report.comparison import units

# Okabe and Ito 2008, without the yellow that vanishes on white; the first is the baseline's.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
WIDTH = 6.0  # inches: at 100 dpi a figure is 600 pixels wide and its smallest text 12 pixels high
DPI = 200
ROOM = 3  # legend rows that a figure's height allows for
RC: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "pdf.fonttype": 42,  # letters stay letters in a PDF
}


def new(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes in the house style; height in inches."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def marker(index: int) -> dict[str, Any]:
    """Colour, marker and line of the arm at a place in the study; the three together repeat only after many arms."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
        "linestyle": LINES[(index + index // len(COLOURS)) % len(LINES)],
    }


def axis(metric: str) -> str:
    """A metric's name and unit for an axis: `test loss (nats per token)`."""
    unit = units(metric)
    name = metric.replace("_", " ").replace("seconds.", "")
    return f"{name} ({unit})" if unit else name


def legend_below(figure: Figure, axes: Axes, columns: int = 2) -> None:
    """One legend under the axes, where it can cover no data; long labels get a row each."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    longest = max(map(len, labels))
    fits = 1 if longest > 34 else columns if longest > 22 else columns + 1
    columns = min(fits, len(labels))
    more = max(0, -(-len(labels) // columns) - ROOM)
    figure.set_figheight(figure.get_figheight() + 0.19 * more)  # inches a row, so that the axes keep theirs
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def short(name: str, most: int = 44) -> str:
    """A label that fits the page, cut in the middle where its two ends still tell it from another."""
    cut = name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
    return cut.replace("$", r"\$")  # else matplotlib would read mathematics


def label(arm: Arm, n: int | None = None) -> str:
    """An arm in a legend, with the number of runs behind it."""
    return f"{short(arm.name)} (n = {len(arm.runs) if n is None else n})"


def save(figure: Figure, stem: Path) -> None:
    """PNG and PDF, without dates, so that the same study draws the same files."""
    with rc_context(RC):
        figure.savefig(stem.with_name(f"{stem.name}.png"), dpi=DPI, metadata={"Software": None})
        figure.savefig(stem.with_name(f"{stem.name}.pdf"), metadata={"CreationDate": None})
