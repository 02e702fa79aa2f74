"""What a policy could do, is near doing, and was kept from: tables for a terminal."""

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
    table = Table("clause", "shape", "best now", "can hold", "it needs", title="can these clauses hold?")
    shown: dict[tuple[str, tuple[int, int]], tuple[float, tuple[str, ...]]] = {}
    for row in rows:
        for reach in policy.reach(row):
            best = "undefined" if reach.best is None else f"{reach.best:.4g}"
            missing = float("inf") if reach.best is None else reach.best - reach.limit
            missing = -missing if reach.op in (">", ">=") else missing
            can = "yes" if reach.can_hold else "[red]cannot hold[/red]"
            shape = f"{row.shape[0]}x{row.shape[1]}"
            cells: tuple[str, ...] = (f"{reach.name} {reach.op} {reach.limit:g}", shape, best, can, reach.needs)
            key = (reach.name, row.shape)
            if key not in shown or missing < shown[key][0]:
                shown[key] = (missing, cells)
    for _, cells in shown.values():
        table.add_row(*cells)
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
    table = Table(Column("layer", no_wrap=True), *names, title="most turned", box=_BOX)
    for row in sorted(rows, key=lambda row: -(row.angle(row.k) or 0.0))[:most]:
        shares = [row.fraction("gradient", "left", row.k), row.chance("left", row.k)]
        shares.append(row.fraction("update", "left", row.k))
        tail = row.tail_error(row.k) if row.directions else None
        numbers = [row.angle(row.k), row.overlap(row.k), *shares, tail, row.stable_rank]
        reason = f" ({row.reason})" if row.reason else ""
        table.add_row(short(row.layer) + reason, *("" if number is None else f"{number:.3g}" for number in numbers))
    return table


def approach_table(nearest: Sequence[Approach], most: int = 5) -> Table:
    """At a tick: the clauses nearest to their limits, with trend and when they would get there."""
    names = ("clause", "value", "limit", "margin", "per step", "holds in")
    table = Table(Column("layer", no_wrap=True), *names, title="nearest to a limit", box=_BOX)
    for item in nearest[:most]:
        slope = "" if item.slope is None else f"{item.slope:+.2g}"
        eta = "never so" if item.eta is None else "holds" if item.eta == 0 else f"{item.eta:.0f} steps"
        numbers = (f"{item.value:.4g}", f"{item.op} {item.limit:g}", f"{item.margin:+.3g}")
        table.add_row(short(item.layer), item.clause, *numbers, slope, eta)
    return table


def summary_table(rows: Sequence[RuleSummary]) -> Table:
    """The end-of-run table: binding clause, how often it alone was missing, and the nearest miss."""
    names = ("rule", "fired", "binding clause", "failed", "alone", "nearest miss")
    table = Table(Column("layer", no_wrap=True), *names, title="what was in the way", box=_BOX)
    for row in rows[: 2 * MOST_LAYERS]:
        fired = "never" if row.first_fire is None else f"{row.fired} of {row.ticks}, first at step {row.first_fire}"
        near = row.nearest
        miss = "" if near is None else f"{near.clause} {near.value:.4g} (limit {near.limit:g}) at step {near.step}"
        counts = ("", "") if row.binding is None else (row.failed[row.binding], row.alone.get(row.binding, 0))
        table.add_row(short(row.layer), row.reason, fired, row.binding or "", *(str(count) for count in counts), miss)
    return table
