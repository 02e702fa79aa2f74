"""An allocation shown: as a table for the console, as a figure for the dashboard."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from lab.layer import Role, Target
from lab.rank_strategy import RankPlan

ROLES: tuple[Role, ...] = ("attention", "mlp", "other")
COLOURS: dict[Role, str] = {"attention": "#0072B2", "mlp": "#E69F00", "other": "#009E73"}  # Okabe and Ito 2008
WIDTH = 6.0  # inches; 600 px at 100 dpi, which is what a dashboard shows
LABELLED = 16  # more blocks than this, and their ranks are no longer written into the heat map
MAX_TICKS = 14  # block numbers along an axis


def cost(plan: RankPlan, targets: Iterable[Target]) -> int:
    """Parameters of all pairs: Σ r (out + in)."""
    return sum(plan[target.name] * target.cost for target in targets)


def equivalent_rank(plan: RankPlan, targets: Sequence[Target]) -> float:
    """The uniform rank that costs as many parameters."""
    return cost(plan, targets) / sum(target.cost for target in targets)


def table(plan: RankPlan, targets: Sequence[Target]) -> Table:
    """Rank by block and role, with what each block costs and its share of the budget; least–most where ranks differ."""
    roles = [role for role in ROLES if any(target.role == role for target in targets)]
    total = cost(plan, targets)
    shown = Table(
        title="LoRA rank by block and role",
        caption=f"costs as much as a uniform rank of {equivalent_rank(plan, targets):.2f}",
        show_footer=True,
    )
    shown.add_column("block", "all", justify="right")
    for role in roles:
        shown.add_column(role, _span(plan, (t for t in targets if t.role == role)), justify="right")
    shown.add_column("parameters", f"{total:,}", justify="right")
    shown.add_column("share", "100.0 %", justify="right")
    for depth in sorted({target.depth for target in targets}):
        block = [target for target in targets if target.depth == depth]
        spent = cost(plan, block)
        ranks = [_span(plan, (t for t in block if t.role == role)) for role in roles]
        shown.add_row(_block(depth), *ranks, f"{spent:,}", f"{100 * spent / total:.1f} %")
    return shown


def allocation_figure(plan: RankPlan, targets: Sequence[Target]) -> Figure:
    """A bar for every module, in model order, above a heat map of module against block; safe for the colour-blind."""
    rows = list(dict.fromkeys(_kind(target) for target in targets))
    heat_height = 0.5 + 0.22 * len(rows)
    figure = Figure(figsize=(WIDTH, 2.6 + heat_height), dpi=100, layout="constrained")
    bars, heat = figure.subplots(2, 1, height_ratios=(2.2, heat_height))
    _draw_bars(bars, plan, targets)
    _draw_heat(figure, heat, plan, targets, rows)
    return figure


def _draw_bars(axes: Axes, plan: RankPlan, targets: Sequence[Target]) -> None:
    ordered = sorted(targets, key=lambda target: target.depth)  # stable: module order within a block
    axes.bar(range(len(ordered)), [plan[t.name] for t in ordered], width=0.9, color=[COLOURS[t.role] for t in ordered])
    level = equivalent_rank(plan, targets)
    line = axes.axhline(level, color="black", linewidth=1, linestyle="--", label=f"uniform at this cost: {level:.2f}")
    starts = [i for i, t in enumerate(ordered) if i == 0 or t.depth != ordered[i - 1].depth]
    for start in starts[1:]:
        axes.axvline(start - 0.5, color="0.85", linewidth=0.5, zorder=0)
    ends = [*starts[1:], len(ordered)]
    step = -(-len(starts) // MAX_TICKS)
    axes.set_xticks(
        [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)][::step],
        [_block(ordered[start].depth) for start in starts][::step],
        fontsize=8,
    )
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.5, len(ordered) - 0.5)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylabel("LoRA rank", fontsize=9)
    axes.set_xlabel("block, one bar per module", fontsize=9)
    handles: list[Any] = [Patch(color=COLOURS[r], label=r) for r in ROLES if any(t.role == r for t in targets)]
    axes.figure.legend(handles=[*handles, line], loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def _draw_heat(figure: Figure, axes: Axes, plan: RankPlan, targets: Sequence[Target], rows: list[str]) -> None:
    depths = sorted({target.depth for target in targets})
    ranks = np.full((len(rows), len(depths)), np.nan)
    for target in targets:
        ranks[rows.index(_kind(target)), depths.index(target.depth)] = plan[target.name]
    image = axes.imshow(ranks, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    if len(depths) <= LABELLED:
        middle = np.nanmax(ranks) / 2
        for row, column in zip(*np.nonzero(~np.isnan(ranks)), strict=True):
            rank = ranks[row, column]
            ink = "white" if rank < middle else "black"
            axes.text(column, row, f"{rank:.0f}", ha="center", va="center", fontsize=7, color=ink)
    step = -(-len(depths) // MAX_TICKS)
    axes.set_xticks(range(0, len(depths), step), [_block(depth) for depth in depths[::step]], fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xlabel("block", fontsize=9)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.05)
    bar.locator = MaxNLocator(integer=True, nbins=4)
    bar.update_ticks()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("LoRA rank", fontsize=8)


def _span(plan: RankPlan, targets: Iterable[Target]) -> str:
    ranks = sorted({plan[target.name] for target in targets})
    if not ranks:
        return "–"
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}–{ranks[-1]}"


def _block(depth: int) -> str:
    return str(depth) if depth >= 0 else "–"


def _kind(target: Target) -> str:
    """The name within its block: `self_attn.q_proj`; two layers of one kind never share a block."""
    return target.name.rpartition(f".{target.depth}.")[2] if target.depth >= 0 else target.name
