"""Live runs at other limits against what a replay of one observed run says of each, up to where they part."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lab.errors import UsageError
from lab.ledger import Recorded
from lab.record import RESULT
from lab.replay.target import MEASURED
from lab.svd_policy import SvdPolicy, decisions
from lab.svd_policy.decisions import Decided

RUNS = "first_switches.csv"  # a row per live run
BEGIN, END = "<!-- first switches -->", "<!-- end -->"  # of the table in a page
ACTS = ("to_low_rank", "guard")


@dataclass(frozen=True)
class Compared:
    """A live run beside the replay of the observed one at its settings."""

    settings: str  # in which it differs from the observed run's, as overrides
    replayed_step: int | None  # tick of the first action that the replay says; None for none
    replayed_layers: str  # that act at it
    live_step: int | None
    live_layers: str
    same: bool | None  # the two, and every decision before them, number by number; None: live acts behind the replay
    parts_at: int | None  # first tick with another decision than the replay's; None where there is none
    parts_by: str  # a layer's decision there, replayed and live, in words
    replay_until: int  # last tick that the observed run can answer for


def compare(recorded: Recorded, live: Path, settings: Mapping[str, Any], policy: SvdPolicy) -> Compared:
    """A live run beside the observed one that was recorded; `policy` is what the live run's settings make.

    Raises UsageError for a run that was measured otherwise, since then nothing could be the same.
    """
    held = recorded.header["policy"]
    for key in MEASURED:
        if held.get(key) != settings.get(key):
            raise UsageError(
                f"{live} was measured with {key}={settings.get(key)} and the observed run with {held.get(key)}; "
                f"compare runs that differ in limits alone."
            )
    said = decisions.decide_while_held(recorded.rows, policy)
    made = decisions.read(live)
    apart = next(((one, other) for one, other in zip(said, made, strict=False) if one != other), None)
    replayed, acted = first_action(said), first_action(made)
    until, last = None if apart is None else apart[0]["step"], said[-1]["step"]
    beyond = until is None and acted[0] is not None and acted[0] > last
    same = replayed == acted and (until is None or (acted[0] is not None and until > acted[0]))
    others = [f"{key}={value}" for key, value in settings.items() if held.get(key) != value]
    return Compared(
        ", ".join(others),
        *(replayed[0], ", ".join(replayed[1]), acted[0], ", ".join(acted[1])),
        same=None if beyond else same,
        parts_at=until,
        parts_by="" if apart is None else _words(*apart),
        replay_until=last,
    )


def first_action(made: Sequence[Decided]) -> tuple[int | None, list[str]]:
    """The tick of the first action, and the layers that act at it."""
    step = next((row["step"] for row in made if row["action"] in ACTS), None)
    return step, sorted(row["layer"] for row in made if row["step"] == step and row["action"] in ACTS)


def _words(one: Decided, other: Decided) -> str:
    if (one["step"], one["layer"]) != (other["step"], other["layer"]):
        return f"{one['layer']} of step {one['step']} has no decision in the live run"
    if (one["mode"], one["reason"]) != (other["mode"], other["reason"]):
        return f"{one['layer']}: {one['reason']} in the replay, {other['reason']} live"
    pairs = zip(one["clauses"], other["clauses"], strict=False)
    item = next(((a, b) for a, b in pairs if a != b), None)
    if item is None:
        return f"{one['layer']}: other clauses"
    return f"{one['layer']}: {item[0]['name']} {item[0]['value']:.4g} in the replay, {item[1]['value']:.4g} live"


def runs_in(folders: Sequence[Path]) -> list[Path]:
    """The runs that are named, or lie in a multirun's folder, in the order of their names; raises UsageError."""
    found = []
    for folder in folders:
        inside = [folder] if (folder / RESULT).is_file() else sorted(path.parent for path in folder.glob(f"*/{RESULT}"))
        if not inside:
            raise UsageError(f"{folder} is no run and holds none; name a live run's folder, or a multirun's.")
        found += inside
    return found


def sentence(row: Compared) -> str:
    """A comparison in words."""
    live = "nothing acted" if row.live_step is None else f"first at step {row.live_step}: {row.live_layers}"
    said = "nothing" if row.replayed_step is None else f"step {row.replayed_step}: {row.replayed_layers}"
    agrees = "as replayed, every number until then the same" if row.same else f"NOT as replayed ({said})"
    if row.same is None:
        agrees = f"the replay cannot answer beyond step {row.replay_until}, up to where every number is the same"
    apart = (
        f"they part at step {row.parts_at} ({row.parts_by})"
        if row.parts_at is not None
        else f"they part {_nowhere(row.replay_until)}"
    )
    return f"{row.settings or 'the same settings'}: {live}, {agrees}; {apart}."


def _nowhere(until: int | str) -> str:
    return f"nowhere up to step {until}, the replay's last"


def write(rows: Sequence[Compared], to: Path) -> Path:
    """The CSV, and the table of a page that has a place for it."""
    to.mkdir(parents=True, exist_ok=True)
    with open(to / RUNS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [item.name for item in fields(Compared)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    page = to / "README.md"
    if page.is_file() and BEGIN in (text := page.read_text(encoding="utf-8")):
        before, rest = text.split(BEGIN, 1)
        page.write_text(f"{before}{BEGIN}\n\n{table(to / RUNS)}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    return to / RUNS


def table(path: Path) -> str:
    """The Markdown table of a CSV."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = ["| limit | first switch, replayed | and live | all numbers the same until then | where they part |"]
    lines.append("|" + "---|" * 5)
    for row in rows:
        row = {key: value.replace("model.layers.", "") for key, value in row.items()}
        said, live = (
            f"step {row[f'{which}_step']}: {row[f'{which}_layers']}" if row[f"{which}_step"] else "none"
            for which in ("replayed", "live")
        )
        parts = f"step {row['parts_at']}, {row['parts_by']}" if row["parts_at"] else _nowhere(row["replay_until"])
        ends = f"yes, up to step {row['replay_until']}, the replay's last"
        same = {"True": "yes", "False": "**no**", "": ends}[row["same"]]
        lines.append(f"| `{row['settings']}` | {said} | {live} | {same} | {parts} |")
    return "\n".join(lines)
