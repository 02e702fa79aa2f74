"""Style of every figure: colours that colour-blind readers tell apart, markers that print, room for the legend."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.arms import Arm
from lab.verdict.margin import units

# Okabe and Ito 2008, without the yellow that vanishes on white; the first is the baseline's.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
WIDTH = 6.0  # inches: at 100 dpi a figure is 600 pixels wide and its smallest text 12 pixels high
COLUMN = 3.3  # inches: a column of a two-column paper, where a figure is printed at its own size
LETTER = 0.55  # of its size a letter is wide on average
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
    "figure.figsize": (WIDTH, WIDTH),
}
COLUMN_RC: Any = RC | {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "grid.linewidth": 0.45,
    "hatch.linewidth": 0.6,
    "figure.figsize": (COLUMN, COLUMN),
}


def new(height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes in the house style; height in inches on a page, and in a column as its letters shrink."""
    figure = Figure(figsize=(rcParams["figure.figsize"][0], points(height)), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def points(size: float) -> float:
    """A size on a page, of a marker or a line, as it is in the figure being drawn: it goes with the letters."""
    return float(size * rcParams["font.size"] / RC["font.size"])


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


def letters() -> float:
    """Letters of a legend that fit the width of the figure being drawn."""
    return float(72 * rcParams["figure.figsize"][0] / (LETTER * rcParams["legend.fontsize"]))


def legend_below(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """One legend under the axes, where it can cover no data; at most so many columns, and long labels a row each."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    fits = int(letters() // (max(map(len, labels)) + 9))  # a line, its marker and two gaps are 9 letters wide
    columns = max(1, min(fits, columns, len(labels)))
    more = max(0, -(-len(labels) // columns) - ROOM)
    figure.set_figheight(figure.get_figheight() + points(0.19) * more)  # inches a row, so that the axes keep theirs
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)


def short(name: str, most: int = 44) -> str:
    """A label that fits the page, cut in the middle where its two ends still tell it from another."""
    cut = name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"
    return cut.replace("$", r"\$")  # else matplotlib would read mathematics


def label(arm: Arm, n: int | None = None) -> str:
    """An arm in a legend, with the number of runs behind it."""
    return f"{short(arm.name)} (n = {len(arm.runs) if n is None else n})"


def save(figure: Figure, path: Path) -> None:
    """A PNG or PDF by the path's suffix, without dates, so that the same study draws the same files."""
    undated = {".png": {"Software": None}, ".pdf": {"CreationDate": None}}[path.suffix]
    with rc_context(RC):
        figure.savefig(path, dpi=DPI, metadata=undated)
