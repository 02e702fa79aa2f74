"""Figures of an observed run: a measure over layers and time, and spectra as they change."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from lab.ledger import Row
from lab.svd_policy.tables import short

WIDTH = 8.0  # inches
LETTER = 0.068  # inches of an eight-point letter, on average
MOST_LABELS = 48  # layers named beside a heat map
MOST_LINES = 24  # spectra drawn per layer


def heat_map(says: str, points: Sequence[tuple[int, str, float | None]], layers: Sequence[str]) -> Figure | None:
    """Points (step, layer, value) with layers down and steps across, grey where nothing was measured; None for none."""
    steps = sorted({step for step, _, _ in points})
    column, line = {step: i for i, step in enumerate(steps)}, {layer: i for i, layer in enumerate(layers)}
    values = np.full((len(layers), len(steps)), np.nan)
    for step, layer, value in points:
        values[line[layer], column[step]] = np.nan if value is None else value
    if np.isnan(values).all():
        return None
    names = [short(layer) for layer in layers]
    beside = LETTER * max(map(len, names)) + 0.15
    figure = Figure(figsize=(WIDTH, height := 1.1 + 0.19 * min(len(layers), MOST_LABELS)))
    axes = _panel(figure, beside, 0.5, WIDTH - beside - 1.1, height - 0.85)
    cmap = colormaps["cividis"].with_extremes(bad="0.85")
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=cmap, interpolation="nearest")
    apart = -(-len(layers) // MOST_LABELS)
    axes.set_yticks(range(0, len(layers), apart), names[::apart], fontsize=8)
    apart = -(-len(steps) // 10)
    axes.set_xticks(range(0, len(steps), apart), [str(step) for step in steps[::apart]], fontsize=8)
    axes.set_xlabel("step", fontsize=9)
    axes.set_title(says, fontsize=9, y=1.0)
    bar = figure.colorbar(image, cax=_panel(figure, WIDTH - 0.95, 0.5, 0.2, height - 0.85))
    bar.ax.tick_params(labelsize=8)
    return figure


def spectra(rows: Sequence[Row], layers: Sequence[str]) -> Figure | None:
    """Rows with whole spectra of a few layers, a line per row, later ones lighter; None without rows."""
    by_layer = {layer: held for layer in layers if (held := [row for row in rows if row.layer == layer])}
    if not by_layer:
        return None
    columns = min(4, len(by_layer))
    lines = -(-len(by_layer) // columns)
    figure = Figure(figsize=(WIDTH, height := 0.55 + 2.0 * lines))
    wide = (WIDTH - 1.6) / columns
    places = [(0.65 + wide * (i % columns), 0.5 + 2.0 * (lines - 1 - i // columns)) for i in range(len(by_layer))]
    last = max(row.step for held in by_layer.values() for row in held)
    colour = ScalarMappable(Normalize(0, max(1, last)), colormaps["viridis"])
    for (left, bottom), (layer, held) in zip(places, by_layer.items(), strict=True):
        panel = _panel(figure, left, bottom, wide - 0.5, 1.55)
        for row in held[:: -(-len(held) // MOST_LINES)]:
            S = row.singular_values
            panel.plot(range(1, len(S) + 1), S, color=colour.to_rgba(np.array(row.step)), linewidth=0.9)
        panel.axvline(held[0].k, color="0.6", linewidth=0.8, linestyle="--")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_title(short(layer), fontsize=8, y=1.0)
        panel.tick_params(which="both", labelsize=7)
        if left == places[0][0]:
            panel.set_ylabel("singular value", fontsize=8)
        if bottom == places[-1][1]:
            panel.set_xlabel("i", fontsize=8)
    bar = figure.colorbar(colour, cax=_panel(figure, WIDTH - 0.95, 0.5, 0.15, height - 0.9, beside=0.6))
    bar.set_label("step (dashed: k)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _panel(figure: Figure, left: float, bottom: float, width: float, height: float, beside: float = -0.48) -> Axes:
    """Axes at a place given in inches, and the middle of what is written below them and `beside` them.

    Given, since matplotlib's own search for places, of titles and labels as well, took half of a figure's time.
    """
    across, up = figure.get_size_inches()
    axes = figure.add_axes((left / across, bottom / up, width / across, height / up))
    axes.xaxis.set_label_coords(0.5, -0.26 / height)
    axes.yaxis.set_label_coords(beside / width, 0.5)
    return axes
