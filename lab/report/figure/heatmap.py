"""Heat map of ranks: module kind against depth, a panel per arm."""

import re
from collections.abc import Mapping

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.figure import Drawing, style

MOST_PANELS = 6
SMALLEST = 4.0  # points that a magnifying reader can still make out
DIGITS = 4  # letters of room a cell's number wants


def rank_heatmap(analysis: Analysis) -> Figure | None:
    """A panel per arm whose ranks differ between modules, on one colour scale; None where every rank is uniform."""
    ranks = {arm.name: arm.runs[0].record.ranks for arm in analysis.arms if arm.runs and arm.runs[0].record.ranks}
    if not any(len(set(of.values())) > 1 for of in ranks.values()):
        return None
    panels = {name: grid(of) for name, of in list(ranks.items())[:MOST_PANELS]}
    kinds = max(len(rows) for rows, _ in panels.values())
    layers = max(values.shape[1] for _, values in panels.values())
    columns = 2 if len(panels) > 1 and layers * DIGITS <= style.letters() / 3 else 1
    lines = -(-len(panels) // columns)
    figure, axes = style.new(0.9 + lines * (0.75 + 0.23 * kinds), lines, columns, squeeze=False)
    highest = max(int(np.nanmax(values)) for _, values in panels.values())
    image = None
    for panel, (place, (name, (rows, values))) in zip(axes.flat, enumerate(panels.items()), strict=False):
        image = panel.imshow(values, vmin=0, vmax=highest, cmap="cividis", aspect="auto")
        _numbers(panel, values, highest, min(1.0, 0.8 * style.letters() / columns / (DIGITS * layers)))
        panel.set_title(style.short(name, int(0.55 * style.letters() / columns)))
        panel.grid(visible=False)
        first = place % columns == 0
        panel.set_yticks(range(len(rows)), rows if first else [])
        panel.locator_params(axis="x", integer=True, nbins=6)
        if place + columns >= len(panels):
            panel.set_xlabel("layer")
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    assert image is not None
    figure.colorbar(image, ax=axes, label="LoRA rank", location="bottom", fraction=0.06, aspect=40)
    return figure


def _numbers(panel: Axes, values: np.ndarray, highest: int, share: float) -> None:
    """The rank in every cell, smaller by `share` where cells are narrow; none where nobody could read it."""
    size = share * 0.92 * rcParams["legend.fontsize"]
    if size < SMALLEST:
        return
    for (row, layer), rank in np.ndenumerate(values):
        if not np.isnan(rank):
            ink = "white" if rank < 0.55 * highest else "black"
            panel.text(layer, row, f"{rank:.0f}", color=ink, fontsize=size, ha="center", va="center")


RANK_HEATMAP = Drawing(
    rank_heatmap,
    caption="Rank of every adapted module, read back from the live model.",
    section="Arms",
    nothing="every module of an arm has the same rank",
)


def grid(ranks: Mapping[str, int]) -> tuple[list[str], np.ndarray]:
    """Module kinds, and ranks as (kinds, layers) with nan where a layer has no such module."""
    placed: dict[tuple[str, int], int] = {}
    for module, rank in ranks.items():
        numbered = re.search(r"\.(\d+)\.(.+)$", module)
        kind, layer = module.split(".")[-1], int(numbered[1]) if numbered else 0
        # gpt2 has attn.c_proj and mlp.c_proj: where the last part is not enough, the whole path tells them apart.
        if (kind, layer) in placed and numbered:
            kind = numbered[2]
        placed[kind, layer] = rank
    kinds = list(dict.fromkeys(kind for kind, _ in placed))
    values = np.full((len(kinds), 1 + max(layer for _, layer in placed)), np.nan)
    for (kind, layer), rank in placed.items():
        values[kinds.index(kind), layer] = rank
    return kinds, values
