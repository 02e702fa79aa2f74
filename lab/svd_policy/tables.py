"""Tables for a terminal: what a policy could do, is near doing, and was kept from."""

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Column, Table

from lab.ledger import Row
from lab.spectral.chance import SIDES
from lab.svd_policy import SvdPolicy
from lab.svd_policy.summary import Approach, RuleSummary

_BOX = box.SIMPLE_HEAD
MOST_LAYERS = 40  # shown by name; files have all


def short(layer: str) -> str:
    """A layer's name from its block on: `0.self_attn.q_proj`."""
    return re.sub(r"^.*?\.(?=\d+\.)", "", layer)


def reach_table(policy: SvdPolicy, rows: Iterable[Row]) -> Table:
    """Before a run: per clause and shape, the best value that any layer's spectrum allows and what it would take."""
    table = _table("can these clauses hold?", "clause", "shape", "best now", "can hold", "it needs")
    shown: dict[tuple[str, tuple[int, int]], tuple[float, tuple[str, ...]]] = {}
    for row in rows:
        for reach in policy.reach(row):
            best = "undefined" if reach.best is None else f"{reach.best:.4g}"
            can = "yes" if reach.can_hold else "[red]cannot hold[/red]"
            shape = f"{row.shape[0]}x{row.shape[1]}"
            cells: tuple[str, ...] = (f"{reach.name}\n{reach.op} {reach.limit:g}", shape, best, can, reach.needs)
            key = (reach.name, row.shape)
            if key not in shown or reach.shortfall < shown[key][0]:
                shown[key] = (reach.shortfall, cells)
    shapes: dict[tuple[str, ...], list[str]] = {}  # that share a row's other cells
    for _, (clause, shape, *others) in shown.values():
        shapes.setdefault((clause, *others), []).append(shape)
    for (clause, *others), of in shapes.items():
        table.add_row(clause, "\n".join(of), *others)
    return table


def chance_table(first: Sequence[Row]) -> Table:
    """Before a run: per shape, the share of any matrix's energy that k unrelated directions would catch."""
    table = Table("shape", "layers", "k", *SIDES, title="energy that k directions catch by chance")
    for shape in sorted({row.shape for row in first}):
        rows = [row for row in first if row.shape == shape]
        shares = [f"{rows[0].chance(side, rows[0].k):.2%}" for side in SIDES]
        table.add_row(f"{shape[0]}x{shape[1]}", str(len(rows)), str(rows[0].k), *shares)
    return table


def measures_table(rows: Sequence[Row], most: int = 5) -> Table:
    """At a tick of a policy without limits: the layers whose directions turned most since the last tick."""
    names = ("angle", "overlap", "G left", "chance", "ΔW left", "tail", "stable rank")
    table = _table("most turned", "layer", *names)
    for row in sorted(rows, key=lambda row: -(row.angle(row.k) or 0.0))[:most]:
        shares = [row.fraction("gradient", "left", row.k), row.chance("left", row.k)]
        shares.append(row.fraction("update", "left", row.k))
        tail = row.tail_error(row.k) if row.directions else None
        numbers = [row.angle(row.k), row.overlap(row.k), *shares, tail, row.stable_rank]
        reason = f"\n({row.reason})" if row.reason else ""
        table.add_row(short(row.layer) + reason, *("" if number is None else f"{number:.3g}" for number in numbers))
    return table


def approach_table(nearest: Sequence[Approach], most: int = 5) -> Table:
    """At a tick: the clauses nearest to their limits, with trend and in how many steps they would get there."""
    table = _table("nearest to a limit", "layer", "clause", "value", "limit", "margin", "per step", "in steps")
    for item in nearest[:most]:
        slope = "" if item.slope is None else f"{item.slope:+.2g}"
        eta = "never" if item.eta is None else "holds" if item.eta == 0 else f"{item.eta:.0f}"
        numbers = (f"{item.value:.4g}", f"{item.op} {item.limit:g}", f"{item.margin:+.3g}")
        table.add_row(short(item.layer), item.clause, *numbers, slope, eta)
    return table


def summary_table(rows: Sequence[RuleSummary]) -> Table:
    """The end-of-run table: binding clause, how often it alone was missing, and the nearest miss."""
    table = _table("what was in the way", "layer and rule", "fired", "binding clause", "nearest miss")
    for row in rows[: 2 * MOST_LAYERS]:
        fired = "never" if row.first_fire is None else f"{row.fired} of {row.ticks},\nfirst at {row.first_fire}"
        binding, near, miss = "", row.nearest, ""
        if row.binding is not None:
            binding = f"{row.binding}\nfailed {row.failed[row.binding]}, alone {row.alone.get(row.binding, 0)}"
        if near is not None:
            miss = f"{near.clause}\n{near.value:.4g} at step {near.step}\n(limit {near.limit:g})"
        table.add_row(f"{short(row.layer)}\n{row.reason}", fired, binding, miss)
    return table


def _table(title: str, *headings: str) -> Table:
    """Narrow enough for 80 columns; where names are longer they go on in the next line, and nothing is cut off."""
    columns = [Column(heading, overflow="fold") for heading in headings]
    return Table(*columns, title=title, box=_BOX, padding=0, show_edge=False)
