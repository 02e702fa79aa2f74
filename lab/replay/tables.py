"""Tables, a heat map and JSON of a replay."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.replay.outcome import Outcome
from lab.replay.suggest import Suggestion
from lab.svd_policy import SvdPolicy
from lab.svd_policy.decisions import Decided
from lab.svd_policy.summary import summarise
from lab.svd_policy.tables import MOST_LAYERS, summary_table


def show_outcomes(outcomes: Sequence[Outcome], swept: Mapping[str, Sequence[Any]]) -> None:
    """One set of thresholds layer by layer; several as a row each, two swept keys also as a grid."""
    console = Console()
    if len(outcomes) == 1:
        console.print(_layers(outcomes[0]))
    else:
        console.print(_sets(outcomes))
    if len(swept) == 2:
        console.print(_grid(outcomes, swept))
    for sentence in sorted({sentence for outcome in outcomes for sentence in outcome.unsatisfiable}):
        console.print(sentence, style="yellow")


def _layers(outcome: Outcome) -> Table:
    table = Table("layer", "first fire", "reason", title=f"{outcome.fired} of {len(outcome.first_fire)} layers fire")
    for layer, fire in list(outcome.first_fire.items())[:MOST_LAYERS]:
        table.add_row(layer, *(("never", "") if fire is None else (f"step {fire[0]}", fire[1])))
    return table


def _sets(outcomes: Sequence[Outcome]) -> Table:
    table = Table(*outcomes[0].settings, "layers that fire", "first fire", "median", title="first fires")
    for outcome in outcomes:
        steps = [fire[0] for fire in outcome.first_fire.values() if fire is not None]
        when = (f"step {min(steps)}", f"step {statistics.median(steps):g}") if steps else ("never", "")
        settings = [f"{value:g}" if isinstance(value, float) else str(value) for value in outcome.settings.values()]
        table.add_row(*settings, f"{outcome.fired} of {len(outcome.first_fire)}", *when)
    return table


def _grid(outcomes: Sequence[Outcome], swept: Mapping[str, Sequence[Any]]) -> Table:
    (down, rows), (across, columns) = swept.items()
    table = Table(f"{down} \\ {across}", *(str(value) for value in columns), title="layers that fire")
    for row in rows:
        cells = [str(o.fired) for value in columns for o in outcomes if o.settings == {down: row, across: value}]
        table.add_row(str(row), *cells)
    return table


def write(outcomes: Sequence[Outcome], swept: Mapping[str, Sequence[Any]], to: Path) -> str:
    """replay.json and, for two swept keys, a heat map; returns their names in words."""
    to.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "settings": outcome.settings,
            "layers_that_fire": outcome.fired,
            "first_fire": {
                layer: None if fire is None else {"step": fire[0], "reason": fire[1]}
                for layer, fire in outcome.first_fire.items()
            },
            "unsatisfiable": outcome.unsatisfiable,
        }
        for outcome in outcomes
    ]
    path = to / "replay.json"
    path.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    if len(swept) != 2:
        return str(path)
    return f"{path} and {_heat_map(outcomes, swept, to)}"


def _heat_map(outcomes: Sequence[Outcome], swept: Mapping[str, Sequence[Any]], to: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (down, rows), (across, columns) = swept.items()
    fired = [[next(o.fired for o in outcomes if o.settings == {down: r, across: c}) for c in columns] for r in rows]
    layers = len(outcomes[0].first_fire)
    figure = Figure(figsize=(1.5 + 0.9 * len(columns), 1.3 + 0.6 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(fired, vmin=0, vmax=layers, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(columns)), [str(value) for value in columns])
    axes.set_yticks(range(len(rows)), [str(value) for value in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(down)
    for i, line in enumerate(fired):
        for j, count in enumerate(line):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if count < layers / 2 else "black")
    figure.colorbar(image, label=f"layers that fire, of {layers}")
    path = to / f"heat_{down}_{across}.png"
    figure.savefig(path, dpi=150)
    return path


def show_summary(decisions: Sequence[Decided], policy: SvdPolicy) -> None:
    """For each rule and layer, what was in the way."""
    rows = summarise(decisions, policy.rules)
    if not rows:
        print("this policy has no rule that could fire.")
        return
    Console().print(summary_table(rows))


def show_suggestions(suggestions: Sequence[Suggestion]) -> None:
    """Each suggestion with its overrides, ready to paste."""
    if not suggestions:
        print("nothing to suggest: this policy has no rule with limits that the ledger can answer for.")
    for item in suggestions:
        print(f"{item.kind} ({item.rule}): {item.says}\n  {item.overrides()}")
