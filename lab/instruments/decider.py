"""Decisions of a run's policy, on the main process: made tick by tick, written, and asked for by the editors."""

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import ledger
from lab.instruments.spectral_console import TREND
from lab.ledger import Ledger, Row
from lab.svd_policy import Decision, State, SvdPolicy, decisions
from lab.svd_policy.switching import Move, Switching


class Decider:
    """Holds what the policy remembers of each layer, all of which follows from the ledger, and what it asks for."""

    def __init__(self, run_dir: Path, policy: SvdPolicy, layers: int) -> None:
        self.run_dir, self.policy = run_dir, policy
        self.states: dict[str, State] = {}
        self.first: dict[str, Row] = {}
        self.recent: deque[decisions.Decided] = deque(maxlen=TREND * layers)
        self._moves: list[Move] = []
        self._guards: list[tuple[str, bool]] = []

    def take_up(self, step: int, header: dict[str, Any]) -> list[Row]:
        """Start the files, or cut them back to what the steps before this one saw; their rows, decided on again."""
        if step == 0:
            (self.run_dir / ledger.FOLDER / ledger.FILE).unlink(missing_ok=True)
            (self.run_dir / decisions.FILE).unlink(missing_ok=True)
        ledger.cut_back(self.run_dir, step - 1)
        decisions.cut_back(self.run_dir, step - 1)
        self._ledger = Ledger(self.run_dir, header)
        rows = ledger.read(self.run_dir).rows
        for tick in decisions.ticks(rows):
            self._decide(tick)
        return rows

    def decide(self, rows: list[Row]) -> None:
        """Write a tick, the ledger first, since decisions follow from it; keep what they ask for."""
        self._ledger.append(rows)
        made = list(zip(rows, self._decide(rows), strict=True))
        decisions.append(self.run_dir, [decisions.decision_row(*pair) for pair in made])
        if isinstance(self.policy, Switching):
            self._moves = [move for pair in made if (move := self.policy.move(*pair)) is not None]
        guards = ((row.layer, decision.action) for row, decision in made)
        self._guards = [(layer, action == "guard") for layer, action in guards if action in ("guard", "release")]

    def take_moves(self) -> list[Move]:
        """The switches that the last tick's decisions ask for, once."""
        moves, self._moves = self._moves, []
        return moves

    def take_guards(self) -> list[tuple[str, bool]]:
        """The layers that the last tick's decisions guard (True) or release, once."""
        guards, self._guards = self._guards, []
        return guards

    def _decide(self, rows: Sequence[Row]) -> list[Decision]:
        decided = decisions.decide_tick(rows, self.policy, self.states)
        self.first = {row.layer: row for row in rows} | self.first
        self.recent.extend(map(decisions.decision_row, rows, decided))
        return decided
