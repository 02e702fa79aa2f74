"""Figures of an observed run: a measure over layers and time, and spectra as they change."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from lab.ledger import Row
from lab.svd_policy.tables import short

WIDTH = 8.0  # inches
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
    figure = _figure(1.4 + 0.19 * min(len(layers), MOST_LABELS))
    axes = figure.subplots()
    cmap = colormaps["cividis"].with_extremes(bad="0.85")
    image = axes.imshow(np.ma.masked_invalid(values), aspect="auto", cmap=cmap, interpolation="nearest")
    apart = -(-len(layers) // MOST_LABELS)
    axes.set_yticks(range(0, len(layers), apart), [short(layer) for layer in layers[::apart]], fontsize=8)
    apart = -(-len(steps) // 10)
    axes.set_xticks(range(0, len(steps), apart), [str(step) for step in steps[::apart]], fontsize=8)
    axes.set_xlabel("step", fontsize=9)
    axes.set_title(says, fontsize=9)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.ax.tick_params(labelsize=8)
    return figure


def spectra(rows: Sequence[Row], layers: Sequence[str]) -> Figure | None:
    """Rows with whole spectra of a few layers, a line per row, later ones lighter; None without rows."""
    found = {layer: held for layer in layers if (held := [row for row in rows if row.layer == layer])}
    if not found:
        return None
    columns = min(4, len(found))
    lines = -(-len(found) // columns)
    figure = _figure(0.6 + 2.0 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    last = max(row.step for held in found.values() for row in held)
    colour = ScalarMappable(Normalize(0, max(1, last)), colormaps["viridis"])
    for panel, (layer, held) in zip(panels.flat, found.items(), strict=False):
        for row in held[:: -(-len(held) // MOST_LINES)]:
            S = row.singular_values
            panel.plot(range(1, len(S) + 1), S, color=colour.to_rgba(np.array(row.step)), linewidth=0.9)
        panel.axvline(held[0].k, color="0.6", linewidth=0.8, linestyle="--")
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=6))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_title(short(layer), fontsize=8)
        panel.tick_params(which="both", labelsize=7)
    for panel in panels.flat[len(found) :]:
        panel.set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("i", fontsize=8)
    for panel in panels[:, 0]:
        panel.set_ylabel("singular value", fontsize=8)
    bar = figure.colorbar(colour, ax=panels, pad=0.02, fraction=0.04)
    bar.set_label("step (dashed: k)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
