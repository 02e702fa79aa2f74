"""Decisions as rows of decisions.jsonl: made from a ledger, written, read, cut back. No torch."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from lab import record
from lab.errors import UsageError, refused
from lab.ledger import Row
from lab.record import strict
from lab.spectral.diagnosis import NotHeld
from lab.svd_policy import Decision, Settles, State, SvdPolicy

FILE = "decisions.jsonl"
Decided = dict[str, Any]  # step, layer, mode, action, reason, rank, clauses


def decision_row(row: Row, decision: Decision) -> Decided:
    """The row of decisions.jsonl for a decision."""
    plain: Decided = strict(
        {
            "step": row.step,
            "layer": row.layer,
            "mode": decision.mode,
            "action": decision.action,
            "reason": decision.reason,
            "rank": decision.rank,
            "clauses": [asdict(clause) for clause in decision.clauses],
        }
    )
    return plain


def decide_tick(rows: Sequence[Row], policy: SvdPolicy, states: dict[str, State]) -> list[Decision]:
    """The decisions of a policy on the rows of one tick; `states`, by layer, is taken on."""
    made = [policy.decide(row, states.get(row.layer, {})) for row in rows]
    decided: Sequence[Decision] = [decision for decision, _ in made]
    after: Sequence[State] = [state for _, state in made]
    if isinstance(policy, Settles):
        due = {row.layer for row in rows}
        others = {layer: state for layer, state in states.items() if layer not in due}
        decided, after = policy.settle(rows, decided, after, others)
    states.update({row.layer: state for row, state in zip(rows, after, strict=True)})
    return list(decided)


def ticks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows of each tick, in their order."""
    for _, tick in itertools.groupby(rows, key=lambda row: row.step):
        yield list(tick)


def decide_all(rows: Iterable[Row], policy: SvdPolicy) -> list[Decided]:
    """The decisions of a policy on the rows of a ledger, in their order, each layer with its own state."""
    states: dict[str, State] = {}
    decisions: list[Decided] = []
    for tick in ticks(rows):
        decisions += map(decision_row, tick, decide_tick(tick, policy, states))
    return decisions


def decide_while_held(rows: Iterable[Row], policy: SvdPolicy) -> list[Decided]:
    """As `decide_all`, for other limits than the run's: it ends where an action would have made another run.

    That is at the first tick, after one with an action, for which the ledger lacks what the policy asks (a trial that
    only the other run would have made). Raises NotHeld where it lacks that before any action.
    """
    states: dict[str, State] = {}
    decisions: list[Decided] = []
    for tick in ticks(rows):
        try:
            decisions += map(decision_row, tick, decide_tick(tick, policy, states))
        except NotHeld:
            if all(decision["action"] == "none" for decision in decisions):
                raise
            break
    return decisions


def append(run_dir: Path, rows: Sequence[Decided]) -> None:
    """Add the decisions of a tick with one write."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    with open(Path(run_dir) / FILE, "a", encoding="utf-8") as file:
        file.write(text)


def read(run_dir: Path) -> list[Decided]:
    """The decisions of a run, less a last line that a kill cut; raises UsageError where there are none."""
    path = Path(run_dir) / FILE
    try:
        with path.open("rb") as file:
            return [row for _, row in _whole(path, file)]
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{run_dir} holds no {FILE}; run with a svd_policy other than never.") from None
    except OSError as error:
        raise refused(path, error) from None


def cut_back(run_dir: Path, step: int) -> None:
    """Drop a cut last line and the decisions of later steps, so that a resumed run appends what it repeats."""
    path = Path(run_dir) / FILE
    if not path.is_file():
        return
    keep = 0
    with path.open("rb") as file:
        for size, row in _whole(path, file):
            if row["step"] > step:
                break
            keep += size
    os.truncate(path, keep)


def _whole(path: Path, file: BinaryIO) -> Iterator[tuple[int, Decided]]:
    """(bytes, row) of each line but a last one that is cut; raises UsageError naming another one that is damaged."""
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            return
        try:
            row = record.parse(line.decode())
            row["step"], row["layer"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"line {number} of {path} is damaged; restore the file.") from None
        yield len(line), row
