"""Heat map of ranks: module kind against depth, a panel per arm."""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lab.report.analysis import Analysis
from lab.report.arms import Arm
from lab.report.figure import Drawing, style

MOST_PANELS = 6
SMALLEST = 4.0  # points that a magnifying reader can still make out
DIGITS = 4  # letters of room a cell's number wants


def rank_heatmap(analysis: Analysis) -> Figure | None:
    """A panel per arm whose ranks differ between modules, on one colour scale; None where every rank is uniform."""
    ranks = _ranks(analysis)
    if not any(map(_uneven, ranks.values())):
        return None
    shown = {name: of for name, of in ranks.items() if name not in _left_out(ranks)}
    may = {arm.name: analysis.switching[arm.runs[0].path].names for arm in analysis.arms if _switches(analysis, arm)}
    rows, layers = rows_and_layers(dict.fromkeys(may.get(name, ()), 0) | of for name, of in shown.items())
    panels = {name: grid(of, rows, layers) for name, of in shown.items()}
    columns = 2 if len(panels) > 1 and layers * DIGITS <= style.letters() / 3 else 1
    lines = -(-len(panels) // columns)
    figure, axes = style.new(0.9 + lines * (0.75 + 0.23 * len(rows)), lines, columns, squeeze=False)
    highest = max(int(np.nanmax(values)) for values in panels.values())
    image = None
    for panel, (place, (name, values)) in zip(axes.flat, enumerate(panels.items()), strict=False):
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
    adapted = all(arm.runs[0].record.config.get("method") != "full" for arm in analysis.arms if arm.name in panels)
    label = "LoRA rank" if adapted else "rank"
    figure.colorbar(image, ax=axes, label=label, location="bottom", fraction=0.06, aspect=40)
    return figure


def _ranks(analysis: Analysis) -> dict[str, dict[str, int]]:
    return {arm.name: arm.runs[0].record.ranks for arm in analysis.arms if arm.runs and arm.runs[0].record.ranks}


def _switches(analysis: Analysis, arm: Arm) -> bool:
    return bool(arm.runs) and arm.runs[0].path in analysis.switching


def _uneven(ranks: Mapping[str, int]) -> bool:
    return len(set(ranks.values())) > 1


def _left_out(ranks: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Arms beyond the most that are shown: of uniform ones the last, and then of uneven ones."""
    return sorted(ranks, key=lambda name: not _uneven(ranks[name]))[MOST_PANELS:]


def _said_left_out(analysis: Analysis) -> str:
    ranks = _ranks(analysis)
    left = _left_out(ranks)
    each = ", ".join(
        f"{name} ({'uneven' if _uneven(ranks[name]) else f'rank {next(iter(ranks[name].values()))}'})" for name in left
    )
    return f"Not shown: {each}." if left else ""


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
    caption="Rank of every adapted or low-rank module at the end of an arm's first run, read back from the live model; "
    "white: no such module, or one that is full.",
    section="Arms",
    nothing="every module of an arm has the same rank",
    more=_said_left_out,
)


def rows_and_layers(arms: Iterable[Mapping[str, int]]) -> tuple[list[str], int]:
    """Module kinds and the number of layers of all arms together, in the order of the arm that has most of them."""
    placed = [_placed(ranks) for ranks in arms]
    each = sorted((list(dict.fromkeys(kind for kind, _ in of)) for of in placed), key=len, reverse=True)
    return list(dict.fromkeys(kind for kinds in each for kind in kinds)), 1 + max(at for of in placed for _, at in of)


def grid(ranks: Mapping[str, int], kinds: Sequence[str], layers: int) -> np.ndarray:
    """Ranks as (kinds, layers), nan where a layer has no such module."""
    values = np.full((len(kinds), layers), np.nan)
    for (kind, layer), rank in _placed(ranks).items():
        values[kinds.index(kind), layer] = rank
    return values


def _placed(ranks: Mapping[str, int]) -> dict[tuple[str, int], int]:
    placed: dict[tuple[str, int], int] = {}
    for module, rank in ranks.items():
        numbered = re.search(r"\.(\d+)\.(.+)$", module)
        kind, layer = module.split(".")[-1], int(numbered[1]) if numbered else 0
        # gpt2 has attn.c_proj and mlp.c_proj: where the last part is not enough, the whole path tells them apart.
        if (kind, layer) in placed and numbered:
            kind = numbered[2]
        placed[kind, layer] = rank
    return placed
