"""Console of an observed run: what can happen at all, and what each tick saw."""

import logging
from collections.abc import Iterable, Sequence

from rich.text import Text

from lab.instruments.outlook import Outlook
from lab.ledger import Row
from lab.svd_policy import decisions
from lab.svd_policy.observing import Observing
from lab.svd_policy.summary import approaches
from lab.svd_policy.tables import approach_table, chance_table, measures_table, reach_table
from lab.training.progress import console

log = logging.getLogger(__name__)
TREND = 5  # ticks through which a trend is drawn


def say_start(policy: Observing, first: Sequence[Row], outlook: Outlook, cannot_fire: Iterable[str]) -> None:
    """Chance levels of the layers' first rows, what low rank brings here at most, and which clauses can ever hold."""
    console.print(chance_table(first))
    console.print(f"low rank here: {outlook.bound}")
    if outlook.prospect is not None:
        console.print(f"this policy: {outlook.prospect}")
    if policy.rules:
        console.print(reach_table(policy, first))
    for sentence in cannot_fire:
        console.print(Text(sentence, style="yellow"))
        log.warning(sentence)


def say_tick(rows: Sequence[Row], recent: Sequence[decisions.Decided], caption: str) -> None:
    """A tick's rows: the clauses that are nearest to holding, or the measures where there are none."""
    for row in rows:
        if row.reason == "non_finite":
            console.print(f"step {row.step}: {row.layer} has weights that are not finite; it is on hold.")
    near = approaches(recent, TREND)
    table = approach_table(near) if near else measures_table(rows)
    table.title, table.caption = f"step {rows[0].step}: {table.title}", caption
    console.print(table)
